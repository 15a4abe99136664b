"""A side of the benchmark in a process of its own, which does one job at a time.

Jobs and results are lines of JSON. So the two sides never compute at once, and no library sees the other.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from vlaa_jax.benchmark.alternation import Run
from vlaa_jax.benchmark.foreign_load import CpuMeter, foreign_share
from vlaa_jax.errors import InputError

_PATIENCE = 30  # seconds for a process to end by itself


class Worker:
    """The parent's end. A context: the process ends with it."""

    def __init__(self, module: str, folder: pathlib.Path, environment: Mapping[str, str]):
        """Starts `python -m module folder`.

        Args:
          module: calls `serve`.
          folder: of the inputs; the process's own output goes into a log there.
          environment: added to this process's.
        """
        self.name = module.rpartition(".")[2]
        self._log = folder / f"{self.name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | dict(environment),
            )
        self._meter = CpuMeter([os.getpid(), self._process.pid])

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # a process that has died leaves what was written to it
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Does a job and waits for it.

        Raises:
          InputError: as the job raised it.
          RuntimeError: the job failed; with the end of the process's log.
        """
        try:
            self._process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: there is no answer either
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "error" in answer:
            log = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
            raise RuntimeError(f"{self.name}: {job}: {answer['error']}\n{log}")
        return answer

    def run(self, job: str, **arguments: Any) -> Run:
        """Does a job, measured. The job says itself how many `seconds` count."""
        before = self._meter.read()
        result = self.ask(job, **arguments)
        after = self._meter.read()
        cores = os.cpu_count() or 1
        return Run(result["seconds"], after.own - before.own, foreign_share(before, after, cores), result)


def serve(open_side: Callable[[pathlib.Path], Any]) -> None:
    """The child's end: opens the side with the folder of the command line and does jobs until there are no more.

    A job is a method of the side; it returns a dictionary of numbers, texts and lists.
    """
    # What libraries print must not come between the lines.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    side = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            side = side or open_side(pathlib.Path(sys.argv[1]))
            answer = getattr(side, job.pop("job"))(**job) or {}
        except InputError as error:
            answer = {"refused": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": repr(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The work's result and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def peak_host_bytes() -> int:
    """Most memory that this process has held."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
