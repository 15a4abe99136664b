"""Fused attention on GPU: jax's Pallas kernel, compiled by Triton, so that no score matrix is stored.

cuDNN's kernel (`jax.nn.dot_product_attention`) knows no segments and cannot run without a GPU. This one agrees with the
reference when it is interpreted, and lowers for CUDA; it was not measured on a GPU. Its blocks are jax's defaults.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu.attention import mha

from vlaa_jax.sharding import over_heads

_BLOCK = 128  # tokens: rows are padded to a multiple
_SHORTEST = 256  # tokens; for a shorter row plain products are as good


def fits(length: int) -> bool:
    """Whether the kernel is for rows of `length` tokens."""
    return length >= _SHORTEST


def causal(queries: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array, interpret: bool) -> jax.Array:
    """`attention` with `Causal(segments)`."""
    return _attend(queries, keys, values, segments, True, interpret)


def whole(queries: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array, interpret: bool) -> jax.Array:
    """`attention` with `Segments(segments)`."""
    return _attend(queries, keys, values, segments, False, interpret)


def _attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array, causal: bool, interpret: bool
) -> jax.Array:
    """Every chip runs the kernel on its own heads."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        length, heads, width = q.shape[1:]
        # The kernel has one key head for each query head.
        k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
        pad = lambda x: jnp.pad(x, ((0, 0), (0, -length % _BLOCK)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
        return mha(pad(q), pad(k), pad(v), pad(ids), width**-0.5, causal, interpret=interpret)[:, :length]

    return over_heads(run, 2)(queries, keys, values, segments)
