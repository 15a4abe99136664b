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
    return attention_with_lse(queries, keys, values, mask.dense())[0]


def attention_with_lse(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`attention` under a dense mask that also returns the log-sum-exp of each query's scores, for exact merges.

    Args:
      queries: `[B, T, N, H]`.
      keys: `[B, S, K, H]`.
      values: `[B, S, K, H]`.
      mask: `[B, T, S]` booleans.

    Returns:
      `[B, T, N, H]` in the queries' dtype and `[B, T, N]` float32.
    """
    batch, length, heads, width = queries.shape
    grouped = queries.reshape(batch, length, keys.shape[2], -1, width) * width**-0.5
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, _MASKED)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(values.dtype)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights, values)
    return out.reshape(batch, length, heads, width), jnp.moveaxis(lse, -1, 1).reshape(batch, length, heads)
