"""Training of a reward model on the values of steps; a step of the run is one update."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.ahead import Program, resized
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.sharding import own_rows, place_rows, row_shards
from vlaa_jax.training import settings
from vlaa_jax.training.batch_sizes import check_rows
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.held_out_steps import HeldOutSteps
from vlaa_jax.training.prm_data import LabelledRows, PRMData
from vlaa_jax.training.prm_index import model_kind, open_questions
from vlaa_jax.training.task import StepReport
from vlaa_jax.training.update_programs import step_program, update_program


class PRMTask:
    """ViLPRM (ViLBench, section 6.3 of our notes on the paper), or an outcome model on the same records."""

    def __init__(self, config: ConfigDict):
        self.config = config
        kind = model_kind(config)
        check_rows(config, row_shards())
        self._loss = settings.labelled_loss(config)
        model, self.encoder = settings.load_reward_model(config)
        self.sizes = model.config
        source, index = open_questions(config, "train", self.encoder)
        self._rows = LabelledRows(source, index, self.encoder, config.updates, kind)
        section = config.updates
        own = own_rows(section.rows)
        self._data = PRMData(self._rows, questions=section.questions, seed=config.seed, own_rows=own)
        self.steps = config.steps or config.epochs * self._data.updates_per_epoch
        self.numbers: dict[str, Any] = {}
        self.waiting: dict[str, jax.Array] = {}
        self.state, self._updater, self._schedule = settings.start_training(config, model, self._loss, self.steps)

    @property
    def model(self) -> RewardModel:
        return self.state.model

    def held_out(self, directory: pathlib.Path) -> HeldOutSteps:
        return HeldOutSteps(self.config, self.encoder, self._loss, lambda: self.model, directory)

    def begin(self) -> None:
        self._updates = self._data.updates(int(self.numbers.get("step", 0)))

    def programs(self) -> list[Program]:
        rows = self.config.updates.rows
        batches = [resized(self._rows.batch(shape, [None]), rows) for shape in self._rows.shapes]
        sizes = [f"of {rows} rows of {shape.length} tokens and {shape.windows} windows" for shape in self._rows.shapes]
        updates = [
            update_program(self._updater, self.state, batch, size) for batch, size in zip(batches, sizes, strict=True)
        ]
        return [*updates, step_program(self._updater, self.state, batches[0])]

    def step(self, number: int, clock: Clock, check_stop: Callable[[], None]) -> StepReport:
        with clock.phase("data"):
            update = distributed.together(lambda: next(self._updates))
        with clock.phase("update"):
            rate = float(self._schedule(int(self.state.updates)))
            batches = map(place_rows, update.micro_batches)
            self.state, metrics = self._updater.run(self.state, batches, lambda batch: self._loss.denominator(batch[1]))
        finite = bool(metrics)
        metrics |= {"updates": int(self.state.updates), "non_finite_updates": int(not finite), "learning_rate": rate}
        metrics["epoch"] = number / self._data.updates_per_epoch
        self.numbers["step"] = number
        return StepReport(metrics, [], {"update": update.tokens}, None if finite else {"ids": update.ids})
