"""Host memory: what a process keeps of what it frees, and a run of many steps; each in a process of its own."""

import subprocess
import sys

import pytest
from processes import flags, run

from vlaa_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

_PROGRAM = """
import resource
import numpy as np
from vlaa_jax.training.host_memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 2**20

keep_freed_memory()
MEBIBYTES = {mebibytes}
np.ones(MEBIBYTES * 2**20, np.uint8)  # the first time
before, faults = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(MEBIBYTES * 2**20, np.uint8)
print(resident() - before, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults, before)
"""


def _measure(mebibytes: int) -> tuple[int, int, int]:
    """Growth of the resident memory in MiB, page faults of 20 arrays, resident memory after the first."""
    out = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(mebibytes=mebibytes)], check=True, capture_output=True, text=True
    ).stdout
    growth, faults, resident = (int(number) for number in out.split())
    return growth, faults, resident


@pytest.mark.quick
def test_small_blocks_are_kept_and_large_ones_go_back():
    growth, faults, small = _measure(8)
    assert growth < 8 and faults < 1024, "20 arrays of 2,048 pages reuse the first one's"
    growth, faults, large = _measure(512)
    assert growth < 8 and large < small + 64, "nothing of 512 MiB is kept"


def test_the_peak_of_a_run_stays_flat(folder, tmp_path):
    """A step of this run reads some 2 MB of pictures: kept, those of 40 steps would show."""
    (process,) = run(1, tmp_path / "run", flags(folder, "grpo", steps=60, checkpoint__every=20))
    assert process.popen.returncode == 0, process.said()
    peaks = [row["memory/host_peak"] / 2**20 for row in RunFolder(tmp_path / "run").metrics()[1:]]
    assert len(peaks) == 60 and peaks[-1] > 200
    assert peaks[-1] - peaks[20] < 24, peaks
