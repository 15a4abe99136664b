"""A reward model's loss on the device: rows of a question with its labelled solutions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.objectives.accumulation import Metrics, WeightedSum
from vlaa_jax.objectives.prm import StepLoss, step_loss, step_loss_denominator
from vlaa_jax.objectives.step_scores import step_logits
from vlaa_jax.processing.solutions import Solutions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
    """What a batch of `Solutions` learns.

    Attributes:
      values: `[B, G, S]` in [0, 1].
      weights: `[B, G, S]` process records that a step is labelled by; 0 where none is, or another solution of the
        question shares the step and has the label.
    """

    values: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class LabelledLoss:
    """Loss sum and metrics of a micro-batch.

    Attributes:
      dtype: compute dtype.
      remat: what a layer saves.
      loss: see `step_loss`.
      pair_gap: of two values that make a pair.
    """

    dtype: str
    remat: str
    loss: StepLoss
    pair_gap: float

    def __call__(self, model: RewardModel, batch: tuple[Solutions, Labels]) -> tuple[jax.Array, Metrics]:
        solutions, labels = batch
        logits = step_logits(model, solutions, dtype=jnp.dtype(self.dtype), remat=self.remat)
        total, metrics = self.of_logits(logits, labels)
        real = jnp.sum(solutions.prompts.segments > 0) + jnp.sum(solutions.lengths)
        room = solutions.length * len(solutions.tokens)
        metrics["real_token_share"] = WeightedSum(real.astype(jnp.float32), jnp.float32(room))
        return total, metrics

    @functools.partial(jax.jit, static_argnums=0)
    def of_logits(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, Metrics]:
        """`step_loss` of logits `[B, G, S]`."""
        return step_loss(logits, labels.values, labels.weights, loss=self.loss, pair_gap=self.pair_gap)

    @functools.partial(jax.jit, static_argnums=0)
    def denominator(self, labels: Labels) -> jax.Array:
        """Of the loss; add it over micro-batches."""
        return step_loss_denominator(labels.values, labels.weights, loss=self.loss, pair_gap=self.pair_gap)
