"""Random inputs, and a kernel's values and gradients against the reference in plain products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.models.attention import Mask, reference_attention

Arrays = tuple[jax.Array, jax.Array, jax.Array]
Kernel = Callable[[jax.Array, jax.Array, jax.Array, Mask], jax.Array]


def draw(batch: int, length: int, *, heads: int, shared: int, width: int, seed: int = 0) -> Arrays:
    """Queries, keys and values."""
    generator = np.random.default_rng(seed)
    shapes = [(batch, length, count, width) for count in (heads, shared, shared)]
    return tuple(jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes)


def weighted_sum(attend: Kernel, arrays: Arrays, mask: Mask, real: np.ndarray) -> tuple[jax.Array, Arrays]:
    """The output, and the gradients of a random weighted sum of what `real` `[B, T]` lets count."""
    weight = np.random.default_rng(99).standard_normal(arrays[0].shape) * real[..., None, None]

    def run(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(*arrays, mask)
        return jnp.vdot(jnp.where(real[..., None, None], out, 0), weight.astype(np.float32)), out

    gradients, out = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(*arrays)
    return out, gradients


def assert_agrees(attend: Kernel, arrays: Arrays, mask: Mask, real: np.ndarray) -> None:
    """Values of real tokens and all gradients; nothing is ever NaN, padding included."""
    out, gradients = weighted_sum(attend, arrays, mask, real)
    expected, expected_gradients = weighted_sum(reference_attention, arrays, mask, real)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(np.asarray(out)[real], np.asarray(expected)[real], atol=5e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert np.abs(theirs).max() > 0.1  # a gradient of nothing would agree too
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
