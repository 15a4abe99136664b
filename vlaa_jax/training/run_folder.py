"""The run folder: everything that a run leaves behind, in files that survive a kill at any moment.

    run.json        config, hashes, versions and command of every start (`run_header.py`)
    metrics.jsonl   one line a step
    samples.jsonl   one line a completion, with its reward trace
    tensorboard/    the same numbers, and some completions with images (`tensorboard.py`)
    checkpoints/
    report.html     written at the end (`vlaa_jax/evaluation/report.py`)

A folder `gs://bucket/run` is worked on in a local copy (`mirror.py`), but for its checkpoints.

Write the lines of a step before its checkpoint: a line is on disk when the call returns, so a checkpoint of step n
means that all lines up to n are there, and `cut_after(n)` takes away what came later. A resumed run then leaves the
same files as an undisturbed one, but for `VOLATILE`.
"""

import dataclasses
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from etils import epath

from vlaa_jax import storage
from vlaa_jax.errors import InputError
from vlaa_jax.rewards import Trace
from vlaa_jax.training.mirror import Mirror
from vlaa_jax.training.run_header import continued_header, new_header
from vlaa_jax.training.tensorboard import TensorBoard

# Keys that begin so measure the machine: two runs with equal results differ in them.
VOLATILE = ("seconds/", "tokens_per_second/", "memory/", "programs_compiled")


class RunFolder:
    """One run's files. In a run of several processes only the first writes here.

    Attributes:
      address: as given.
      directory, tensorboard, checkpoints: folders; `checkpoints` is left to its owner to make, and lies in the bucket
        where the run does.
      header_path, metrics_path, samples_path, report_path: files.
    """

    def __init__(self, directory: str | os.PathLike[str], *, reading: bool = False):
        """Makes the folder if it is missing.

        Args:
          directory: local, or `gs://bucket/run`, which is brought down.
          reading: nothing will be written; of a remote run only what tools read is brought.

        Raises:
          InputError: the path is a file; or the bucket cannot be used, or another process here trains in it.
        """
        self.address = os.fspath(directory)
        self._lock: IO | None = None
        self._mirror: Mirror | None = None
        self.directory = pathlib.Path(directory)
        if storage.is_remote(directory):
            self._mirror = Mirror(self.address, reading=reading)
            self.directory = self._mirror.local
            if not reading:
                self._lock = _locked(self.directory.parent / "run.lock", self.address)
            self._mirror.pull()
        self.tensorboard = self.directory / "tensorboard"
        self.checkpoints = (self.directory if self._mirror is None else epath.Path(self.address)) / "checkpoints"
        self.header_path = self.directory / "run.json"
        self.metrics_path = self.directory / "metrics.jsonl"
        self.samples_path = self.directory / "samples.jsonl"
        self.report_path = self.directory / "report.html"
        self._metrics = _Lines(self.metrics_path)
        self._samples = _Lines(self.samples_path)
        try:
            self.tensorboard.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{self.directory}: expected a folder for the run, found a file") from error

    def begin(self, config: Mapping[str, Any], *, prompt_sha256: str, changeable: Sequence[str] = ()) -> None:
        """Writes `run.json`, or checks that the folder belongs to this very run and notes one more start in it.

        Args:
          config: every field of the configuration, nested.
          prompt_sha256: of the conversation.
          changeable: fields, or groups of fields, that may differ from those that the run began with.

        Raises:
          InputError: another field differs (names the first one with both values), or one that JSON cannot hold.
            Nothing has been written then. Or another process has begun this run and not ended.
        """
        self._lock = self._lock or _locked(self.directory / "run.lock", self.address)
        if self._mirror is not None:
            self._mirror.begin()
        if self.header_path.exists():
            try:
                header = continued_header(self.header(), config, prompt_sha256, changeable=changeable)
            except InputError as error:
                raise InputError(f"{self.address}/run.json: {error}") from None
        else:
            header = new_header(config, prompt_sha256)
        storage.replace_file(self.header_path, (json.dumps(header, indent=1) + "\n").encode())

    def header(self) -> dict[str, Any]:
        """What `run.json` says: `config_hash`, `prompt_sha256`, `config` of the first start, `starts`.

        Raises:
          InputError: the file is missing or damaged.
        """
        try:
            header = json.loads(self.header_path.read_bytes())
            return {key: header[key] for key in ("config_hash", "prompt_sha256", "config", "starts")}
        except OSError as error:
            raise InputError(
                f"{self.header_path}: cannot be read ({error.strerror}); expected the header of a run"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.header_path}: damaged, not the header of a run ({error!r})") from None

    def write_metrics(self, step: int, values: Mapping[str, float | int]) -> None:
        """Appends the line of a step: `step`, then the values in the order of their names, to the last bit.

        Args:
          step: greater than that of the line before.
          values: scalars of Python, numpy or jax.

        Raises:
          FloatingPointError: a value is not finite; names it, and nothing has been written.
          ValueError: the step has a line already.
        """
        if self._metrics.last_step == step:
            raise ValueError(f"{self.metrics_path}: step {step} has a line already")
        row = {"step": int(step)}
        for name in sorted(values):
            row[name] = _number(values[name])
            if not math.isfinite(row[name]):
                raise FloatingPointError(f"step {step}: the metric {name!r} is {row[name]}, expected a finite number")
        self._metrics.append(row["step"], [row])

    def write_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends a line a row, each with `step` first and then its keys as given. May be called again for a step.

        Args:
          step: not less than that of the line before.
          rows: what is known of one completion; `trace_fields` gives the part about its reward.

        Raises:
          FloatingPointError: a row holds a number that is not finite; nothing has been written.
          ValueError: the step lies before the last one written.
        """
        self._samples.append(int(step), [{"step": int(step), **row} for row in rows])

    def cut_after(self, step: int) -> None:
        """Goes back to the end of `step`, as if nothing had followed; call it once at every start, before any writing.

        Lines of later steps and a torn last line are cut off, and TensorBoard is told to forget events after `step`.

        Args:
          step: step of the restored checkpoint; -1 when there is none.

        Raises:
          InputError: a complete line is damaged; names file and line. That file has not been touched.
        """
        self._metrics.cut_after(step)
        self._samples.cut_after(step)
        if any(self.tensorboard.iterdir()):
            TensorBoard(self.tensorboard, restored_step=step).close()

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, without a torn last line."""
        return list(self._metrics.rows())

    def samples(self) -> Iterator[dict[str, Any]]:
        """The rows of `samples.jsonl`, one by one, without a torn last line."""
        return self._samples.rows()

    def settle(self) -> None:
        """Waits until what was written is where it belongs: of a remote run in the bucket, for a while at most.

        Call it before a checkpoint, which promises that its lines are there.

        Raises:
          InputError: another process has taken the remote folder over.
        """
        if self._mirror is not None:
            self._mirror.settle()

    def close(self) -> None:
        """Closes the files, writing again opens them; another process may train here then.

        Raises:
          InputError: something could not be uploaded; names it, and where it lies.
        """
        self._metrics.close()
        self._samples.close()
        try:
            if self._mirror is not None:
                self._mirror.close()
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None


