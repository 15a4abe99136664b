"""Alternating runs of two sides, each repeated while others disturb it."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any

FOREIGN_LIMIT = 0.03  # of the machine's CPU time: foreign load slows torch several times more than XLA


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of one side.

    Attributes:
      seconds: of the wall clock.
      cpu_seconds: of the side's processes.
      foreign: share of the machine that others used.
      result: what the side says about it.
    """

    seconds: float
    cpu_seconds: float
    foreign: float
    result: dict[str, Any]

    @property
    def clean(self) -> bool:
        return self.foreign <= FOREIGN_LIMIT


@dataclasses.dataclass(frozen=True)
class Measured:
    """The runs of one side that count."""

    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float:
        """Median."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def cpu_seconds(self) -> float:
        """Median."""
        return statistics.median(run.cpu_seconds for run in self.runs)

    @property
    def clean(self) -> int:
        """Number of runs that nothing disturbed."""
        return sum(run.clean for run in self.runs)

    def median(self, name: str) -> float:
        """Median of a number that the runs report."""
        return statistics.median(run.result[name] for run in self.runs)

    def json(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "clean_runs": self.clean,
            "runs": [dataclasses.asdict(run) for run in self.runs],
        }


@dataclasses.dataclass(frozen=True)
class Alternation:
    """How often everything runs.

    Attributes:
      runs: of each side.
      repeats: at most of a run that others disturbed.
      say: shows a line.
    """

    runs: int
    repeats: int
    say: Callable[[str], None]


def alternate(label: str, sides: Mapping[str, Callable[[], Run]], how: Alternation) -> dict[str, Measured]:
    """Runs one side after the other, `how.runs` times; a first run of each, which compiles, does not count.

    A run in which others took more than `FOREIGN_LIMIT` is repeated at once. When it may not be repeated any more, the
    least disturbed one counts, and `Measured.clean` tells.

    Args:
      label: what is measured.
      sides: by name, what makes one run.
      how: how often.
    """
    kept: dict[str, list[Run]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for number in range(how.runs):
        for name, side in sides.items():
            tries: list[Run] = []
            while len(tries) <= how.repeats and not (tries and tries[-1].clean):
                run = side()
                tries.append(run)
                note = "" if run.clean else ": disturbed"
                others = f"others {100 * run.foreign:.1f} %{note}"
                how.say(f"{label}: {name} {number + 1}/{how.runs}: {run.seconds:.3f} s, {others}")
            kept[name].append(min(tries, key=lambda run: run.foreign))
    return {name: Measured(tuple(done)) for name, done in kept.items()}
