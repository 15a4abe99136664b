"""Killed anywhere and started again, a run equals an undisturbed one to the last bit."""

import os
import pathlib
import random
import secrets
import signal
import subprocess
import sys

import pytest
import tiny
from resumable import PLACES
from xla_flags import of_devices

from vlaa_jax.training.run_folder import RunFolder, without_volatile

ROOT = pathlib.Path(__file__).parents[2]


def start(
    folder: pathlib.Path, name: str, end: str = "", *, devices: int = 1, others: tuple[str, ...] = (), **changes
) -> subprocess.CompletedProcess:
    values = tiny.GRPO | {
        "model.checkpoint": folder / "policy",
        "data.train": f"{folder / 'scenes'}:rl",
        **{field.replace("__", "."): value for field, value in changes.items()},
    }
    flags = [*others, *(f"--config.{field}={value}" for field, value in values.items())]
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {"RESUMABLE_END": end, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    environment["XLA_FLAGS"] = of_devices(devices)
    command = [sys.executable, ROOT / "tests" / "training" / "resumable.py", "--config=configs/grpo_mixed.py"]
    return subprocess.run(
        [*command, f"--workdir={folder / name}", *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def lines(directory: pathlib.Path):
    folder = RunFolder(directory)
    return [[without_volatile(row) for row in rows] for rows in (folder.metrics(), folder.samples())]


def files(directory: pathlib.Path) -> dict:
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_run_that_was_killed_and_interrupted_equals_an_undisturbed_one(folder):
    seed = secrets.randbits(32)
    generator = random.Random(seed)
    every = generator.randint(1, 3)
    place = generator.choice([name for name in PLACES if name not in ("before the report", "as records are read")])
    # Half of the calls of a place, so that there is always something left to kill.
    times = generator.randint(1, 6 // every if place == "as a save begins" else 6)
    drawn = f"seed {seed}: checkpoint every {every}, killed {place}, call {times}"

    whole = start(folder, "whole", checkpoint__every=every)
    assert whole.returncode == 0, whole.stderr
    metrics, samples = lines(folder / "whole")
    assert [row["step"] for row in metrics] == list(range(7))
    assert [row["step"] for row in samples] == [step for step in range(1, 7) for _ in range(8)]
    # The comparison below means something: weights move, and so do samples.
    assert len({row["loss"] for row in metrics[1:]}) == 6
    assert metrics[6]["update/kl"] > 1e-4 and metrics[6]["kl_coefficient"] != metrics[1]["kl_coefficient"]

    killed = start(folder, "run", f"{place}:{times}:SIGKILL", checkpoint__every=every)
    assert killed.returncode == -signal.SIGKILL, (drawn, killed.stderr)
    if place != "as a save begins" or every * times < 6:
        stopped = start(folder, "run", "before an update:1:SIGINT", checkpoint__every=every)
        assert stopped.returncode in (0, 130), (drawn, stopped.stderr)
        if stopped.returncode == 130:
            assert "which is saved; go on with: python " in stopped.stdout, (drawn, stopped.stdout)
            assert f"--workdir={folder / 'run'}" in stopped.stdout
    done = start(folder, "run", checkpoint__every=every)
    assert done.returncode == 0, (drawn, done.stderr)
    assert lines(folder / "run") == [metrics, samples], drawn

    before = files(folder / "run")
    again = start(folder, "run", checkpoint__every=every)
    assert again.returncode == 0 and "This run is finished (6 steps); nothing was changed." in again.stdout
    assert files(folder / "run") == before


@pytest.mark.parametrize(
    "mode",
    [
        {"rollout__oversample": 4.0, "rollout__batch": 2},
        {"rollout__ahead": True, "rollout__batch": 2, "objective__importance_cap": 2.0},
    ],
    ids=["dynamic sampling", "one step ahead"],
)
def test_what_is_in_flight_is_not_lost(folder, mode):
    """Stopped between two checkpoints."""
    name = "-".join(mode)
    whole = start(folder, f"{name}-whole", steps=5, **mode)
    assert whole.returncode == 0, whole.stderr
    stopped = start(folder, name, "before an update:6:SIGINT", steps=5, checkpoint__every=5, **mode)
    assert stopped.returncode == 130 and "stopped after step 3, which is saved" in stopped.stdout, stopped.stderr
    done = start(folder, name, steps=5, **mode)
    assert done.returncode == 0, done.stderr
    metrics, samples = lines(folder / name)
    assert [metrics, samples] == lines(folder / f"{name}-whole")
    if "rollout__oversample" in mode:
        assert max(row["rollout/prompts"] for row in metrics[1:]) > 4
    else:
        assert [row["draw"] for row in samples[::2]] == list(range(20))


def test_the_same_seed_gives_the_same_samples_on_four_devices(folder):
    # Groups of two in rows of one completion, so that a micro-batch of two groups has a row for each device.
    rows = {"updates__micro_batch": 2, "updates__row_completions": 1}
    one, four = (start(folder, name, devices=devices, **rows) for name, devices in (("one", 1), ("four", 4)))
    assert (one.returncode, four.returncode) == (0, 0), (one.stderr, four.stderr)
    assert "on 4 x cpu" in four.stdout

    def completions(name: str) -> list:
        return [(row["id"], row["completion"]) for row in lines(folder / name)[1] if row["step"] <= 3]

    assert len(completions("one")) == 24
    assert completions("four") == completions("one")
