"""What a process keeps of the memory that it frees; each case in a process of its own, the settings last."""

import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

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


def test_small_blocks_are_kept_and_large_ones_go_back():
    growth, faults, small = _measure(8)
    assert growth < 8 and faults < 1024, "20 arrays of 2,048 pages reuse the first one's"
    growth, faults, large = _measure(512)
    assert growth < 8 and large < small + 64, "nothing of 512 MiB is kept"
