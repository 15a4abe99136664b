"""Supervised fine-tuning on traces and answers; a step is one update."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.accumulation import Metrics, WeightedSum, summarise
from vlaa_jax.objectives.log_probabilities import token_log_probabilities
from vlaa_jax.objectives.sft import sft_loss, sft_loss_denominator, sft_weights
from vlaa_jax.processing.batches import Rows, Targets
from vlaa_jax.processing.index import usable
from vlaa_jax.training import settings
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.sft_data import PackedShape, SFTData
from vlaa_jax.training.state import create_state
from vlaa_jax.training.task import StepReport
from vlaa_jax.training.updates import Updater

_SPIKE = 5.0  # a loss of this many running medians is reported with its ids
_WINDOW = 50  # steps of that median


class SFTTask:
    """VLAA-Thinking, section 3.1: cross-entropy of trace and answer; system and user are not learnt."""

    def __init__(self, config: ConfigDict):
        self.config = config
        model, self.encoder = settings.load_policy(config)
        self.sizes = model.config
        section = config.updates
        shape = PackedShape(section.rows, section.row_tokens, section.row_windows, section.row_targets)
        source, index = settings.open_records(config, "train", self.encoder)
        fits = (index.prompt + index.completion <= shape.length) & (index.completion <= shape.targets)
        index = usable(index, fits & (index.windows <= shape.windows), "longer than a packed row")
        self._data = SFTData(source, index, self.encoder, shape, examples=section.examples, seed=config.seed)
        self.steps = config.steps or config.epochs * self._data.updates_per_epoch
        self.numbers: dict[str, float] = {"recent_losses": []}
        transform, self._schedule = settings.optimizer(config, self.steps)
        self.state = create_state(model, transform, freeze_vision=config.model.freeze_vision)
        self._updater = Updater(self._loss, transform)
        self.programs = 1

    @property
    def model(self) -> Qwen2_5_VL:
        return self.state.model

    def begin(self) -> None:
        self._updates = self._data.updates(int(self.numbers.get("step", 0)))

    def step(self, number: int, clock: Clock) -> StepReport:
        with clock.phase("data"):
            update = next(self._updates)
        section = self.config.updates
        with clock.phase("update"):
            clock.program(f"update of {section.rows} rows of {section.row_tokens} tokens")
            total = None
            denominator = jnp.float32(0)
            for batch in update.micro_batches:
                denominator += sft_loss_denominator(self._weights(batch[1]))
                total = (
                    self._updater.first(self.state, batch)
                    if total is None
                    else self._updater.add(self.state, total, batch)
                )
            rate = float(self._schedule(int(self.state.updates)))
            self.state, outcome, sums = self._updater.apply(self.state, total, jnp.maximum(denominator, 1.0))
            finite, loss = bool(outcome.finite), float(outcome.loss)
        metrics = {f"update/{name}": value for name, value in summarise(sums).items()} if finite else {}
        metrics |= {"updates": int(self.state.updates), "non_finite_updates": int(not finite), "learning_rate": rate}
        metrics["epoch"] = number / self._data.updates_per_epoch
        samples = []
        if finite:
            metrics |= {"loss": loss, "gradient_norm": float(outcome.gradient_norm)}
            recent = self.numbers["recent_losses"]
            if len(recent) == _WINDOW and loss > _SPIKE * float(np.median(recent)):
                metrics["loss_spike"] = 1
                samples = [{"loss_spike": loss, "ids": update.ids}]
            self.numbers["recent_losses"] = [*recent, loss][-_WINDOW:]
        self.numbers["step"] = number
        tokens = sum(int((rows.segments > 0).sum()) for rows, _ in update.micro_batches)
        return StepReport(metrics, samples, {"update": tokens}, None if finite else {"ids": update.ids})

    def _weights(self, targets: Targets) -> jax.Array:
        return sft_weights(targets.segments > 0, targets.segments, normalisation=self.config.objective.normalisation)

    def _loss(self, model: Qwen2_5_VL, batch: tuple[Rows, Targets]) -> tuple[jax.Array, Metrics]:
        rows, targets = batch
        section = self.config
        dtype = settings.compute_dtype(section)
        features = model.vision(rows.vision, dtype, section.model.remat)
        states = model(
            rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index, dtype, section.model.remat
        )
        # The head runs on the states that have a target, a quarter of a packed row or less.
        states = jnp.take_along_axis(states, targets.states[..., None], axis=1)
        log_probability, _ = token_log_probabilities(
            states, model.language.head[...], targets.tokens, chunk=section.objective.chunk
        )
        loss, metrics = sft_loss(log_probability, self._weights(targets))
        real = jnp.sum(rows.segments > 0).astype(jnp.float32)
        metrics["real_token_share"] = WeightedSum(real, jnp.float32(rows.segments.size))
        return loss, metrics
