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


def row_keys(seed: jax.Array, stream: jax.Array, draws: jax.Array, samples: jax.Array) -> jax.Array:
    """Keys of some completions.

    Args:
      seed: scalar, of the run.
      stream: scalar, one of this module's constants.
      draws: `[..., 2]` from `split_draws`.
      samples: `[...]` numbers of the completions in their groups; broadcasts with the draws.

    Returns:
      `[...]` typed keys.
    """
    base = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), stream)
    high, low, samples = jnp.broadcast_arrays(draws[..., 0], draws[..., 1], samples)

    def one(high: jax.Array, low: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base, high), low), sample)

    return jax.vmap(one)(high.ravel(), low.ravel(), samples.ravel()).reshape(samples.shape)


def uniforms(keys: jax.Array, tokens: jax.Array | int) -> jax.Array:
    """One number in [0, 1) a key for the token with that index (of its own, or of all); shape of `keys`."""
    tokens = jnp.broadcast_to(tokens, keys.shape).ravel()
    flat = jax.vmap(lambda key, token: jax.random.uniform(jax.random.fold_in(key, token)))(keys.ravel(), tokens)
    return flat.reshape(keys.shape)
