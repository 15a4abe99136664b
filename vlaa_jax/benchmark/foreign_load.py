"""How much of the machine other processes used while something was measured."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence

from vlaa_jax.errors import InputError

# Columns of the first line of /proc/stat that are work: all but idle, iowait, and guests, which user time contains.
# Stolen time counts: another machine on the same hardware slows a run as another process does.
_BUSY = (0, 1, 2, 5, 6, 7)
_PARENT, _OWN_TIMES = 1, slice(11, 15)  # fields of /proc/PID/stat after the name; times of waited children too


@dataclasses.dataclass(frozen=True)
class Reading:
    """Seconds since the machine started.

    Attributes:
      wall: of the clock.
      busy: CPU time of everything.
      own: CPU time of the measured processes and their descendants.
    """

    wall: float
    busy: float
    own: float


class CpuMeter:
    """Reads `/proc`."""

    def __init__(
        self,
        processes: Sequence[int],
        *,
        proc: pathlib.Path = pathlib.Path("/proc"),
        ticks: int = os.sysconf("SC_CLK_TCK"),
        clock=time.perf_counter,
    ):
        """Measures nothing yet.

        Args:
          processes: ids of the measured processes; what others use is foreign.
          proc: where the system shows its processes.
          ticks: units of the times there, a second.
          clock: wall seconds.

        Raises:
          InputError: the system shows no CPU times.
        """
        if not (proc / "stat").exists():
            raise InputError(
                f"{proc / 'stat'} does not exist: the benchmark reads the CPU time of other processes there"
            )
        self._processes, self._proc, self._ticks, self._clock = set(processes), proc, ticks, clock

    def read(self) -> Reading:
        """The present state."""
        columns = (self._proc / "stat").read_text().splitlines()[0].split()[1:]
        busy = sum(int(columns[place]) for place in _BUSY)
        return Reading(self._clock(), busy / self._ticks, self._own() / self._ticks)

    def _own(self) -> int:
        parents, times = {}, {}
        for entry in self._proc.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            parents[int(entry.name)] = int(fields[_PARENT])
            times[int(entry.name)] = sum(map(int, fields[_OWN_TIMES]))

        def is_own(process: int) -> bool:
            return process in self._processes or (process in parents and is_own(parents[process]))

        return sum(time for process, time in times.items() if is_own(process))


def foreign_share(before: Reading, after: Reading, cores: int) -> float:
    """Share of the machine's CPU time that went to others; at least 0, since the counters tick one after the other."""
    foreign = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, foreign / ((after.wall - before.wall) * cores))
