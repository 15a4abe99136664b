"""What the training loop needs from an objective."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from vlaa_jax.ahead import Program
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.run_report import Findings
from vlaa_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a step leaves for the run folder.

    Attributes:
      metrics: numbers for `metrics.jsonl`, without timings.
      samples: rows for `samples.jsonl`.
      tokens: tokens that each phase handled, for tokens a second.
      bad_batch: set when an update was not finite: arrays and ids for debugging.
      pictures: first image of some records of `samples`, by record id: those are shown in TensorBoard.
    """

    metrics: dict[str, float]
    samples: Sequence[Mapping[str, Any]]
    tokens: dict[str, int]
    bad_batch: Mapping[str, Any] | None = None
    pictures: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


class HeldOut(Protocol):
    """A task's evaluation on what it does not learn from. With nothing held out it is never due, and all is empty."""

    def programs(self) -> Sequence[Program]:
        """All that it runs."""

    def due(self, number: int) -> bool:
        """Whether step `number` ends with `subset`."""

    def subset(self, check_stop: Callable[[], None]) -> dict[str, float]:
        """Metrics of a few records, for the curve and the best checkpoint.

        Args:
          check_stop: called now and then; it may raise.
        """

    def full(self, name: str, step: int, check_stop: Callable[[], None]) -> dict[str, float]:
        """Metrics of all records, kept with details in the run's folder `evaluation`.

        Args:
          name: `before` or `after`.
          step: of the state.
          check_stop: as in `subset`.
        """

    def done(self, name: str, step: int) -> bool:
        """Whether `full` has been here: a run to which steps were added has files of its earlier end."""

    def quality(self, metrics: Mapping[str, float]) -> float:
        """What the best checkpoint has most of, of metrics with those of `subset`."""

    def tables(self) -> list[Table]:
        """Before and after, of a finished run; the first one is shown on the terminal."""

    def findings(self) -> Findings:
        """For the report of a finished run."""


class Task(Protocol):
    """SFT, GRPO, reward models: everything that differs between them.

    Attributes:
      config: of the run, with every name resolved to a path.
      state: the policy in training; replaced by every step.
      encoder: the policy's.
      steps: length of the run.
      numbers: JSON values that must survive a resume exactly; read and written by the loop.
      waiting: arrays of a batch that must survive it too: what a later step learns from.
    """

    config: ConfigDict
    state: TrainState
    encoder: Encoder
    steps: int
    numbers: dict[str, Any]
    waiting: dict[str, jax.Array]

    def begin(self) -> None:
        """Called once before the first step of a start, after `state`, `numbers` and `waiting` were restored."""

    def programs(self) -> Sequence[Program]:
        """The large programs of all steps, after `begin`; the first that is needed comes first."""

    def step(self, number: int, clock: Clock, check_stop: Callable[[], None]) -> StepReport:
        """Does step `number` (counted from 1), with all its updates.

        Args:
          number: of the step.
          clock: takes its times.
          check_stop: called now and then before the first update; what it raises leaves `state`, `numbers` and
            `waiting` as they were before the step.
        """

    def held_out(self, directory: pathlib.Path) -> HeldOut:
        """The evaluation of a run in this folder."""

    @property
    def model(self) -> Qwen2_5_VL:
        """The present policy."""
