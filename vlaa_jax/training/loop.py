"""The one training loop: resume, step, log, evaluate, checkpoint, report."""

import contextlib
import errno
import json
import pathlib
import shlex
import signal
import time
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.evaluate import Evaluator, Result, summarise
from vlaa_jax.evaluation.tables import Table, text_table
from vlaa_jax.processing.records import RecordSource
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.random_bits import EVALUATION
from vlaa_jax.rollout.sampler import sampling_weights
from vlaa_jax.training import settings
from vlaa_jax.training.checkpoint import Checkpoints
from vlaa_jax.training.clock import Clock, CompileCounter
from vlaa_jax.training.progress import Progress
from vlaa_jax.training.run_folder import RunFolder, replace_file, trace_fields
from vlaa_jax.training.run_header import continued_header
from vlaa_jax.training.run_report import before_after_tables, write_run_report
from vlaa_jax.training.task import StepReport, Task
from vlaa_jax.training.tensorboard import TensorBoard

# What may differ when a run goes on: nothing that changes a step already done. More `steps` are allowed: the steps done
# stay as they are, those to come follow the schedule of the new length. So the run is not the one that a start with
# that number would have been, and `run.json` says when the number changed.
CHANGEABLE = ("steps", "log", "evaluation", "checkpoint")
_SHOWN = ("reward", "loss", "valid", "length", "kl", "evaluation/reward", "seconds/step")
_MOST_BAD_STEPS = 3
_FEWEST_VALID = 0.05  # of the completions of the first steps
_FALL = 0.10  # of the held-out reward below its best
_BAD_STEPS = "bad_steps"  # in a row, among the numbers that a checkpoint keeps
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the step in progress was finished and saved."""


def train(task: Task, workdir: pathlib.Path, *, recorded: ConfigDict, command: str) -> pathlib.Path:
    """Runs a task to its last step, from wherever its folder stands.

    Args:
      task: SFT or GRPO.
      workdir: the run's folder.
      recorded: the config as the user gave it; it is kept in the folder and compared on resume.
      command: what starts this run again; printed where that helps.

    Returns:
      The report.

    Raises:
      InputError: the folder holds another run or a longer one, another process trains there, three steps in a row
        had no finite gradient, or the disk is full.
      Interrupted: asked to stop; everything is saved.
    """
    try:
        with contextlib.closing(RunFolder(workdir)) as folder:
            return _train(task, folder, recorded, command)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InputError(
            f"{workdir}: {error.strerror}; what was saved before is untouched. Make room, then go on with: {command}"
        ) from None


def _train(task: Task, folder: RunFolder, recorded: ConfigDict, command: str) -> pathlib.Path:
    config, workdir = task.config, folder.directory
    prompt = task.encoder.prompt.sha256(task.encoder.tokenizer.chat_template)
    evaluation = _Evaluation(config, task, folder)
    if _finished(folder, evaluation, task.steps):
        continued_header(folder.header(), recorded.to_dict(), prompt, changeable=CHANGEABLE)  # raises for another run
        print(_finished_text(folder, task.steps, command, config.seed), flush=True)
        return folder.report_path
    folder.begin(recorded.to_dict(), prompt_sha256=prompt, changeable=CHANGEABLE)
    checkpoints = Checkpoints(folder.checkpoints, keep=config.checkpoint.keep)
    start = checkpoints.latest or 0
    if start > task.steps:
        raise InputError(
            f"config.steps is {task.steps}, but the run in {workdir} has done {start}: expected that or more"
        )
    if start:
        task.state, task.numbers = checkpoints.restore(task.state)
    folder.cut_after(start if start else -1)
    # That of an earlier end, where steps were added.
    folder.report_path.unlink(missing_ok=True)

    compiled = CompileCounter()
    with (
        checkpoints,
        _StopFlag() as stop,
        Progress(task.steps, label="train", shown=_SHOWN, initial=start) as progress,
        TensorBoard(folder.tensorboard) as board,
    ):
        if start:
            progress.say(f"resumed {workdir} at step {start} of {task.steps}")
        else:
            around = ", with held-out answers before and after" if config.data.evaluation else ""
            progress.say(f"{task.steps} steps follow{around}; the time left is shown from the second step on")
            # Step 0 is the start policy: the "before" of the report, and the mark that a best checkpoint must pass.
            folder.write_metrics(0, evaluation.full("before", 0))
        if start < task.steps:
            task.begin()
        # A step's time runs from line to line, so what happens after a line (its checkpoint) counts in the next one.
        clock, began = Clock(task.programs, progress.say), time.perf_counter()
        for number in range(start + 1, task.steps + 1):
            report = task.step(number, clock)
            metrics = dict(report.metrics)
            bad_steps = _count_bad(report, number, task.numbers.get(_BAD_STEPS, 0), folder)
            task.numbers[_BAD_STEPS] = bad_steps
            reward = None
            if evaluation.due(number):
                with clock.phase("evaluate"):
                    measured = evaluation.subset()
                reward = measured["evaluation/reward"]
                metrics |= measured
            seconds, now = clock.read(), time.perf_counter()
            whole, began = now - began, now
            metrics |= {f"seconds/{name}": value for name, value in seconds.items()}
            metrics |= {"seconds/step": whole, "seconds/other": whole - sum(seconds.values())}
            for phase, tokens in report.tokens.items():
                metrics[f"tokens_per_second/{phase}"] = tokens / seconds[phase]
            metrics["programs_compiled"] = compiled.count
            folder.write_samples(number, report.samples)
            folder.write_metrics(number, metrics)
            board.scalars(number, metrics)
            _show_samples(board, number, report)
            progress.step(number, metrics)
            for warning in _warnings(number, metrics, report, folder):
                progress.say(warning)
            if bad_steps == _MOST_BAD_STEPS:
                raise InputError(
                    f"steps {number - bad_steps + 1} to {number} had no finite loss or gradient and were not applied; "
                    f"their batches are in {folder.directory}: start a new run with a lower "
                    "config.optimizer.learning_rate"
                )
            # Read once: a signal that comes between saving and leaving must not leave without saving.
            stopping = stop.asked
            # After the lines: a checkpoint of step n promises that all lines up to n are there.
            if number % config.checkpoint.every == 0 or number == task.steps or stopping:
                with clock.phase("checkpoint"):
                    checkpoints.save(number, task.state, task.numbers, reward)
            if stopping and number < task.steps:
                checkpoints.wait()
                raise Interrupted(f"stopped after step {number}, which is saved; go on with: {command}")
        checkpoints.wait()
        if not evaluation.done("after", task.steps):
            evaluation.full("after", task.steps)
    report_path = write_run_report(folder, evaluation.source)
    print(f"\n{text_table(_result(folder, task.steps))}\n", flush=True)
    return report_path


class _Evaluation:
    """Held-out evaluation of a run: small and often inside the loop, whole and twice (greedy and sampled) around it."""

    def __init__(self, config: ConfigDict, task: Task, folder: RunFolder):
        self._config = config
        self._task = task
        self._folder = folder
        self.source: RecordSource | None = None
        if not config.data.evaluation:
            return
        self.source, index = settings.open_records(config, "evaluation", task.encoder)
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

    def due(self, number: int) -> bool:
        return self.source is not None and number % self._config.evaluation.every == 0

    def subset(self) -> dict[str, float]:
        """Greedy rewards of the small set, for the curve and the best checkpoint."""
        return _prefixed("evaluation", summarise(self._run(self._subset, greedy=True, description="evaluate")))

    def full(self, name: str, step: int) -> dict[str, float]:
        """Greedy and sampled answers of the whole set, kept in `evaluation/<name>-<mode>.jsonl`."""
        if self.source is None:
            return {}
        out = {}
        for mode, prefix in (("greedy", "evaluation"), ("sampled", "evaluation_sampled")):
            results = self._run(self._full, greedy=mode == "greedy", description=f"{name}, {mode}")
            _write_results(self._path(name, mode), step, results)
            out |= _prefixed(prefix, summarise(results))
        return out

    def done(self, name: str, step: int) -> bool:
        """Whether `full` has been here: a run to which steps were added has files of its earlier end."""
        return self.source is None or all(_step_of(self._path(name, mode)) == step for mode in ("greedy", "sampled"))

    def _path(self, name: str, mode: str) -> pathlib.Path:
        return self._folder.directory / "evaluation" / f"{name}-{mode}.jsonl"

    def _run(self, evaluator: Evaluator, *, greedy: bool, description: str) -> list[Result]:
        config, task = self._config, self._task
        generator = Generator(
            sampling=settings.sampling(config, task.encoder, task.model.config, greedy=greedy),
            group=1 if greedy else config.evaluation.samples,
            new_tokens=config.rollout.new_tokens,
            prompt_buckets=tuple(config.rollout.prompt_buckets),
            window_buckets=tuple(config.rollout.window_buckets),
            seed=config.seed,
            stream=EVALUATION,
        )
        weights = sampling_weights(task.model, settings.compute_dtype(config))
        return evaluator(weights, generator, description)


class _StopFlag:
    """Set by the first Ctrl-C or SIGTERM; a second one ends at once."""

    def __enter__(self) -> Self:
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        self.asked = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _count_bad(report: StepReport, number: int, bad_steps: int, folder: RunFolder) -> int:
    """Steps in a row without a finite loss and gradient, this one included; keeps its batch."""
    if report.bad_batch is None:
        return 0
    path = folder.directory / f"non-finite-step-{number}.npz"
    np.savez(path, **{name: np.asarray(value) for name, value in report.bad_batch.items()})
    return bad_steps + 1


def _finished(folder: RunFolder, evaluation: _Evaluation, steps: int) -> bool:
    """The report is written last, and removed when steps are added."""
    if not folder.report_path.exists():
        return False
    rows = folder.metrics()
    return bool(rows) and rows[-1]["step"] == steps and evaluation.done("after", steps)


def _result(folder: RunFolder, steps: int) -> Table:
    """Before and after by verifier, or the last step's numbers where nothing was held out."""
    if (folder.directory / "evaluation").exists():
        return before_after_tables(folder.directory)[0]
    last = folder.metrics()[-1]
    shown = [name for name in _SHOWN if name in last]
    return Table(f"Step {steps}", shown, [[f"{last[name]:.4g}" for name in shown]])


