"""Real processes on loopback: a run on several of them, each with CPU devices of its own."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import tiny
from xla_flags import of_devices

from vlaa_jax.training.run_folder import RunFolder, without_volatile

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass
class Process:
    """One process of a run; its output goes to files, so that nobody waits for a full pipe."""

    popen: subprocess.Popen
    output: pathlib.Path

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self, deadline: float) -> int:
        """Its exit code; raises `TimeoutExpired` after the deadline (of `time.monotonic`)."""
        return self.popen.wait(max(0.1, deadline - time.monotonic()))


def flags(folder: pathlib.Path, task: str, **changes) -> list[str]:
    """The tiny run of `tiny.config` as a command line."""
    values, data, file = {
        "grpo": (tiny.GRPO, "scenes:rl", "grpo_mixed"),
        "sft": (tiny.SFT, "scenes:sft", "sft"),
        "prm": (tiny.PRM, "processes:train", "prm"),
    }[task]
    values = values | {"model.checkpoint": folder / "policy", "data.train": folder / data}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config=configs/{file}.py", *(f"--config.{field}={value}" for field, value in values.items())]


@contextlib.contextmanager
def started(
    count: int,
    workdir: pathlib.Path,
    arguments: list[str],
    *,
    devices: int = 1,
    script: str = "training/resumable",
    environment: Mapping[str, str] | None = None,
    environments: Mapping[int, Mapping[str, str]] | None = None,
) -> Iterator[list[Process]]:
    """Starts `count` processes of one run; none outlives the block.

    Args:
      count: of them; one is told nothing of others.
      workdir: of the run. Outputs lie beside it.
      arguments: of each.
      devices: of each.
      script: in `tests`; by default it runs the launcher.
      environment: further variables of all.
      environments: further variables of some.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    common = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    common["XLA_FLAGS"] = of_devices(devices)
    running = []
    try:
        for i in range(count):
            meet = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={i}"] if count > 1 else []
            output = workdir.with_name(f"{workdir.name}-{time.monotonic_ns()}-{i}.log")
            with output.open("w") as file:
                popen = subprocess.Popen(
                    [
                        sys.executable,
                        ROOT / "tests" / f"{script}.py",
                        f"--workdir={workdir}",
                        *arguments,
                        *meet,
                    ],
                    cwd=ROOT,
                    env=os.environ | common | dict(environment or {}) | dict((environments or {}).get(i, {})),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                )
            running.append(Process(popen, output))
        yield running
    finally:
        for process in running:
            process.popen.kill()
            process.popen.wait()


def run(count: int, workdir: pathlib.Path, arguments: list[str], *, seconds: float = 400, **how) -> list[Process]:
    """Runs them to their end."""
    deadline = time.monotonic() + seconds
    with started(count, workdir, arguments, **how) as processes:
        for process in processes:
            process.end(deadline)
    return processes


def lines(workdir: pathlib.Path) -> tuple[list[dict], list[dict]]:
    """Rows of `metrics.jsonl` and `samples.jsonl`, without timings."""
    folder = RunFolder(workdir)
    return [without_volatile(row) for row in folder.metrics()], [without_volatile(row) for row in folder.samples()]
