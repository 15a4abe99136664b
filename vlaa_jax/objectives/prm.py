"""Losses of a reward model on the logits of steps that are labelled with values in [0, 1].

ViLPRM's loss is not stated (ViLBench, section 6.3 of our notes on the paper), so there are three. A weight is the
number of process records that label a step, 0 where none does: the loss is that of the records one by one.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.accumulation import Metrics, WeightedSum

StepLoss = Literal["mse", "cross_entropy", "pairwise"]

_ROUNDING = 1e-6  # values are float32: 0.65 and 0.4 are a quarter apart


def step_loss(
    logits: jax.Array, values: jax.Array, weights: jax.Array, *, loss: StepLoss, pair_gap: float
) -> tuple[jax.Array, Metrics]:
    """A sum, to be divided by the update's total of `step_loss_denominator`.

    `mse`: `(sigmoid(logit) - value)^2`. `cross_entropy`: with the value as a soft label. `pairwise`: of two steps of a
    question the better one shall have the higher logit, `-log sigmoid(difference)` (Bradley & Terry); as in InstructGPT
    (arXiv 2203.02155, equation 1) it is the mean over the pairs of a question, so that one with many steps counts no
    more than others. Only differences are learnt then: a sigmoid of such logits is no probability.

    Args:
      logits: `[B, G, S]`, a question a row; where the weight is 0 they do not matter, NaN included.
      values: `[B, G, S]`.
      weights: `[B, G, S]`.
      loss: which one.
      pair_gap: two steps are a pair where their values differ by at least this.

    Returns:
      `(loss_sum, metrics)`: a float32 scalar; `squared_error` of the sigmoids, their mean `score`, and
      `pairs_in_order`, the share of pairs whose better step has the higher logit.

    Raises:
      InputError: an unknown loss, or shapes that differ.
    """
    if loss not in get_args(StepLoss):
        raise InputError(f"config.objective.loss is {loss!r}: expected one of {', '.join(get_args(StepLoss))}")
    if not logits.shape == values.shape == weights.shape:
        raise InputError(
            f"logits {logits.shape}, values {values.shape} and weights {weights.shape} differ; [B, G, S] was expected"
        )
    weights = weights.astype(jnp.float32)
    logits = jnp.where(weights > 0, logits.astype(jnp.float32), 0.0)
    scores = jax.nn.sigmoid(logits)
    squared = weights * (scores - values) ** 2
    pairs = _pairs(values, weights, pair_gap)
    differences = _differences(logits)
    count = jnp.sum(weights)
    metrics: Metrics = {
        "squared_error": WeightedSum(jnp.sum(squared), count),
        "score": WeightedSum(jnp.sum(weights * scores), count),
        "pairs_in_order": WeightedSum(jnp.sum(pairs * (differences > 0)), jnp.sum(pairs)),
    }
    if loss == "mse":
        total = jnp.sum(squared)
    elif loss == "cross_entropy":
        total = jnp.sum(weights * (jax.nn.softplus(logits) - values * logits))
    else:
        of_row = jnp.sum(pairs, axis=(1, 2))
        total = jnp.sum(jnp.sum(pairs * jax.nn.softplus(-differences), axis=(1, 2)) / jnp.maximum(of_row, 1.0))
    return total, jax.lax.stop_gradient(metrics)


def step_loss_denominator(values: jax.Array, weights: jax.Array, *, loss: StepLoss, pair_gap: float) -> jax.Array:
    """Labels, or (`pairwise`) rows that hold a pair; a float32 scalar, to be added over micro-batches.

    Args:
      values, weights: `[B, G, S]`.
      loss, pair_gap: as in `step_loss`.
    """
    if loss == "pairwise":
        return jnp.sum(jnp.any(_pairs(values, weights, pair_gap) > 0, axis=(1, 2)), dtype=jnp.float32)
    return jnp.sum(weights, dtype=jnp.float32)


def _pairs(values: jax.Array, weights: jax.Array, gap: float) -> jax.Array:
    """`[B, N, N]`, N = G S: how often step i of a row is the better one of a pair with its step j."""
    weights = weights.reshape(len(weights), -1)
    return weights[:, :, None] * weights[:, None, :] * (_differences(values) >= gap - _ROUNDING)


def _differences(x: jax.Array) -> jax.Array:
    """`[B, N, N]`: of each step less each other."""
    x = x.reshape(len(x), -1)
    return x[:, :, None] - x[:, None, :]