def _finished_text(folder: RunFolder, steps: int, command: str, seed: int) -> str:
    """What the run gave, and how to start another one."""
    again = f"{command} --config.seed={seed + 1}"
    if "--workdir" in command:
        again += f" --workdir={shlex.quote(f'{folder.directory}-seed{seed + 1}')}"
    done = f"This run is finished ({steps} steps); nothing was changed."
    return f"{done}\n\n{text_table(_result(folder, steps))}\n\nfor a new run: {again}"


def _warnings(number: int, metrics: Mapping[str, float], report: StepReport, folder: RunFolder) -> list[str]:
    out = []
    if number <= 2 and metrics.get("valid", 1.0) < _FEWEST_VALID:
        shown = "\n---\n".join(str(row["completion"]) for row in report.samples[:3])
        out.append(f"only {metrics['valid']:.1%} of the completions hold a valid answer; three of them:\n{shown}")
    if "loss_spike" in metrics:
        out.append(f"step {number}: the loss jumped to {metrics['loss']:.3g}; the examples are named in samples.jsonl")
    if "evaluation/reward" in metrics:
        best = max(row["evaluation/reward"] for row in folder.metrics() if "evaluation/reward" in row)
        if metrics["evaluation/reward"] < best - _FALL:
            out.append(
                f"step {number}: held-out reward {metrics['evaluation/reward']:.3f} is {_FALL:.2f} below its best "
                f"({best:.3f}): the best checkpoint is kept; consider a lower learning rate"
            )
    return out


def _show_samples(board: TensorBoard, number: int, report: StepReport) -> None:
    """The first completion about each of the report's pictures."""
    first = {row["id"]: row for row in reversed(report.samples)}
    for place, (record, picture) in enumerate(report.pictures.items()):
        row = first[record]
        text = f"{record} ({row['verifier']}, gold {row['gold']})\n{row['completion']}\nreward {row['score']:.3f}"
        board.text(number, f"completion/{place}", text)
        board.image(number, f"picture/{place}", picture, text)


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _write_results(path: pathlib.Path, step: int, results: list[Result]) -> None:
    """One line a record; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(result_row(step, result)) for result in results]
    replace_file(path, ("\n".join(lines) + "\n").encode())


def _step_of(path: pathlib.Path) -> int | None:
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
