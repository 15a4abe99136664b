"""Held-out evaluation of a reward model in training (`task.HeldOut`): how well it judges labelled steps."""

import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.ahead import Program, resized
from vlaa_jax.evaluation.step_judgement import JudgedSolution, judge_steps
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.named_class import make_named
from vlaa_jax.objectives.accumulation import Metrics, WeightedSum, merge_metrics, summarise
from vlaa_jax.objectives.step_scores import score_steps
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.solutions import SolutionShape
from vlaa_jax.sharding import fetch_rows, own_rows, place_rows
from vlaa_jax.storage import replace_file
from vlaa_jax.training.held_out import prefixed, step_of
from vlaa_jax.training.prm import LabelledLoss
from vlaa_jax.training.prm_data import LabelledRows, Row
from vlaa_jax.training.prm_index import LabelledSolution, model_kind, open_questions
from vlaa_jax.training.run_report import Findings

# What the table shows: metric of `judge_steps`, in words, and a factor.
_TABLE = (
    ("mse", "mean squared error", 1),
    ("brier", "Brier score", 1),
    ("ece", "expected calibration error, 10 bins", 1),
    *(
        (f"{key}/{metric}", f"{step}: {words}", 100)
        for key, step in (("first_wrong", "first wrong step"), ("first_below_half", "first step with value < 0.5"))
        for metric, words in (
            ("f1", "F1"),
            ("accuracy_with", "found, where there is one"),
            ("accuracy_without", "none found, where there is none"),
            ("auroc", "AUROC"),
        )
    ),
)


class HeldOutSteps:
    """Scores of labelled steps: of a few questions inside the loop, of all around it."""

    def __init__(
        self,
        config: ConfigDict,
        encoder: Encoder,
        loss: LabelledLoss,
        model: Callable[[], RewardModel],
        directory: pathlib.Path,
    ):
        """Opens `config.data.evaluation`; where that is empty nothing is held out.

        Args:
          config: of the run.
          encoder: of the model.
          loss: that it learns with.
          model: gives its present weights.
          directory: of the run.
        """
        self._config, self._loss, self._model, self._directory = config, loss, model, directory
        self._rows: LabelledRows | None = None
        if not config.data.evaluation:
            return
        source, index = open_questions(config, "evaluation", encoder)
        kind = model_kind(config)
        self._rows = LabelledRows(source, index, encoder, config.updates, kind)
        self._first_wrong: dict[int, int | None] = {}  # by place of the record
        if config.evaluation.truth and kind == "process":
            truth = make_named(config.evaluation.truth, "config.evaluation.truth")
            solutions = [solution for question in index.questions for solution in question.solutions]
            self._first_wrong = {solution.place: truth(source[solution.place]) for solution in solutions}
        self._all = range(len(self._rows.of_question))
        few = config.evaluation.questions or len(self._all)
        self._few = np.unique(np.linspace(0, len(self._all) - 1, min(few, len(self._all))).astype(int))

    def programs(self) -> list[Program]:
        """All that score."""
        if self._rows is None:
            return []
        return [self._program(shape) for shape in self._rows.shapes]

    def _program(self, shape: SolutionShape) -> Program:
        rows = self._config.updates.rows
        batch = resized(self._rows.batch(shape, [None])[0], rows)
        name = f"scores of {rows} rows of {shape.length} tokens"
        return Program(name, score_steps, (self._model(), batch), {"dtype": self._config.model.dtype})

    def due(self, number: int) -> bool:
        return self._rows is not None and number % self._config.evaluation.every == 0

    def subset(self, check_stop: Callable[[], None]) -> dict[str, float]:
        metrics, _ = self._judge(self._few, "evaluate", check_stop)
        return prefixed("evaluation", metrics)

    def full(self, name: str, step: int, check_stop: Callable[[], None]) -> dict[str, float]:
        """All questions; the scores are kept in `evaluation/<name>-steps.jsonl`."""
        if self._rows is None:
            return {}
        metrics, judged = self._judge(self._all, name, check_stop)
        distributed.on_first(lambda: _write(self._path(name), step, judged))
        return prefixed("evaluation", metrics)

    def done(self, name: str, step: int) -> bool:
        return self._rows is None or step_of(self._path(name)) == step

    def quality(self, metrics: Mapping[str, float]) -> float:
        """The best checkpoint has the smallest loss."""
        return -metrics.get("evaluation/loss", 0.0)  # without pairs there is none

    def tables(self) -> list[Table]:
        return [] if self._rows is None else [judgement_table(self._directory)]

    def findings(self) -> Findings:
        if self._rows is None:
            return Findings()
        before, after = (judge_steps(_read(self._path(name))) for name in ("before", "after"))
        summary = f"The mean squared error of held-out steps went from {before['mse']:.3f} to {after['mse']:.3f}."
        return Findings([summary], self.tables())

    def _path(self, name: str) -> pathlib.Path:
        return steps_path(self._directory, name)

    def _judge(
        self, questions: Iterable[int], description: str, check_stop: Callable[[], None]
    ) -> tuple[dict[str, float], list[tuple[LabelledSolution, JudgedSolution]]]:
        """Metrics, and every solution with its scores; every process scores its own rows, and gets all."""
        batches = self._rows.micro_batches([row for i in questions for row in self._rows.of_question[i]])
        size, model, losses = self._config.updates.rows, self._model(), []
        logits: dict[int, np.ndarray] = {}
        for number, batch in enumerate(tqdm.tqdm(batches, desc=description, leave=False, disable=None)):
            check_stop()
            own, summed = self._score(model, *batch)
            logits |= {number * size + place: row for place, row in own.items()}
            losses.append(summed)
        judged = self._judged([row for _, rows in batches for row in rows], distributed.gather_rows(logits))
        found = summarise(functools.reduce(merge_metrics, losses))
        known = {name: found[name] for name in ("loss", "pairs_in_order") if name in found}
        return judge_steps([solution for _, solution in judged]) | known, judged

    def _score(
        self, model: RewardModel, shape: SolutionShape, rows: Sequence[Row | None]
    ) -> tuple[dict[int, np.ndarray], Metrics]:
        """Logits `[G, S]` of this process's rows by their places in the batch; loss and metrics of all rows."""
        own = own_rows(len(rows))
        solutions, labels = place_rows(distributed.together(lambda: self._rows.batch(shape, [rows[i] for i in own])))
        found = score_steps(model, solutions, dtype=self._config.model.dtype)
        total, metrics = self._loss.of_logits(found, labels)
        metrics |= {"loss": WeightedSum(total, self._loss.denominator(labels))}
        return dict(zip(own.tolist(), fetch_rows(found), strict=True)), jax.tree.map(np.asarray, metrics)

    def _judged(
        self, rows: Sequence[Row | None], logits: Sequence[np.ndarray]
    ) -> list[tuple[LabelledSolution, JudgedSolution]]:
        """The solutions of all rows."""
        out = []
        for row, of_row in zip(rows, logits, strict=True):
            for solution, own in zip(row.solutions if row else (), of_row, strict=False):
                scores = 1 / (1 + np.exp(-own[: len(solution.values)].astype(np.float64)))
                first = self._first_wrong.get(solution.place)
                out.append((solution, JudgedSolution(scores, solution.values, solution.weights > 0, first)))
        return out


