"""What both transformers share: initialisers, normalisation, and what a layer saves for its backward pass."""

import jax
import jax.numpy as jnp
from flax import nnx

REMAT_POLICIES = {
    # Saves the input of each layer; everything else is computed again in the backward pass.
    "layer": jax.checkpoint,
    # Saves everything: fastest where memory is plenty.
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


def cast(parameter: nnx.Param, like: jax.Array) -> jax.Array:
    """Master weights in the dtype of the activations that meet them."""
    return parameter[...].astype(like.dtype)
