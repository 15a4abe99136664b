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
_QUERIES_AT_ONCE = 256


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
    """A prompt, then completions one after the other, each of which sees the prompt and itself.

    Attributes:
      segments: `[B, T]` integers: 1 is the prompt, 2, 3, ... are its completions in this order; 0 is padding, which may
        also stand between them: each begins at a multiple of `start_multiple(T)`.
    """

    segments: jax.Array

    def dense(self) -> jax.Array:
        return Causal(self.segments).dense() | ((self.segments[:, :, None] > 1) & (self.segments[:, None, :] == 1))


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
        case "tpu", _ if splash.fits(length):
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
        case SharedPrompt(segments):
            return splash.shared_prompt(queries, keys, values, segments, interpret)


def fused_gpu_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: Causal | Segments, *, interpret: bool = False
) -> jax.Array:
    """`attention` by the GPU kernel; `interpret` runs it anywhere, slowly."""
    kernel = gpu_attention.causal if isinstance(mask, Causal) else gpu_attention.whole
    return kernel(queries, keys, values, mask.segments, interpret)


def reference_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: Mask) -> jax.Array:
    """`attention` in plain products."""
    length, shared = queries.shape[1], keys.shape[2]
    visible = mask.dense()
    keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
    # Some queries at a time: of a causal mask they need no key behind them, and the scores of few exist at once.
    size = length if isinstance(mask, Segments) else _QUERIES_AT_ONCE
    parts = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        seen = slice(0, length if isinstance(mask, Segments) else stop)
        some = queries[:, start:stop]
        # Query heads of a group lie side by side: the keys are read once for all of them.
        repeats = (1, 1, queries.shape[2] // shared, 1)
        out, _ = attend(
            _split_heads(some, shared),
            keys[:, :, seen],
            values[:, :, seen],
            jnp.tile(visible[:, None, start:stop, seen], repeats),
        )
        parts.append(_join_heads(out, some))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def attention_behind(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: Causal,
    kept_keys: jax.Array,
    kept_values: jax.Array,
    kept_valid: jax.Array,
) -> jax.Array:
    """`attention` of tokens that stand behind others whose keys and values are kept; every token sees all of those.

    Args:
      queries: `[B, T, N, H]`.
      keys, values: `[B, T, K, H]` of the same tokens.
      mask: who sees whom among them.
      kept_keys, kept_values: `[B, K, P, H]`, laid out as a cache.
      kept_valid: `[B, P]`, False on padding; each row has a token.

    Returns:
      `[B, T, N, H]` in the queries' dtype; exact, by log-sum-exp.
    """
    shared = keys.shape[2]
    grouped = _split_heads(queries, shared)
    visible = jnp.tile(mask.dense()[:, None], (1, 1, queries.shape[2] // shared, 1))
    own = attend(grouped, keys.swapaxes(1, 2), values.swapaxes(1, 2), visible)
    before = attend(grouped, kept_keys, kept_values, kept_valid[:, None, None])
    return _join_heads(merge(before, own), queries)


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
