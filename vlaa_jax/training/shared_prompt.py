"""The training row of a group: the prompt once, then its G completions, `P + G * C` tokens.

For 1,280 prompt tokens, G = 8 and C = 512 that is 5,376 tokens in place of 14,336. Loss and gradient are those of G
separate rows.
"""

import jax
import jax.numpy as jnp

from vlaa_jax.models.attention import SharedPrompt
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.batches import Rows


def completion_states(
    model: Qwen2_5_VL,
    prompts: Rows,
    features: jax.Array,
    completions: jax.Array,
    lengths: jax.Array,
    *,
    dtype: jnp.dtype,
    remat: str = "layer",
) -> jax.Array:
    """The state that predicts each completion token.

    That of a completion's first token is the prompt's last real token, shared by all G; that of a later one is the
    completion token before it. Positions of every completion go on from the prompt's largest.

    Args:
      model: the policy.
      prompts: `[B, P]`, right-padded.
      features: `[B, slots, D]` vision features.
      completions: `[B, G, C]` tokens.
      lengths: `[B, G]`.
      dtype: compute dtype.
      remat: what a layer saves.

    Returns:
      `[B, G, C, D]`.
    """
    batch, group, length = completions.shape
    padded = prompts.tokens.shape[1]
    valid = prompts.segments > 0
    start = jnp.max(jnp.where(valid, prompts.positions, 0), axis=(0, 2)) + 1
    after = jnp.broadcast_to((start[:, None] + jnp.arange(length))[:, None], completions.shape).reshape(batch, -1)
    tokens = jnp.concatenate([prompts.tokens, completions.reshape(batch, -1)], axis=1)
    positions = jnp.concatenate([prompts.positions, jnp.broadcast_to(after, (3, *after.shape))], axis=2)
    feature_index = jnp.pad(prompts.feature_index, ((0, 0), (0, group * length)), constant_values=-1)
    real = (jnp.arange(length) < lengths[..., None]).reshape(batch, -1)
    mask = SharedPrompt(jnp.concatenate([valid, real], axis=1), padded, length)
    states = model(tokens, positions, mask, features, feature_index, dtype=dtype, remat=remat)
    last = (jnp.sum(valid, axis=1) - 1)[:, None, None]
    first = jnp.take_along_axis(states[:, :padded], last, axis=1)
    first = jnp.broadcast_to(first[:, None], (batch, group, 1, states.shape[-1]))
    later = states[:, padded:].reshape(batch, group, length, -1)[:, :, :-1]
    return jnp.concatenate([first, later], axis=2)
