"""A small pool of math workers (math_worker.py), started when first asked."""

import concurrent.futures
import logging
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence

from vlaa_jax.rewards.messages import receive, send

_LOG = logging.getLogger(__name__)
_WORKER = "vlaa_jax.rewards.math_worker"
_START_SECONDS = 120.0
_REMEMBERED = 100_000


class _Worker:
    """One worker process. Only the thread that started it may use it: Linux ends it together with that thread."""

    def __init__(self, cpu_seconds: int, memory_bytes: int):
        package_root = str(pathlib.Path(__file__).parents[2])
        # -P and this path: the worker sees the modules that this process sees, and no `math.py` of the current folder.
        path = os.pathsep.join([*map(os.path.abspath, sys.path), package_root])
        # The hash seed fixes the order of sympy's sets, so that every worker gives the same verdicts.
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
        limits = [str(cpu_seconds), str(memory_bytes), str(os.getpid())]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _WORKER, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the run, not for its workers; and one kill reaches the children
        )
        self.pid = self._process.pid
        self._to_worker, self._from_worker = self._process.stdin.fileno(), self._process.stdout.fileno()
        if not self._readable(_START_SECONDS) or receive(self._from_worker) is None:
            self.kill()
            raise RuntimeError("the math worker did not start; its own message stands above")

    def ask(self, golds: Sequence[str], answers: Sequence[str], wall_seconds: float) -> str | None:
        """The verdict; None after `wall_seconds`. Raises OSError when the worker is gone."""
        send(self._to_worker, {"golds": golds, "answers": answers})
        if not self._readable(wall_seconds):
            return None
        reply = receive(self._from_worker)
        if reply is None:
            raise BrokenPipeError("the math worker ended")
        return reply["verdict"]

    def kill(self) -> None:
        """Ends the worker and its child."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _readable(self, seconds: float) -> bool:
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self._from_worker, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


class MathPool:
    """Judges math answers in worker processes, several at a time.

    A verdict depends on nothing but its inputs, so equal tasks are judged once and remembered.

    Args:
      workers: number of worker processes.
      cpu_seconds: processor time of one task; beyond it the verdict is `timeout`.
      wall_seconds: last resort should a worker hang without using its processor: it is killed and replaced.
      memory_bytes: address space of one task; beyond it sympy fails, which counts as not parsed or not equal.
    """

    def __init__(
        self, workers: int = 2, *, cpu_seconds: int = 2, wall_seconds: float = 60.0, memory_bytes: int = 1 << 30
    ):
        self._limits = (cpu_seconds, memory_bytes)
        self._wall_seconds = wall_seconds
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="math-pool")
        self._mine = threading.local()
        self._workers: set[_Worker] = set()
        self._known: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
        self._finalizer = weakref.finalize(self, _close, self._threads, self._workers)

    def submit(self, golds: Sequence[str], answers: Sequence[str]) -> concurrent.futures.Future[tuple[str, float]]:
        """Starts one comparison (see `math_worker.judge`): a future of (verdict, seconds).

        Beside the worker's verdicts there are `timeout` and `crash` (the task ended its process in another way).
        """
        return self._threads.submit(self._answer, tuple(golds), tuple(answers))

    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers started so far."""
        return tuple(worker.pid for worker in self._workers)

    def close(self) -> None:
        """Ends the workers. The pool cannot be used afterwards."""
        self._finalizer()

    def _answer(self, golds: tuple[str, ...], answers: tuple[str, ...]) -> tuple[str, float]:
        start = time.perf_counter()
        task = (golds, answers)
        verdict = self._known.get(task)
        if verdict is None:
            verdict, by_the_task = self._ask(golds, answers)
            if by_the_task:  # what the machine did to a worker says nothing about the task
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[task] = verdict
            if verdict in ("timeout", "crash"):
                shown = " = ".join(answers)[:200]
                _LOG.warning("math answer %r against the gold %r: %s, counted as wrong", shown, golds[0], verdict)
        return verdict, time.perf_counter() - start

    def _ask(self, golds: tuple[str, ...], answers: tuple[str, ...]) -> tuple[str, bool]:
        for _ in range(2):  # a worker that somebody killed between two tasks is replaced
            worker = getattr(self._mine, "worker", None)
            if worker is None:
                worker = self._mine.worker = _Worker(*self._limits)
                self._workers.add(worker)
            try:
                verdict = worker.ask(golds, answers, self._wall_seconds)
            except OSError:
                verdict = "crash"
            else:
                if verdict is not None:
                    return verdict, True
                verdict = "timeout"
            self._workers.discard(worker)
            self._mine.worker = None
            worker.kill()
            if verdict == "timeout":
                break
        return verdict, False


def _close(threads: concurrent.futures.ThreadPoolExecutor, workers: set[_Worker]) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    while workers:
        workers.pop().kill()
