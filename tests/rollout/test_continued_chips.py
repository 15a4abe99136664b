"""Partial solutions stay with the chip of their question, and their programs can be compiled ahead."""

import os
import pathlib
import subprocess
import sys

import numpy as np
from xla_flags import of_devices

HERE = pathlib.Path(__file__).parent


def test_chips_change_no_continuation_and_run_what_was_compiled_ahead(tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": of_devices(4),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE.parents[1], HERE))),
    }
    path = tmp_path / "continued.npz"
    subprocess.run([sys.executable, HERE / "continued_of_chips.py", path], check=True, env=environment, timeout=500)
    with np.load(path) as found:
        for name in ("tokens", "lengths", "ended"):
            np.testing.assert_array_equal(found[f"four|{name}"], found[f"one|{name}"], err_msg=name)
        np.testing.assert_allclose(found["four|log_probability"], found["one|log_probability"], atol=1e-4)
        assert len(np.unique(found["one|lengths"])) > 4
        for run in ("one", "four"):
            assert found[f"{run}|ahead"] >= 6 and found[f"{run}|again"] == 0
