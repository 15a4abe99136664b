"""A run whose shards, start checkpoint and folder lie in a bucket equals one on the local disk, whatever happens."""

import itertools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny
from resumable import end_at
from test_resume import ROOT, lines

from vlaa_jax import storage
from vlaa_jax.training import mirror, updates
from vlaa_jax.training.loop import Interrupted, train
from vlaa_jax.training.sft_task import SFTTask

STEPS = {"steps": 4, "checkpoint.every": 1}


def killed(workdir: str, cache: pathlib.Path, end: str, values: dict) -> str:
    """What the command said until it was killed."""
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {"RESUMABLE_END": end, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, "VLAA_JAX_CACHE": str(cache)}
    flags = [f"--config.{field}={value}" for field, value in values.items()]
    done = subprocess.run(
        [sys.executable, "tests/training/resumable.py", "--config=configs/sft.py", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout


def test_killed_stopped_and_moved_a_remote_run_equals_a_local_one(folder, bucket, emulator, tmp_path, monkeypatch):
    local = tiny.config("sft", folder, **{name.replace(".", "__"): value for name, value in STEPS.items()})
    train(SFTTask(local), folder / "local", recorded=local, command="again")
    metrics, samples = lines(folder / "local")
    assert len({row["loss"] for row in metrics[1:]}) == 4

    values = tiny.SFT | STEPS
    values["model.checkpoint"] = bucket.put_folder(folder / "policy", "policy")
    values["data.train"] = bucket.put_folder(folder / "scenes", "data/scenes") + ":sft"
    workdir = bucket.address("runs/first")

    # On a first machine, by the command, killed while the checkpoint of step 3 is written.
    emulator.interfere = lambda method, name: 503 if "checkpoints/3" in name else None
    said = killed(workdir, tmp_path / "first", "as a save begins:3:SIGKILL", values)
    assert f"run folder {workdir}" in said
    left = bucket.files("runs/first")
    assert {"checkpoints/2/commit_success.txt", mirror.LOCK} <= left.keys()

    # On a second one, over a bad network, stopped by SIGTERM.
    monkeypatch.setattr(mirror, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(mirror, "_POLL_SECONDS", 1000.0)  # nothing goes up by chance
    monkeypatch.setattr(storage, "REQUEST_SECONDS", 1.0)
    generator, numbers = random.Random(0), itertools.count()

    def interfere(method: str, name: str) -> int | None:
        if next(numbers) == 40:
            time.sleep(2)  # a stall
        return 503 if generator.random() < 0.05 else None

    emulator.interfere = interfere
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "second"))
    remote = tiny.config("sft", folder, **{name.replace(".", "__"): value for name, value in values.items()})
    first = updates.Updater.first
    monkeypatch.setattr(updates.Updater, "first", first)  # so that it is put back in any case
    end_at("before an update", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped after step 3, which is saved; go on with: again"):
        train(SFTTask(remote), workdir, recorded=remote, command="again")
    monkeypatch.setattr(updates.Updater, "first", first)
    assert mirror.LOCK not in bucket.files("runs/first")

    # On a third one, which knows nothing. What a checkpoint promises: its lines are there before it is.
    lines_before = []

    def watch(method: str, name: str) -> None:
        if method == "POST" and name.startswith("runs/first/checkpoints/4/"):
            lines_before.append(bucket.files("runs/first")["metrics.jsonl"].count(b"\n"))

    emulator.interfere = watch
    shutil.rmtree(tmp_path / "second")
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "third"))
    report = train(SFTTask(remote), workdir, recorded=remote, command="again")
    uploaded = bucket.files("runs/first")
    files = {p.relative_to(report.parent).as_posix(): p.read_bytes() for p in report.parent.rglob("*") if p.is_file()}
    assert files == {name: data for name, data in uploaded.items() if not name.startswith("checkpoints/")}
    assert {"run.json", "metrics.jsonl", "samples.jsonl", "report.html"} <= files.keys()
    assert lines(report.parent) == [metrics, samples]
    assert set(lines_before) == {5}, "those of steps 0 to 4"