def open_run(directory: str | os.PathLike[str]) -> RunFolder:
    """The folder of a run that exists, to be read.

    Raises:
      InputError: no run was ever started there.
    """
    if not has_run(directory):
        raise InputError(f"{directory} is not the folder of a run: it has no run.json")
    return RunFolder(directory, reading=True)


def has_run(directory: str | os.PathLike[str]) -> bool:
    """Whether a run was ever started there.

    Raises:
      InputError: its bucket cannot be used.
    """
    if storage.is_remote(directory):
        return "run.json" in storage.RemoteFolder(os.fspath(directory)).files("run.json")
    return (pathlib.Path(directory) / "run.json").exists()


def _locked(path: pathlib.Path, folder: str) -> IO:
    """The open file, locked until it is closed or its process ends; raises InputError where another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"{folder}: another process is training in this folder; wait for its end") from None
    except OSError:
        pass  # a file system without locks
    return file


class _Lines:
    """A file of JSON lines whose steps never fall."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.last_step: int | None = None
        self._descriptor: int | None = None
        self._ready = False

    def append(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self._ready and self.path.exists() and self.path.stat().st_size:
            raise ValueError(f"{self.path} holds lines already: call cut_after before writing")
        if self.last_step is not None and step < self.last_step:
            raise ValueError(f"{self.path}: step {step} after step {self.last_step}")
        data = b"".join(_line(step, row) for row in rows)
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        # One write: another reader, or a kill, sees all lines of the call or (on a full disk) a torn end.
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)
        self.last_step, self._ready = step, True

    def cut_after(self, step: int) -> None:
        """Shortens the file in place: steps never fall, so what stays is its beginning. A kill leaves it cut or not."""
        self.close()
        self.last_step, self._ready = None, True
        if not self.path.exists():
            return
        end = 0
        for row_step, line in self._parsed():
            if row_step["step"] > step:
                break
            end += len(line)
            self.last_step = row_step["step"]
        with self.path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        return (row for row, _ in self._parsed())

    def _parsed(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Every complete line, parsed and as it stands; a last one without its newline is torn."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                    row["step"] = int(row["step"])
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f"{self.path}, line {number}: damaged, expected a JSON object with a step"
                    ) from error
                yield row, line

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def trace_fields(trace: Trace) -> dict[str, Any]:
    """A reward trace for a line of `samples.jsonl`; the time that it took gets a volatile name."""
    fields = dataclasses.asdict(trace)
    fields["seconds/reward"] = fields.pop("seconds")
    return fields


def without_volatile(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of either file without the keys that differ between equal runs."""
    return {key: value for key, value in row.items() if not key.startswith(VOLATILE)}


def _number(value: Any) -> float | int:
    array = np.asarray(value)
    return int(array) if array.dtype.kind in "biu" else float(array)


def _line(step: int, row: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_scalar)
    except ValueError as error:
        raise FloatingPointError(f"step {step}: a row holds a number that is not finite: {dict(row)!r}") from error
    # Half a surrogate pair, which UTF-8 cannot hold, becomes the JSON escape of the same character.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _scalar(value: Any) -> float | int:
    if np.ndim(value):
        raise TypeError(f"{value!r} is no scalar")
    return _number(value)
