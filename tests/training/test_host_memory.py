"""Host memory: large pages, and a run of many steps; each in a process of its own."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest
from processes import flags, run

from vlaa_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

_PROGRAM = """
import os, resource, sys
from vlaa_jax.training.host_memory import use_large_pages

use_large_pages()
import numpy as np

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**26, np.uint8)
print(*sys.argv[1:], resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.environ["GLIBC_TUNABLES"])
"""


def _run(tunables: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    given = {} if tunables is None else {"GLIBC_TUNABLES": tunables}
    command = [sys.executable, "-c", _PROGRAM, "first", "second"]
    return subprocess.run(command, env=environment | given, check=True, capture_output=True, text=True).stdout.split()


def _large_pages_exist() -> bool:
    return _SETTING.exists() and "[never]" not in _SETTING.read_text() and platform.libc_ver() >= ("glibc", "2.35")


@pytest.mark.quick
@pytest.mark.skipif(not _large_pages_exist(), reason="the kernel or the allocator knows no large pages")
def test_a_process_starts_once_more_with_large_pages():
    *arguments, faults, tunables = _run(None)
    assert arguments == ["first", "second"] and tunables == "glibc.malloc.hugetlb=1"
    assert int(faults) < 20 * 16384 / 10, "20 arrays of 16,384 small pages"


@pytest.mark.quick
def test_a_setting_made_before_stays():
    assert _run("glibc.malloc.hugetlb=0")[-1] == "glibc.malloc.hugetlb=0"
    assert _run("glibc.malloc.perturb=3")[-1] == "glibc.malloc.perturb=3:glibc.malloc.hugetlb=1"


def test_the_peak_of_a_run_stays_flat(folder, tmp_path):
    """A step of this run reads some 2 MB of pictures: kept, those of 40 steps would show."""
    (process,) = run(1, tmp_path / "run", flags(folder, "grpo", steps=60, checkpoint__every=20))
    assert process.popen.returncode == 0, process.said()
    peaks = [row["memory/host_peak"] / 2**20 for row in RunFolder(tmp_path / "run").metrics()[1:]]
    assert len(peaks) == 60 and peaks[-1] > 200
    assert peaks[-1] - peaks[20] < 24, peaks
