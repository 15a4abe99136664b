"""Advantages of a group: how much better than its siblings each completion did."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vlaa_jax.errors import InputError

Baseline = Literal["group", "batch"]
Scale = Literal["group", "batch", "none"]


def advantages(
    rewards: jax.Array, *, baseline: Baseline = "group", scale: Scale = "group", epsilon: float = 1e-9
) -> jax.Array:
    """`A = (r - baseline) / (deviation + epsilon)`.

    | baseline | scale | known as                                                                       |
    | group    | group | GRPO (DeepSeekMath, arXiv 2402.03300, 4.1.2), OpenRLHF `group_norm`: the default |
    | group    | none  | Dr. GRPO (arXiv 2503.20783): no bias towards groups that nearly always agree |
    | group    | batch | TRL `scale_rewards="batch"` (arXiv 2508.08221)                                 |
    | batch    | batch | REINFORCE++ (arXiv 2501.03262)                                                 |
    | batch    | none  | REINFORCE with the batch mean as baseline                                      |

    The deviation is the unbiased one (divided by n - 1). `epsilon` is 1e-9 as in OpenRLHF, on which the paper's
    training was built; TRL adds 1e-4. VLAA-Thinking (section 4) does not write the normalisation out.

    Equal rewards give exactly 0, whatever `epsilon`. A set of one has no deviation and no baseline beside itself: with
    G = 1 and baseline or scale `group`, or B * G = 1, the advantage is 0.

    Args:
      rewards: `[B, G]`, finite.
      baseline: the mean that is taken off.
      scale: the set whose deviation divides.
      epsilon: added to the deviation, in units of reward.

    Returns:
      `[B, G]`, float32, no gradient.

    Raises:
      InputError: an unknown name, rewards not `[B, G]`, or baseline `batch` with scale `group` (a group that agrees
        would be divided by epsilon alone).
    """
    if baseline not in get_args(Baseline):
        raise InputError(f"baseline is {baseline!r}; one of {', '.join(get_args(Baseline))} was expected.")
    if scale not in get_args(Scale):
        raise InputError(f"scale is {scale!r}; one of {', '.join(get_args(Scale))} was expected.")
    if baseline == "batch" and scale == "group":
        raise InputError("baseline 'batch' does not go with scale 'group'; scale 'batch' or 'none' was expected.")
    if rewards.ndim != 2:
        raise InputError(f"rewards have shape {rewards.shape}; [B, G] was expected.")
    rewards = jax.lax.stop_gradient(rewards.astype(jnp.float32))
    centred = _centred(rewards, baseline)
    if scale == "none":
        return centred
    deviation = _deviation(rewards, scale)
    return centred / (deviation + epsilon)


def _centred(rewards: jax.Array, over: str) -> jax.Array:
    """`r - mean(r)` over the group or the batch, exactly 0 where all are equal.

    The mean of equal float32 numbers may be off by one rounding; divided by a deviation of the same size plus 1e-9 this
    would become an advantage near 1. Taken from a first member, equal rewards are zeros before any mean is formed.
    """
    axis = 1 if over == "group" else None
    shifted = rewards - (rewards[:, :1] if over == "group" else rewards[0, 0])
    return shifted - jnp.mean(shifted, axis=axis, keepdims=True)


def _deviation(rewards: jax.Array, over: str) -> jax.Array:
    """Unbiased standard deviation, `[B, 1]` of the groups or `[1, 1]` of the batch; 0 for a set of one."""
    axis = 1 if over == "group" else None
    size = rewards.shape[1] if over == "group" else rewards.size
    squares = jnp.sum(_centred(rewards, over) ** 2, axis=axis, keepdims=True)
    return jnp.sqrt(squares / max(size - 1, 1))
