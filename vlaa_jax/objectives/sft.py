"""Supervised fine-tuning: cross-entropy of the answer, the same whether examples are packed into rows or not."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.accumulation import Metrics, WeightedSum

Normalisation = Literal["tokens", "per_example"]


def sft_weights(mask: jax.Array, segments: jax.Array, *, normalisation: Normalisation = "tokens") -> jax.Array:
    """The weight of each token in the loss.

    `tokens`: 1 for an answer token, so the loss is the mean over the update's answer tokens and a long answer counts
    for more. `per_example`: 1 / (answer tokens of the same example), so every example counts the same. In both the loss
    is `sum(weight * -log p) / sum(weight)`, where sums run over the update. Weights belong to an example, not to a row:
    packing changes nothing. An example without answer tokens counts as nothing in either.

    Args:
      mask: `[..., T]`, true where the target is an answer token.
      segments: `[..., T]` integers, the example of each target: 1, 2, ... in a row, 0 on padding.
      normalisation: `tokens` or `per_example`.

    Returns:
      `[..., T]`, float32.

    Raises:
      InputError: unknown normalisation, or shapes that differ.
    """
    if normalisation not in get_args(Normalisation):
        raise InputError(f"normalisation is {normalisation!r}; tokens or per_example was expected.")
    if mask.shape != segments.shape:
        raise InputError(f"mask {mask.shape} and segments {segments.shape} differ; the same [..., T] was expected.")
    counted = (mask.astype(bool) & (segments > 0)).astype(jnp.float32)
    if normalisation == "tokens":
        return counted
    tokens = mask.shape[-1]

    def row_weights(counted: jax.Array, segments: jax.Array) -> jax.Array:
        lengths = jax.ops.segment_sum(counted, segments, num_segments=tokens + 1)  # a row holds at most T examples
        return counted / jnp.maximum(lengths[segments], 1.0)

    rows = jax.vmap(row_weights)(counted.reshape(-1, tokens), segments.reshape(-1, tokens))
    return rows.reshape(mask.shape)


def sft_loss(log_probabilities: jax.Array, weights: jax.Array) -> tuple[jax.Array, Metrics]:
    """`-sum(weight * log p)`: a sum, to be divided by the update's total of `sft_loss_denominator`.

    Args:
      log_probabilities: `[..., T]`, of the targets; what stands where the weight is 0 does not matter, NaN included.
      weights: `[..., T]` from `sft_weights`.

    Returns:
      `(loss_sum, metrics)`: a float32 scalar, and `negative_log_likelihood`, in nats a token over the answer tokens,
      which is comparable between the two normalisations.

    Raises:
      InputError: the shapes differ.
    """
    if log_probabilities.shape != weights.shape:
        raise InputError(
            f"log_probabilities {log_probabilities.shape} and weights {weights.shape} differ; [..., T] was expected."
        )
    answer = weights > 0
    surprise = jnp.where(answer, -log_probabilities.astype(jnp.float32), 0.0)
    tokens = jnp.sum(answer, dtype=jnp.float32)
    metrics: Metrics = {"negative_log_likelihood": WeightedSum(jnp.sum(surprise), tokens)}
    return jnp.sum(weights * surprise), jax.lax.stop_gradient(metrics)


def sft_loss_denominator(weights: jax.Array) -> jax.Array:
    """Answer tokens (`tokens`) or examples with an answer (`per_example`), a float32 scalar; add it over micro-batches.

    Args:
      weights: `[..., T]` from `sft_weights`.
    """
    return jnp.sum(weights, dtype=jnp.float32)
