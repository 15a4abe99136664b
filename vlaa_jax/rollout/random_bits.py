"""Random numbers that depend on what is sampled, never on where or with what else.

The key of a token is (seed, stream, draw, sample, token): `stream` keeps training, evaluation and search apart, `draw`
is the 64-bit count of prompts drawn from the shuffled stream. Threefry with `fold_in`, because rbg depends on batching.
"""

import jax
import jax.numpy as jnp
import numpy as np

TRAINING, EVALUATION, SEARCH = range(3)  # streams


def split_draws(draws: np.ndarray) -> np.ndarray:
    """64-bit counts `[B]` as `[B, 2]` uint32, high word first: jax has no 64-bit integers by default."""
    draws = np.asarray(draws, np.uint64)
    return np.stack([draws >> np.uint64(32), draws & np.uint64(0xFFFFFFFF)], axis=-1).astype(np.uint32)


def row_keys(seed: jax.Array, stream: jax.Array, draws: jax.Array, samples: int) -> jax.Array:
    """Keys of all samples of a batch.

    Args:
      seed: scalar, of the run.
      stream: scalar, one of this module's constants.
      draws: `[B, 2]` from `split_draws`.
      samples: G.

    Returns:
      `[B, G]` typed keys.
    """
    base = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), stream)

    def one(draw: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base, draw[0]), draw[1]), sample)

    return jax.vmap(lambda draw: jax.vmap(lambda sample: one(draw, sample))(jnp.arange(samples)))(draws)


def uniforms(keys: jax.Array, token: jax.Array) -> jax.Array:
    """One number in [0, 1) a key for the token with index `token`; shape of `keys`."""
    flat = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, token)))(keys.reshape(-1))
    return flat.reshape(keys.shape)
