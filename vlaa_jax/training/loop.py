"""The one training loop: resume, step, log, evaluate, checkpoint, report."""

import contextlib
import errno
import pathlib
import shlex
import signal
import time
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.ahead import compiling, distinct
from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.tables import Table, text_table
from vlaa_jax.training.checkpoint import Checkpoints
from vlaa_jax.training.clock import Clock, CompileCounter
from vlaa_jax.training.host_memory import peak_bytes
from vlaa_jax.training.profile import Profiler
from vlaa_jax.training.progress import Progress
from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.run_header import continued_header
from vlaa_jax.training.run_report import write_run_report
from vlaa_jax.training.stop import Stopped, StopRequest
from vlaa_jax.training.task import HeldOut, StepReport, Task
from vlaa_jax.training.tensorboard import TensorBoard

# What may differ when a run goes on: nothing that changes a step already done. More `steps` are allowed: the steps done
# stay as they are, those to come follow the schedule of the new length. So the run is not the one that a start with
# that number would have been, and `run.json` says when the number changed.
CHANGEABLE = ("steps", "log", "evaluation", "checkpoint", "mesh")
_SHOWN = ("reward", "loss", "valid", "length", "kl", "evaluation/reward", "evaluation/loss", "seconds/step")
_MOST_BAD_STEPS = 3
_FEWEST_VALID = 0.05  # of the completions of the first steps
_FALL = 0.10  # of the held-out reward below its best
_BAD_STEPS = "bad_steps"  # in a row, among the numbers that a checkpoint keeps
_UNWRITTEN = "unwritten"  # metrics of the last step, among those numbers: its evaluation was left
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, on any process; the last whole step is saved."""

    def __init__(self, message: str, number: int | None):
        """Says how the run goes on; `number` is the signal."""
        super().__init__(message)
        self.exit_code = 0 if number == signal.SIGTERM else 130


def train(
    task: Task, workdir: str | pathlib.Path, *, recorded: ConfigDict, command: str, profiled: range = range(0)
) -> pathlib.Path:
    """Runs a task to its last step, from wherever its folder stands.

    Args:
      task: SFT, GRPO or a reward model.
      workdir: the run's folder, local or `gs://bucket/run`.
      recorded: the config as the user gave it; it is kept in the folder and compared on resume.
      command: what starts this run again; printed where that helps.
      profiled: steps that are traced into the folder's `profile`.

    Returns:
      The report.

    Raises:
      InputError: the folder holds another run or a longer one, another process trains there, three steps in a row
        had no finite gradient, or the disk is full.
      Interrupted: asked to stop; everything is saved.
    """
    try:
        with contextlib.closing(
            distributed.together(lambda: RunFolder(workdir, reading=not distributed.is_first()))
        ) as folder:
            return _train(task, folder, recorded, command, profiled)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InputError(
            f"{workdir}: {error.strerror}; what was saved before is untouched. Make room, then go on with: {command}"
        ) from None


def _train(task: Task, folder: RunFolder, recorded: ConfigDict, command: str, profiled: range) -> pathlib.Path:
    config = task.config
    if profiled and profiled[-1] > task.steps:
        raise InputError(f"--profile ends with step {profiled[-1]}, but this run has {task.steps}")
    prompt = task.encoder.prompt.sha256(task.encoder.tokenizer.chat_template)
    evaluation = distributed.together(lambda: task.held_out(folder.directory))

    def finished() -> bool:
        if not _finished(folder, evaluation, task.steps):
            return False
        continued_header(folder.header(), recorded.to_dict(), prompt, changeable=CHANGEABLE)  # raises for another run
        print(_finished_text(folder, evaluation, task.steps, command, config.seed), flush=True)
        return True

    if distributed.on_first(finished):
        return folder.report_path
    distributed.on_first(lambda: folder.begin(recorded.to_dict(), prompt_sha256=prompt, changeable=CHANGEABLE))
    checkpoints = Checkpoints(folder.checkpoints, keep=config.checkpoint.keep)
    start = distributed.on_first(lambda: _start(folder, checkpoints, task.steps))
    if start:
        task.state, task.numbers = checkpoints.restore(task.state, start)
        task.waiting = checkpoints.restore_waiting(start)
    with (
        checkpoints,
        StopRequest() as stop,
        Progress(task.steps, label="train", shown=_SHOWN, initial=start) as progress,
        TensorBoard(folder.tensorboard) if distributed.is_first() else contextlib.nullcontext() as board,
        Profiler(folder.directory / "profile", profiled if distributed.is_first() else range(0)) as profiler,
    ):
        loop = _Loop(task, folder, evaluation, checkpoints, stop, progress, board, profiler, start)
        try:
            loop.run()
        except Stopped:
            raise Interrupted(f"stopped {loop.save_last_step()}; go on with: {command}", stop.asked()) from None
    report_path = distributed.on_first(lambda: write_run_report(folder, evaluation.findings()))
    distributed.on_first(lambda: print(f"\n{text_table(_result(folder, evaluation, task.steps))}\n", flush=True))
    return report_path


def _start(folder: RunFolder, checkpoints: Checkpoints, steps: int) -> int:
    """The step of the newest checkpoint, and the files as they were then."""
    start = checkpoints.latest or 0
    if start > steps:
        raise InputError(
            f"config.steps is {steps}, but the run in {folder.address} has done {start}: expected that or more"
        )
    folder.cut_after(start if start else -1)
    # That of an earlier end, where steps were added.
    folder.report_path.unlink(missing_ok=True)
    return start


class _Loop:
    """The steps of one start. Every process runs it; the first one alone writes the folder."""

    def __init__(
        self,
        task: Task,
        folder: RunFolder,
        evaluation: HeldOut,
        checkpoints: Checkpoints,
        stop: StopRequest,
        progress: Progress,
        board: TensorBoard | None,
        profiler: Profiler,
        start: int,
    ):
        self._task, self._folder, self._evaluation, self._checkpoints = task, folder, evaluation, checkpoints
        self._stop, self._progress, self._board, self._profiler = stop, progress, board, profiler
        self._done = start
        self._quality: float | None = None  # held-out, after the last step done
        self._compiled = CompileCounter()
        self._clock = Clock()

    def run(self) -> None:
        """All steps that are left, and what comes before and after them.

        Raises:
          Stopped: the run was asked to stop; `save_last_step` is to follow.
        """
        task = self._task
        task.begin()
        if self._done < task.steps:
            # The evaluation before needs few of them, and the rest is ready when it is done.
            ahead = distinct([*self._evaluation.programs(), *task.programs()])
            with compiling(ahead, self._progress.say) as programs:
                self._begin()
                programs.wait(self._stop.check)
        else:
            self._begin()
        # A step's time runs from line to line: writing a line, and a checkpoint after it, count in the next one.
        self._began = time.perf_counter()
        for number in range(self._done + 1, task.steps + 1):
            with self._profiler.step(number, self._clock):
                self._step(number)
        distributed.together(self._checkpoints.wait)
        if not distributed.on_first(lambda: self._evaluation.done("after", task.steps)):
            self._evaluation.full("after", task.steps, self._stop.check)

    def _begin(self) -> None:
        """What comes before the first step of this start."""
        task, folder = self._task, self._folder
        if self._done:
            self._progress.say(f"resumed {folder.address} at step {self._done} of {task.steps}")
            self._make_up_evaluation()
        else:
            around = ", with a held-out evaluation before and after" if task.config.data.evaluation else ""
            self._progress.say(f"{task.steps} steps follow{around}; the time left is shown from the second step on")
            # Step 0 is the start policy: the "before" of the report, and the mark that a best checkpoint must pass.
            before = self._evaluation.full("before", 0, self._stop.check)
            distributed.on_first(lambda: folder.write_metrics(0, before))

    def save_last_step(self) -> str:
        """Saves the last whole step unless that is done, and says where the run stands."""
        if not self._done:
            return "before the first step was done"
        with contextlib.suppress(InputError):  # a save that failed is made up for
            distributed.together(self._checkpoints.wait)
        if distributed.on_first(lambda: self._checkpoints.latest) != self._done:
            self._save()
        distributed.together(self._checkpoints.wait)
        return f"after step {self._done}, which is saved"

    def _step(self, number: int) -> None:
        task, clock = self._task, self._clock
        report = task.step(number, clock, self._stop.check)
        metrics = dict(report.metrics)
        task.numbers[_BAD_STEPS] = 0 if report.bad_batch is None else task.numbers.get(_BAD_STEPS, 0) + 1
        self._done, self._quality = number, None
        if self._evaluation.due(number):
            try:
                with clock.phase("evaluate"):
                    metrics |= self._evaluation.subset(self._stop.check)
            except Stopped:
                distributed.on_first(lambda: self._folder.write_samples(number, report.samples))
                task.numbers[_UNWRITTEN] = metrics
                raise
            self._quality = self._evaluation.quality(metrics)
        seconds, now = clock.read(), time.perf_counter()
        whole, self._began = now - self._began, now
        metrics |= {f"seconds/{name}": value for name, value in seconds.items()}
        metrics |= {"seconds/step": whole, "seconds/other": whole - sum(seconds.values())}
        for phase, tokens in report.tokens.items():
            metrics[f"tokens_per_second/{phase}"] = tokens / seconds[phase]
        metrics["programs_compiled"] = self._compiled.count
        metrics["memory/host_peak"] = peak_bytes()
        with clock.phase("write"):
            warnings = distributed.on_first(lambda: self._write(number, metrics, report))
            self._progress.step(number, metrics)
            for warning in warnings:
                self._progress.say(warning)
            # Asked once: a signal that comes between saving and leaving must not leave without saving.
            stopping = self._stop.asked() is not None
        # After the lines: a checkpoint of step n promises that all lines up to n are there.
        if number % task.config.checkpoint.every == 0 or number == task.steps or stopping:
            with clock.phase("checkpoint"):
                self._save()
        if stopping and number < task.steps:
            raise Stopped

    def _write(self, number: int, metrics: Mapping[str, float], report: StepReport) -> list[str]:
        """All lines of a step; returns what the user should know."""
        folder = self._folder
        folder.write_samples(number, report.samples)
        folder.write_metrics(number, metrics)
        self._board.scalars(number, metrics)
        _show_samples(self._board, number, report)
        if report.bad_batch is not None:
            batch = {name: np.asarray(value) for name, value in report.bad_batch.items()}
            np.savez(folder.directory / f"non-finite-step-{number}.npz", **batch)
        bad_steps = self._task.numbers[_BAD_STEPS]
        if bad_steps == _MOST_BAD_STEPS:
            raise InputError(
                f"steps {number - bad_steps + 1} to {number} had no finite loss or gradient and were not applied; "
                f"their batches are in {folder.address}: start a new run with a lower config.optimizer.learning_rate"
            )
        return _warnings(number, metrics, report, folder)

    def _make_up_evaluation(self) -> None:
        """That of the last step, which was left when the run was stopped."""
        metrics = self._task.numbers.get(_UNWRITTEN)
        if metrics is None:
            return
        metrics = metrics | self._evaluation.subset(self._stop.check)

        def write() -> None:
            if self._folder.metrics()[-1]["step"] < self._done:
                self._folder.write_metrics(self._done, metrics)
                self._board.scalars(self._done, metrics)

        distributed.on_first(write)
        del self._task.numbers[_UNWRITTEN]

    def _save(self) -> None:
        distributed.on_first(self._folder.settle)
        task = self._task
        self._checkpoints.save(self._done, task.state, task.numbers, self._quality, task.waiting)


def _finished(folder: RunFolder, evaluation: HeldOut, steps: int) -> bool:
    """The report is written last, and removed when steps are added."""
    if not folder.report_path.exists():
        return False
    rows = folder.metrics()
    return bool(rows) and rows[-1]["step"] == steps and evaluation.done("after", steps)


def _result(folder: RunFolder, evaluation: HeldOut, steps: int) -> Table:
    """Before and after, or the last step's numbers where nothing was held out."""
    if tables := evaluation.tables():
        return tables[0]
    last = folder.metrics()[-1]
    shown = [name for name in _SHOWN if name in last]
    return Table(f"Step {steps}", shown, [[f"{last[name]:.4g}" for name in shown]])


def _finished_text(folder: RunFolder, evaluation: HeldOut, steps: int, command: str, seed: int) -> str:
    """What the run gave, and how to start another one."""
    again = f"{command} --config.seed={seed + 1}"
    if "--workdir" in command:
        again += f" --workdir={shlex.quote(f'{folder.address}-seed{seed + 1}')}"
    done = f"This run is finished ({steps} steps); nothing was changed."
    return f"{done}\n\n{text_table(_result(folder, evaluation, steps))}\n\nfor a new run: {again}"


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
