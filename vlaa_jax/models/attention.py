"""Attention with masks that say what they mean. `xla` is the reference implementation and runs everywhere."""

import dataclasses

import jax
import jax.numpy as jnp

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
    """Scaled dot-product attention with grouped queries.

    Args:
      queries: `[B, T, N, H]`.
      keys: `[B, T, K, H]`; query head n reads key head n // (N / K).
      values: `[B, T, K, H]`.
      mask: who sees whom.

    Returns:
      `[B, T, N, H]` in the queries' dtype; scores and softmax are float32.
    """
    batch, length, heads, width = queries.shape
    shared = keys.shape[2]
    grouped = queries.reshape(batch, length, shared, heads // shared, width).transpose(0, 2, 3, 1, 4)
    # Query heads of a group go side by side: the keys are read once for all of them.
    visible = jnp.tile(mask.dense()[:, None], (1, 1, heads // shared, 1))
    flat = grouped.reshape(batch, shared, -1, width)
    out, _ = attend(flat, keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3), visible)
    return out.reshape(grouped.shape).transpose(0, 3, 1, 2, 4).reshape(queries.shape).astype(queries.dtype)


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
