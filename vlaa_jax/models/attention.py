"""Attention with masks that say what they mean: a reference in plain products, and the platforms' fused kernels."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vlaa_jax.models import gpu_attention, splash
from vlaa_jax.models.layers import ATTENTION
from vlaa_jax.sharding import platform

# A fully masked query then gets uniform weights instead of NaN; its output is never read.
_MASKED = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Causal:
    """A token sees earlier tokens of its own segment.

    Attributes:
      segments: `[B, T]` integers; 0 is padding.
    """

    segments: jax.Array

    def dense(self) -> jax.Array:
        """`[B, T, T]`, True where the query (first T) sees the key."""
        index = jnp.arange(self.segments.shape[1])
        return Segments(self.segments).dense() & (index[None, :, None] >= index[None, None, :])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """A token sees its whole segment, both ways.

    Attributes:
      segments: `[B, T]` integers; 0 is padding.
    """

    segments: jax.Array

    def dense(self) -> jax.Array:
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return same & (self.segments > 0)[:, None, :]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedPrompt:
    """A prompt of P tokens, then G completions of C tokens, each of which sees the prompt and itself.

    Attributes:
      valid: `[B, P + G * C]` booleans, False on padding.
      prompt: P.
      completion: C.
    """

    valid: jax.Array
    prompt: int = dataclasses.field(metadata={"static": True})
    completion: int = dataclasses.field(metadata={"static": True})

    def dense(self) -> jax.Array:
        index = jnp.arange(self.valid.shape[1])
        query, key = index[:, None], index[None, :]
        own = (query - self.prompt) // self.completion == (key - self.prompt) // self.completion
        return ((query >= key) & ((key < self.prompt) | own))[None] & self.valid[:, None, :]


Mask = Causal | Segments | SharedPrompt


def attention(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: Mask) -> jax.Array:
    """Scaled dot-product attention with grouped queries, by the fastest implementation that the shapes allow.

    Args:
      queries: `[B, T, N, H]`.
      keys: `[B, T, K, H]`; query head n reads key head n // (N / K).
      values: `[B, T, K, H]`.
      mask: who sees whom.

    Returns:
      `[B, T, N, H]` in the queries' dtype; scores and softmax are float32.
    """
    length = queries.shape[1]
    # Short rows (the windows of the vision tower) are batched plain products everywhere.
    match platform(), mask:
        case "tpu", SharedPrompt() if splash.fits(length, mask.completion):
            return splash_attention(queries, keys, values, mask)
        case "tpu", Causal() | Segments() if splash.fits(length):
            return splash_attention(queries, keys, values, mask)
        case "gpu", Causal() | Segments() if gpu_attention.fits(length):
            out = fused_gpu_attention(queries, keys, values, mask)
        case _:
            out = reference_attention(queries, keys, values, mask)
    return checkpoint_name(out, ATTENTION)


def splash_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: Mask, *, interpret: bool = False
) -> jax.Array:
    """`attention` by the TPU kernel; `interpret` runs it anywhere, slowly. It names what `jax.checkpoint` may save."""
    match mask:
        case Causal(segments):
            return splash.causal(queries, keys, values, segments, interpret)
        case Segments(segments):
            return splash.whole(queries, keys, values, segments, interpret)
        case SharedPrompt(valid, prompt, completion):
            return splash.shared_prompt(queries, keys, values, valid, prompt, completion, interpret)


def fused_gpu_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: Causal | Segments, *, interpret: bool = False
) -> jax.Array:
    """`attention` by the GPU kernel; `interpret` runs it anywhere, slowly."""
    kernel = gpu_attention.causal if isinstance(mask, Causal) else gpu_attention.whole
    return kernel(queries, keys, values, mask.segments, interpret)


def reference_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: Mask) -> jax.Array:
    """`attention` in plain products."""
    if isinstance(mask, SharedPrompt):
        return _shared_prompt(queries, keys, values, mask)
    by_head = _split_heads(queries, keys.shape[2])
    # Query heads of a group lie side by side: the keys are read once for all of them.
    visible = jnp.tile(mask.dense()[:, None], (1, 1, queries.shape[2] // keys.shape[2], 1))
    out, _ = attend(by_head, keys.swapaxes(1, 2), values.swapaxes(1, 2), visible)
    return _join_heads(out, queries)


def _shared_prompt(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: SharedPrompt) -> jax.Array:
    """Scores only the blocks that the mask lets through: P x P, G C x P and G times C x C."""
    batch, _, heads, width = queries.shape
    length, shared, repeats = mask.completion, keys.shape[2], heads // keys.shape[2]
    (q_prompt, q), (k_prompt, k), (v_prompt, v) = (jnp.split(x, [mask.prompt], axis=1) for x in (queries, keys, values))
    valid_prompt, valid = jnp.split(mask.valid, [mask.prompt], axis=1)
    prompt = reference_attention(q_prompt, k_prompt, v_prompt, Causal(valid_prompt.astype(jnp.int32)))

    # All completions of a prompt read its keys in one product, and each its own.
    to_prompt, to_prompt_lse = attend(
        _split_heads(q, shared), k_prompt.swapaxes(1, 2), v_prompt.swapaxes(1, 2), valid_prompt[:, None, None]
    )
    own = lambda x: x.reshape(-1, length, *x.shape[2:])  # noqa: E731  [B * G, C, ...]
    index = jnp.arange(length)
    earlier = (index[:, None] >= index) & valid.reshape(-1, 1, length)
    to_own, to_own_lse = attend(
        _split_heads(own(q), shared),
        own(k).swapaxes(1, 2),
        own(v).swapaxes(1, 2),
        jnp.tile(earlier[:, None], (1, 1, repeats, 1)),
    )
    group = q.shape[1] // length
    # [B, K, R * G * C, ...] and [B * G, K, R * C, ...] to [B, K, R, G, C, ...].
    first = (
        to_prompt.reshape(batch, shared, repeats, group, length, width),
        to_prompt_lse.reshape(batch, shared, repeats, group, length),
    )
    second = (
        to_own.reshape(batch, group, shared, repeats, length, width).transpose(0, 2, 3, 1, 4, 5),
        to_own_lse.reshape(batch, group, shared, repeats, length).transpose(0, 2, 3, 1, 4),
    )
    completions = _join_heads(merge(first, second).reshape(batch, shared, -1, width), q)
    return jnp.concatenate([prompt, completions], axis=1)


def _split_heads(queries: jax.Array, shared: int) -> jax.Array:
    """`[B, T, N, H]` to `[B, K, N / K * T, H]`."""
    batch, length, heads, width = queries.shape
    grouped = queries.reshape(batch, length, shared, heads // shared, width).transpose(0, 2, 3, 1, 4)
    return grouped.reshape(batch, shared, -1, width)


def _join_heads(out: jax.Array, queries: jax.Array) -> jax.Array:
    """The inverse of `_split_heads`, in the queries' dtype."""
    batch, length, heads, width = queries.shape
    grouped = out.reshape(batch, out.shape[1], -1, length, width).transpose(0, 3, 1, 2, 4)
    return grouped.reshape(batch, length, heads, width).astype(queries.dtype)


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention of some queries to one set of keys, with what an exact merge with other keys needs.

    Plain batched products: an einsum over unsorted axes is seven times slower on CPU.

    Args:
      queries: `[..., Q, H]`, not yet scaled.
      keys, values: `[..., S, H]`.
      visible: booleans that broadcast to `[..., Q, S]`.

    Returns:
      `[..., Q, H]` float32, and the log-sum-exp of the scores `[..., Q]` float32. A query that sees nothing gets a
      finite output that nothing may read, and about -1e30.
    """
    scores = jnp.matmul(queries * queries.shape[-1] ** -0.5, keys.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    scores = jnp.where(visible, scores, _MASKED)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    # One exponential a score; the division waits until after the product with the values.
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32) / total
    return out, (largest + jnp.log(total))[..., 0]


def merge(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Attention to the union of two sets of keys from the `attend` of each (exact)."""
    lse = jnp.logaddexp(first[1], second[1])
    return sum(out * jnp.exp(part - lse)[..., None] for out, part in (first, second))
