"""Supervised fine-tuning on traces and answers; a step is one update."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.ahead import Program, resized, rows_of
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.sft import sft_loss_denominator
from vlaa_jax.processing.batches import Targets, pad_prompts
from vlaa_jax.processing.index import usable
from vlaa_jax.sharding import own_rows, place_rows, row_shards
from vlaa_jax.training import settings
from vlaa_jax.training.batch_sizes import check_rows
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.held_out import HeldOutAnswers
from vlaa_jax.training.sft_data import PackedShape, SFTData
from vlaa_jax.training.task import StepReport
from vlaa_jax.training.update_programs import step_program, update_program

_SPIKE = 5.0  # a loss of this many running medians is reported with its ids
_WINDOW = 50  # steps of that median


class SFTTask:
    """VLAA-Thinking, section 3.1: cross-entropy of trace and answer; system and user are not learnt."""

    def __init__(self, config: ConfigDict):
        self.config = config
        check_rows(config, row_shards())
        self._loss = settings.packed_loss(config)
        model, self.encoder = settings.load_policy(config)
        self.sizes = model.config
        section = config.updates
        shape = PackedShape(section.rows, section.row_tokens, section.row_windows, section.row_targets)
        source, index = settings.open_records(config, "train", self.encoder)
        fits = (index.prompt + index.completion <= shape.length) & (index.completion <= shape.targets)
        index = usable(index, fits & (index.windows <= shape.windows), "longer than a packed row")
        own = own_rows(shape.rows)
        self._data = SFTData(
            source, index, self.encoder, shape, examples=section.examples, seed=config.seed, own_rows=own
        )
        self.steps = config.steps or config.epochs * self._data.updates_per_epoch
        self.numbers: dict[str, float] = {"recent_losses": []}
        self.waiting: dict[str, jax.Array] = {}
        self.state, self._updater, self._schedule = settings.start_training(config, model, self._loss, self.steps)

    def held_out(self, directory: pathlib.Path) -> HeldOutAnswers:
        return HeldOutAnswers(self, directory)

    @property
    def model(self) -> Qwen2_5_VL:
        return self.state.model

    def begin(self) -> None:
        self._updates = self._data.updates(int(self.numbers.get("step", 0)))

    def programs(self) -> list[Program]:
        section = self.config.updates
        one = pad_prompts([self.encoder.no_prompt], section.row_tokens, section.row_windows)
        target = jax.ShapeDtypeStruct((section.rows, section.row_targets), jnp.int32)
        batch = (resized(one, section.rows), rows_of(Targets(target, target, target)))
        sizes = f"of {section.rows} rows of {section.row_tokens} tokens"
        return [update_program(self._updater, self.state, batch, sizes), step_program(self._updater, self.state, batch)]

    def step(self, number: int, clock: Clock, check_stop: Callable[[], None]) -> StepReport:
        with clock.phase("data"):
            update = distributed.together(lambda: next(self._updates))
        with clock.phase("update"):
            rate = float(self._schedule(int(self.state.updates)))
            count = lambda batch: sft_loss_denominator(self._loss.weights(batch[1]))  # noqa: E731
            self.state, metrics = self._updater.run(self.state, map(place_rows, update.micro_batches), count)
        finite, samples = bool(metrics), []
        metrics |= {"updates": int(self.state.updates), "non_finite_updates": int(not finite), "learning_rate": rate}
        metrics["epoch"] = number / self._data.updates_per_epoch
        if finite:
            loss = metrics["loss"]
            recent = self.numbers["recent_losses"]
            if len(recent) == _WINDOW and loss > _SPIKE * float(np.median(recent)):
                metrics["loss_spike"] = 1
                samples = [{"loss_spike": loss, "ids": update.ids}]
            self.numbers["recent_losses"] = [*recent, loss][-_WINDOW:]
        self.numbers["step"] = number
        return StepReport(metrics, samples, {"update": update.tokens}, None if finite else {"ids": update.ids})
