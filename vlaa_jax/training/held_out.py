"""Held-out evaluation of a policy in training (`task.HeldOut`)."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from vlaa_jax import distributed
from vlaa_jax.ahead import Program
from vlaa_jax.evaluation.evaluate import Evaluator, Result, summarise
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.programs import rollout_programs
from vlaa_jax.rollout.random_bits import EVALUATION
from vlaa_jax.rollout.sampler import sampling_weights
from vlaa_jax.storage import replace_file
from vlaa_jax.training import settings
from vlaa_jax.training.run_folder import trace_fields
from vlaa_jax.training.run_report import Findings, answer_findings, before_after_tables
from vlaa_jax.training.task import Task


class HeldOutAnswers:
    """Answers of a policy: greedy rewards of a few inside the loop, all greedy and sampled around it."""

    def __init__(self, task: Task, directory: pathlib.Path):
        """Opens `config.data.evaluation`; where that is empty nothing is held out.

        Args:
          task: whose policy it is.
          directory: of the run.
        """
        config = self._config = task.config
        self._task = task
        self._directory = directory
        self.source: RecordSource | None = None
        if not config.data.evaluation:
            return
        self.source, index = settings.open_records(config, "evaluation", task.encoder)
        self._buckets = settings.rollout_buckets(config, index, drawn=1)  # batches are of records of like size
        scorer = getattr(task, "scorer", None)
        pool = getattr(task, "pool", None)

        def evaluator(records: int) -> Evaluator:
            return Evaluator(
                self.source,
                index,
                task.encoder,
                batch=config.evaluation.batch,
                records=records,
                scorer=scorer,
                pool=pool,
            )

        self._subset = evaluator(config.evaluation.records)
        self._full = evaluator(0)

    def programs(self) -> list[Program]:
        """All that answer."""
        if self.source is None:
            return []
        task, batch = self._task, self._full.batch
        given = task.model, settings.compute_dtype(self._config), task.encoder.no_prompt, batch
        generators = (self._generator(greedy=greedy) for greedy in (True, False))
        return [program for generator in generators for program in rollout_programs(generator, *given)]

    def due(self, number: int) -> bool:
        """Whether step `number` ends with the small set."""
        return self.source is not None and number % self._config.evaluation.every == 0

    def subset(self, check_stop: Callable[[], None]) -> dict[str, float]:
        """Greedy rewards of the small set, for the curve and the best checkpoint."""
        results = self._run(self._subset, check_stop, greedy=True, description="evaluate")
        return prefixed("evaluation", summarise(results))

    def full(self, name: str, step: int, check_stop: Callable[[], None]) -> dict[str, float]:
        """Greedy and sampled answers of the whole set, kept in `evaluation/<name>-<mode>.jsonl`."""
        if self.source is None:
            return {}
        out = {}
        for mode, prefix in (("greedy", "evaluation"), ("sampled", "evaluation_sampled")):
            results = self._run(self._full, check_stop, greedy=mode == "greedy", description=f"{name}, {mode}")
            path = self._path(name, mode)
            distributed.on_first(lambda path=path, results=results: _write_results(path, step, results))
            out |= prefixed(prefix, summarise(results))
        return out

    def done(self, name: str, step: int) -> bool:
        """Whether `full` has been here: a run to which steps were added has files of its earlier end."""
        return self.source is None or all(step_of(self._path(name, mode)) == step for mode in ("greedy", "sampled"))

    def quality(self, metrics: Mapping[str, float]) -> float:
        """What the best checkpoint has most of: greedy reward."""
        return metrics["evaluation/reward"]

    def tables(self) -> list[Table]:
        """Before and after, of a finished run; the first one is shown on the terminal."""
        return [] if self.source is None else before_after_tables(self._directory)

    def findings(self) -> Findings:
        """For the report of a finished run."""
        return Findings() if self.source is None else answer_findings(self._directory, self.source)

    def _path(self, name: str, mode: str) -> pathlib.Path:
        return self._directory / "evaluation" / f"{name}-{mode}.jsonl"

    def _run(
        self, evaluator: Evaluator, check_stop: Callable[[], None], *, greedy: bool, description: str
    ) -> list[Result]:
        task = self._task
        weights = sampling_weights(task.model, settings.compute_dtype(self._config))
        return evaluator(weights, self._generator(greedy=greedy), description, check_stop=check_stop)

    def _generator(self, *, greedy: bool) -> Generator:
        config, task = self._config, self._task
        return Generator(
            sampling=settings.sampling(config, task.encoder.tokenizer.end_tokens, task.model.config, greedy=greedy),
            group=1 if greedy else config.evaluation.samples,
            new_tokens=config.rollout.new_tokens,
            prompt_buckets=self._buckets[0],
            window_buckets=self._buckets[1],
            seed=config.seed,
            stream=EVALUATION,
            row_ratio=config.rollout.row_ratio,
        )


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """`prefix/name` for every name."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _write_results(path: pathlib.Path, step: int, results: list[Result]) -> None:
    """One line a record; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(result_row(step, result)) for result in results]
    replace_file(path, ("\n".join(lines) + "\n").encode())


def step_of(path: pathlib.Path) -> int | None:
    """Step of an evaluation file, None where there is none; the file is there whole or not at all."""
    if not path.exists():
        return None
    with path.open() as file:
        return json.loads(file.readline())["step"]


def result_row(step: int, result: Result) -> dict[str, Any]:
    """A record's answers as the evaluation files hold them."""
    answers = [
        {
            "completion": answer.completion,
            "length": answer.length,
            "truncated": answer.truncated,
            **trace_fields(answer.trace),
        }
        for answer in result.answers
    ]
    record = result.record
    return {
        "step": step,
        "id": record.id,
        "verifier": record.verifier,
        "kind": record.metadata.get("kind", record.verifier),
        "gold": record.answer,
        "answers": answers,
    }
