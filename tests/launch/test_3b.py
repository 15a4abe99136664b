"""`:3b` of both configs on a checkpoint of the published widths, cut in depth: steps, SIGKILL, resume, export."""

import json
import os
import signal
import subprocess
import sys
import time

import cut_3b
import pytest
from tiny_runs import ROOT

from data_prep.from_jsonl import import_jsonl

pytestmark = pytest.mark.slow

# What the README names: 4 prompts a step, and the rows that fit beside the optimizer into 24 GiB (the reference
# implementation of attention holds the square of a row's patches).
GRPO = {"rollout.prompts": 4, "updates.completions": 8, "updates.micro_batch": 1}
SFT = {
    "updates.examples": 4,
    "updates.rows": 1,
    "updates.row_tokens": 1024,
    "updates.row_windows": 40,
    "updates.row_targets": 512,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("3b")
    cut_3b.write_checkpoint(root / "policy")
    import_jsonl(str(cut_3b.write_questions(root / "questions")), str(root / "questions"), str(root / "shards"))
    return root


@pytest.mark.parametrize(("config", "fields"), [("grpo_mixed", GRPO), ("sft", SFT)])
def test_3b_runs_is_killed_resumes_and_exports(folder, config, fields):
    fields = {
        "model.checkpoint": folder / "policy",
        "data.train": f"{folder / 'shards'}:train",
        "steps": 3,
        "checkpoint.every": 1,
        **fields,
    }
    run = folder / config
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "launch/tpu_train.py", f"--config=configs/{config}.py:3b", f"--workdir={run}", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "VLAA_JAX_CACHE": str(folder / "cache")}

    first = subprocess.Popen(command, cwd=ROOT, env=environment)
    while first.poll() is None and not (run / "checkpoints" / "2").exists():
        time.sleep(0.5)
    assert first.poll() is None, "ended before its second checkpoint"
    first.send_signal(signal.SIGKILL)
    first.wait()

    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]

    out = folder / f"{config}-policy"
    subprocess.run(
        [sys.executable, "launch/export.py", f"--workdir={run}", f"--out={out}"], cwd=ROOT, env=environment, check=True
    )
    ask = [
        "launch/ask.py",
        f"--checkpoint={out}",
        f"--image={folder / 'questions' / '0.png'}",
        "--question=What is it?",
    ]
    answer = subprocess.run(
        [sys.executable, *ask, "--new-tokens=8", "--seed=0"],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "What is it?" in answer.stdout
