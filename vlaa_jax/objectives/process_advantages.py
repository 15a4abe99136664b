"""Advantages of steps: a token is worth what the steps that it still leads to are worth."""

import jax
import jax.numpy as jnp

from vlaa_jax.errors import InputError


def process_advantages(rewards: jax.Array, ends: jax.Array, *, epsilon: float = 1e-9) -> jax.Array:
    """Process supervision (DeepSeekMath, arXiv 2402.03300, section 4.1.3).

        A_t = sum over the steps that end at t or later of (r - mean) / (deviation + epsilon)

    Mean and deviation are those of all step rewards of the group. The deviation is the unbiased one, as in
    `advantages`; the paper does not say which. A token behind the last step has advantage 0, and so have all tokens of
    a group whose steps agree, exactly, or that has less than two steps.

    Args:
      rewards: `[B, G, C]` reward of the step that ends at a token; what stands elsewhere does not count.
      ends: `[B, G, C]`, true where a step ends.
      epsilon: added to the deviation, in units of reward.

    Returns:
      `[B, G, C]`, float32, no gradient.

    Raises:
      InputError: shapes that differ, or are not `[B, G, C]`.
    """
    if rewards.ndim != 3 or rewards.shape != ends.shape:
        raise InputError(f"step rewards have shape {rewards.shape} and ends {ends.shape}; [B, G, C] was expected.")
    ends = ends.astype(bool)
    rewards = jax.lax.stop_gradient(jnp.where(ends, rewards.astype(jnp.float32), 0.0))
    over = {"axis": (1, 2), "keepdims": True}
    count = jnp.sum(ends, dtype=jnp.float32, **over)
    # From one of them: equal rewards are zeros before any mean is formed (see `advantages`).
    shifted = jnp.where(ends, rewards - jnp.max(jnp.where(ends, rewards, -jnp.inf), **over), 0.0)
    centred = jnp.where(ends, shifted - jnp.sum(shifted, **over) / jnp.maximum(count, 1.0), 0.0)
    deviation = jnp.sqrt(jnp.sum(centred**2, **over) / jnp.maximum(count - 1.0, 1.0))
    normalised = centred / (deviation + epsilon)
    return jnp.flip(jnp.cumsum(jnp.flip(normalised, axis=2), axis=2), axis=2)
