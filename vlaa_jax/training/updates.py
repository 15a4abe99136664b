"""One optimizer update from any number of micro-batches, the same for every objective."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.accumulation import Metrics, merge_metrics, summarise
from vlaa_jax.sharding import TRAINING, P, keep_parameters, over_rows, row_specs, specs, sum_gradients, sum_rows
from vlaa_jax.training.optimizer import step, step_by_layer
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
    """The updates of an objective: `run` is a whole one, of the jitted programs `add` and `apply`."""

    def __init__(
        self,
        loss: LossFunction,
        optimizer: optax.GradientTransformation,
        *,
        clip_norm: float = math.inf,
        moments_on_host: bool = False,
    ):
        """Compiles nothing yet.

        Args:
          loss: of a micro-batch.
          optimizer: treats every weight by itself.
          clip_norm: largest norm of the whole gradient.
          moments_on_host: the state's moments lie in host memory (`create_state`).
        """
        self._loss = loss
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._moments_on_host = moments_on_host
        self._step = step_by_layer if moments_on_host else step
        self._zeros: Callable[[], Accumulator] | None = None
        self.add = jax.jit(self._add, donate_argnums=1)
        self.apply = jax.jit(self._apply, donate_argnums=0)

    def run(
        self, state: TrainState, batches: Iterable[Any], denominator: Callable[[Any], jax.Array]
    ) -> tuple[TrainState, dict[str, float]]:
        """One update.

        Args:
          state: before it; donated.
          batches: its micro-batches, at least one.
          denominator: of a micro-batch; the update's is their sum, at least 1.

        Returns:
          The state, and `loss`, `gradient_norm` and `update/...`; nothing where a number was not finite: then the
          weights are as they were.
        """
        total, count = None, jnp.float32(0)
        for batch in batches:
            count += denominator(batch)
            total = self.first(state, batch) if total is None else self.add(state, total, batch)
        state, outcome, sums = self.apply(state, total, jnp.maximum(count, 1.0))
        if not bool(outcome.finite):
            return state, {}
        metrics = {f"update/{name}": value for name, value in summarise(sums).items()}
        return state, metrics | {"loss": float(outcome.loss), "gradient_norm": float(outcome.gradient_norm)}

    def first(self, state: TrainState, batch: Any) -> Accumulator:
        """Starts an accumulation with a first micro-batch.

        It adds to zeros, so that every shape of a batch has one large program, not two.
        """
        if self._zeros is None:
            self._zeros = self.zeros(state, batch)
        return self.add(state, self._zeros(), batch)

    def zeros(self, state: TrainState, batch: Any) -> Callable[[], Accumulator]:
        """What makes an empty accumulation; of the arguments only the shapes count."""
        shapes = jax.eval_shape(self._gradient, state, batch)
        return jax.jit(lambda: _split(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)))

    def _gradient(self, state: TrainState, batch: Any) -> Accumulator:
        def of_own_rows(trainable: Qwen2_5_VL, frozen: Qwen2_5_VL, batch: Any) -> Accumulator:
            run = jax.value_and_grad(lambda weights: self._loss(combine(weights, frozen), batch), has_aux=True)
            (loss, metrics), gradients = run(trainable)
            metrics = {name: metric.of_all_rows() for name, metric in metrics.items()}
            return Accumulator(sum_gradients(gradients), sum_rows(loss), metrics)

        weights = specs(state.trainable, TRAINING), specs(state.frozen, TRAINING)
        outputs = Accumulator(weights[0], P(), P())
        run = over_rows(of_own_rows, (*weights, row_specs(batch)), outputs, split_weights=True)
        return run(state.trainable, state.frozen, batch)

    def _add(self, state: TrainState, so_far: Accumulator, batch: Any) -> Accumulator:
        """Adds a micro-batch."""
        new = self._gradient(state, batch)
        return Accumulator(
            jax.tree.map(jnp.add, so_far.gradient, new.gradient),
            so_far.loss + new.loss,
            merge_metrics(so_far.metrics, new.metrics),
        )

    @jax.named_scope("optimizer")
    def _apply(
        self, state: TrainState, total: Accumulator, denominator: jax.Array
    ) -> tuple[TrainState, Outcome, Metrics]:
        """Divides by the update's denominator and steps; a non-finite update changes nothing."""
        norm = optax.tree.norm(jax.tree.map(lambda g: g / denominator, total.gradient))
        finite = jnp.isfinite(norm) & jnp.isfinite(total.loss)

        def prepare(gradient: jax.Array) -> jax.Array:
            mean = gradient / denominator
            return jnp.where(norm < self._clip_norm, mean, mean / norm * self._clip_norm)

        kept = state.optimizer, state.trainable
        weights, moments = self._step(self._optimizer, finite, prepare, total.gradient, *kept)
        trainable = keep_parameters(weights, TRAINING)
        optimizer = moments if self._moments_on_host else keep_parameters(moments, TRAINING)
        updates = state.updates + finite
        outcome = Outcome(total.loss / denominator, norm, finite)
        return TrainState(trainable, state.frozen, optimizer, updates), outcome, total.metrics


def _split(total: Accumulator) -> Accumulator:
    """The gradient lies as its weights do."""
    return dataclasses.replace(total, gradient=keep_parameters(total.gradient, TRAINING))
