"""Ten steps of the demo from the policy that ships: what they gain lies where it lay when the band was recorded."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
from tiny_runs import ROOT

from data_prep.digit_scenes import builder
from vlaa_jax.training.run_report import read_results

# Greedy held-out reward of the start, and what ten steps add: 0.200 and 0.468 when recorded, with about four standard
# errors around them.
START, GAIN = (0.09, 0.31), (0.32, 0.61)


def test_ten_steps_gain_what_they_gained(tmp_path):
    splits = {
        name: dataclasses.replace(builder.SPLITS[name], records=records)
        for name, records in (("rl", 320), ("heldout", 195))
    }
    builder.build(tmp_path / "scenes", splits=splits, progress=False)
    fields = {
        "data.train": f"{tmp_path / 'scenes'}:rl",
        "data.evaluation": f"{tmp_path / 'scenes'}:heldout",
        "steps": 10,
        "optimizer.learning_rate": 1e-4,  # so few steps turn the greedy answers around
        "evaluation.every": 10,
        "checkpoint.every": 10,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "launch/tpu_train.py", "--config=configs/grpo_mixed.py", f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # optimised: it runs longer than it compiles
    subprocess.run([*command, *flags], cwd=ROOT, env=environment, check=True)

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(11))
    start, end = (
        np.mean([[answer["score"] for answer in row["answers"]] for row in read_results(tmp_path / "run", name)])
        for name in ("before-greedy", "after-greedy")
    )
    assert START[0] < start < START[1]
    assert GAIN[0] < end - start < GAIN[1]
    assert min(row["valid"] for row in rows[1:]) > 0.9
