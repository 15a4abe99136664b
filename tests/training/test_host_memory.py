"""Host memory of a run of many steps, in a process of its own."""

import sys

import pytest
from processes import flags, run

from vlaa_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_the_peak_of_a_run_stays_flat(folder, tmp_path):
    """A step of this run reads some 2 MB of pictures: kept, those of 40 steps would show."""
    (process,) = run(1, tmp_path / "run", flags(folder, "grpo", steps=60, checkpoint__every=20))
    assert process.popen.returncode == 0, process.said()
    peaks = [row["memory/host_peak"] / 2**20 for row in RunFolder(tmp_path / "run").metrics()[1:]]
    assert len(peaks) == 60 and peaks[-1] > 200
    assert peaks[-1] - peaks[20] < 24, peaks
