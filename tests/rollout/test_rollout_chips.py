"""A rollout split over chips, with refill and compaction, against one chip that waits for the longest row."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from xla_flags import of_devices

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("chips") / "rollouts.npz"
    environment = os.environ | {
        "XLA_FLAGS": of_devices(4),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE.parents[1]))),
    }
    subprocess.run([sys.executable, HERE / "rollout_of_chips.py", path], check=True, env=environment, timeout=500)
    out: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            run, leaf = name.split("|")
            out.setdefault(run, {})[leaf] = arrays[name]
    return out


@pytest.mark.parametrize("run", ["fsdp 4", "tensor 2"])
def test_chips_and_refill_change_no_sample(found, run):
    one, many = found["one"], found[run]
    for name in ("tokens", "lengths", "ended", "texts", "positions"):
        np.testing.assert_array_equal(many[name], one[name], err_msg=name)
    for name in ("log_probability", "sampled_log_probability", "features"):
        np.testing.assert_allclose(many[name], one[name], atol=1e-4, err_msg=name)
    assert many["row_steps"] < 0.8 * one["row_steps"]


@pytest.mark.parametrize("run", ["fsdp 4", "tensor 2"])
def test_programs_compiled_ahead_are_those_that_run(found, run):
    assert found[run]["ahead"] >= 6 and found[run]["again"] == 0
