"""What both transformers share: initialisers, normalisation, and what a layer saves for its backward pass."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

ATTENTION = "attention"  # how the attention's output and its log-sum-exp are named, for `jax.checkpoint`

_policies = jax.checkpoint_policies
_save_attention = _policies.save_only_these_names(ATTENTION)
# A layer runs in a scan, whose backward loop cannot share values with the forward one: nothing has to prevent it.
_checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)

# What a layer keeps for its backward pass. Bytes are those of a token of the 3B model in bfloat16, a layer.
REMAT_POLICIES = {
    # Its input, 4 kB; everything else is computed again in the backward pass.
    "layer": _checkpoint,
    # Also the attention's output, 8 kB in all: the TPU kernel does not run again.
    "attention": functools.partial(_checkpoint, policy=_save_attention),
    # Also the results of its products with weights, 61 kB in all: only norms and element-wise steps run again.
    "products": functools.partial(
        _checkpoint,
        policy=_policies.save_from_both_policies(_save_attention, _policies.dots_with_no_batch_dims_saveable),
    ),
    # Everything, and with it every gathered weight: for one device, or a small model.
    "none": lambda step: step,
}


def weights(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """A matrix drawn from a normal of variance 1 / fan_in, in float32 (the dtype of master weights)."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5)


def zeros(shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def ones(shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, jnp.float32))


def rms_norm(x: jax.Array, scale: nnx.Param, epsilon: float) -> jax.Array:
    """`x / rms(x) * scale` over the last axis; statistics in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale[...].astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: nnx.Param, bias: nnx.Param, epsilon: float) -> jax.Array:
    """`(x - mean(x)) / deviation(x) * scale + bias` over the last axis; statistics in float32."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale[...].astype(jnp.float32) + bias[...].astype(jnp.float32)).astype(x.dtype)


def dense(x: jax.Array, weight: nnx.Param, bias: nnx.Param | None = None, *, contracted: int = 1) -> jax.Array:
    """`x @ weight (+ bias)` over the last `contracted` axes of x and the first ones of the weight.

    Master weights are cast to the activations' dtype. The product is a plain one of two matrices: with more axes the
    gradient costs three times as much on CPU, elsewhere it makes no difference.

    Args:
      x: `[..., in]`.
      weight: `[in, out]`; in and out may be several axes.
      bias: `[out]`.

    Returns:
      `[..., out]`.
    """
    kernel = weight[...].astype(x.dtype)
    outside, inner, outer = x.shape[: x.ndim - contracted], kernel.shape[:contracted], kernel.shape[contracted:]
    out = x.reshape(-1, math.prod(inner)) @ kernel.reshape(math.prod(inner), -1)
    out = out.reshape(*outside, *outer)
    return out if bias is None else out + bias[...].astype(x.dtype)