def steps_path(directory: pathlib.Path, name: str) -> pathlib.Path:
    """File of a run with the scores `before` or `after`."""
    return directory / "evaluation" / f"{name}-steps.jsonl"


def judgement_table(directory: pathlib.Path) -> Table:
    """Before and after, from the files of a finished run."""
    read = {name: _read(steps_path(directory, name)) for name in ("before", "after")}
    before, after = (judge_steps(solutions) for solutions in read.values())
    rows = [
        [words, *(f"{factor * metrics[key]:.{1 if factor == 100 else 3}f}" for metrics in (before, after))]
        for key, words, factor in _TABLE
        if key in before and key in after
    ]
    steps = sum(int(solution.own.sum()) for solution in read["after"])
    note = (
        f"{steps:,} labelled steps of {len(read['after']):,} held-out solutions; F1, shares and AUROC in points of 100."
    )
    return Table("Held-out step judgement", ["metric", "before", "after"], rows, note)


def _write(path: pathlib.Path, step: int, judged: Sequence[tuple[LabelledSolution, JudgedSolution]]) -> None:
    """One line a solution; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_line(step, *pair)) for pair in sorted(judged, key=lambda pair: pair[0].place)]
    replace_file(path, ("\n".join(lines) + "\n").encode())


def _line(step: int, solution: LabelledSolution, judged: JudgedSolution) -> dict[str, Any]:
    return {
        "step": step,
        "id": solution.id,
        "scores": judged.scores.tolist(),
        "values": [None if np.isnan(value) else float(value) for value in judged.values],
        "weights": solution.weights.tolist(),
        "first_wrong": judged.first_wrong,
    }


def _read(path: pathlib.Path) -> list[JudgedSolution]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        JudgedSolution(
            np.asarray(row["scores"]),
            np.asarray([np.nan if value is None else value for value in row["values"]]),
            np.asarray(row["weights"]) > 0,
            row["first_wrong"],
        )
        for row in rows
    ]
