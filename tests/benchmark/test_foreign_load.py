"""The CPU time of other processes, from a `/proc` that the test writes."""

import os
import time

import pytest

from vlaa_jax.benchmark.foreign_load import CpuMeter, Reading, foreign_share
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick

TICKS = 100  # a second


def write_machine(proc, *, user=0, nice=0, system=0, idle=0, iowait=0, irq=0, softirq=0, steal=0, guest=0):
    columns = (user, nice, system, idle, iowait, irq, softirq, steal, guest, 0)
    (proc / "stat").write_text(f"cpu  {' '.join(map(str, columns))}\ncpu0 9 9 9 9 9 9 9 9 9 9\nintr 1 2 3\n")


def write_process(proc, number, parent, *, user=0, system=0, children_user=0, children_system=0, name="python"):
    (proc / str(number)).mkdir(exist_ok=True)
    before = "0 0 0 0 0 0 0 0 0"  # group to majflt of children
    times = f"{user} {system} {children_user} {children_system}"
    (proc / str(number) / "stat").write_text(f"{number} ({name}) S {parent} {before} {times} 20 0 3 0\n")


def meter(proc, processes):
    return CpuMeter(processes, proc=proc, ticks=TICKS, clock=lambda: 5.0)


def test_busy_is_all_but_idle_and_guests(tmp_path):
    write_machine(tmp_path, user=100, nice=20, system=30, idle=9000, iowait=700, irq=4, softirq=6, steal=40, guest=50)
    assert meter(tmp_path, []).read() == Reading(wall=5.0, busy=2.0, own=0.0)


def test_own_time_is_that_of_the_processes_and_all_they_started(tmp_path):
    write_machine(tmp_path, user=1000)
    write_process(tmp_path, 1, 0, user=900)
    write_process(tmp_path, 10, 1, user=100, system=20)
    write_process(tmp_path, 11, 10, user=7, name="a (strange) name")
    write_process(tmp_path, 12, 11, system=3, children_user=50, children_system=10)
    write_process(tmp_path, 20, 1, user=400)
    (tmp_path / "30").mkdir()  # a process that has just ended
    assert meter(tmp_path, [10]).read().own == pytest.approx(1.90)
    assert meter(tmp_path, [10, 20]).read().own == pytest.approx(5.90)


def test_share_is_of_the_whole_machine():
    before, after = Reading(wall=10.0, busy=50.0, own=20.0), Reading(wall=14.0, busy=57.0, own=26.76)
    # 7 s were busy, 6.76 s of them ours: 0.24 s of 2 x 4 s.
    assert foreign_share(before, after, cores=2) == pytest.approx(0.03)
    assert foreign_share(before, after, cores=1) == pytest.approx(0.06)


def test_counters_that_tick_late_make_no_negative_share():
    assert foreign_share(Reading(0.0, 1.0, 1.0), Reading(1.0, 2.0, 2.01), cores=2) == 0.0


def test_this_machine_shows_a_process_that_computes():
    meter = CpuMeter([os.getpid()])
    before = meter.read()
    deadline = time.monotonic() + 30
    while (after := meter.read()).own - before.own < 0.05 or after.busy - before.busy < 0.05:
        assert time.monotonic() < deadline, (before, after)
        sum(range(100_000))
    assert after.wall > before.wall


def test_a_system_without_proc_is_refused(tmp_path):
    with pytest.raises(InputError, match="the benchmark reads the CPU time of other processes there"):
        CpuMeter([1], proc=tmp_path / "none")
