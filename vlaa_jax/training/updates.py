"""One optimizer update from any number of micro-batches, the same for every objective."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.accumulation import Metrics, merge_metrics
from vlaa_jax.training.state import TrainState, combine

# (model, batch) -> (sum of the loss, metrics as sums)
LossFunction = Callable[[Qwen2_5_VL, Any], tuple[jax.Array, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accumulator:
    """Gradient of the loss sum so far, that sum, and metrics."""

    gradient: Qwen2_5_VL
    loss: jax.Array
    metrics: Metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an update did.

    Attributes:
      loss: mean loss.
      gradient_norm: before clipping.
      finite: False when loss or gradient was not finite; then nothing was changed.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    finite: jax.Array


class Updater:
    """The jitted programs of an objective: `first` and `add`, each once a micro-batch, then `apply`."""

    def __init__(self, loss: LossFunction, optimizer: optax.GradientTransformation):
        self._loss = loss
        self._optimizer = optimizer
        self._zeros: Callable[[], Accumulator] | None = None
        self.add = jax.jit(self._add, donate_argnums=1)
        self.apply = jax.jit(self._apply, donate_argnums=0)

    def first(self, state: TrainState, batch: Any) -> Accumulator:
        """Starts an accumulation with a first micro-batch.

        It adds to zeros, so that every shape of a batch has one large program, not two.
        """
        if self._zeros is None:
            shapes = jax.eval_shape(self._gradient, state, batch)
            self._zeros = jax.jit(lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
        return self.add(state, self._zeros(), batch)

    def _gradient(self, state: TrainState, batch: Any) -> Accumulator:
        @functools.partial(jax.value_and_grad, has_aux=True)
        def gradient(trainable: Qwen2_5_VL) -> tuple[jax.Array, Metrics]:
            return self._loss(combine(trainable, state.frozen), batch)

        (loss, metrics), gradients = gradient(state.trainable)
        return Accumulator(gradients, loss, metrics)

    def _add(self, state: TrainState, so_far: Accumulator, batch: Any) -> Accumulator:
        """Adds a micro-batch."""
        new = self._gradient(state, batch)
        return Accumulator(
            jax.tree.map(jnp.add, so_far.gradient, new.gradient),
            so_far.loss + new.loss,
            merge_metrics(so_far.metrics, new.metrics),
        )

    def _apply(
        self, state: TrainState, total: Accumulator, denominator: jax.Array
    ) -> tuple[TrainState, Outcome, Metrics]:
        """Divides by the update's denominator and steps; a non-finite update changes nothing."""
        gradient = jax.tree.map(lambda g: g / denominator, total.gradient)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm) & jnp.isfinite(total.loss)
        change, optimizer = self._optimizer.update(gradient, state.optimizer, state.trainable)
        stepped = (optax.apply_updates(state.trainable, change), optimizer, state.updates + 1)
        kept = (state.trainable, state.optimizer, state.updates)
        trainable, optimizer, updates = jax.tree.map(lambda a, b: jnp.where(finite, a, b), stepped, kept)
        outcome = Outcome(total.loss / denominator, norm, finite)
        return TrainState(trainable, state.frozen, optimizer, updates), outcome, total.metrics
