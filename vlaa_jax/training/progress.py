"""Progress of a run: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self, TextIO

from tqdm import tqdm


class Progress:
    """Shows how far a run is, chosen numbers, and the time that has passed and that is left.

    On a terminal a bar that stays in place; elsewhere (a file, a pipe, a CI log) one line a step without control
    characters: `train 12/150 | reward 0.431 | loss 0.02 | 0:38 passed, 7:16 left`.
    """

    def __init__(
        self,
        total: int,
        *,
        label: str,
        shown: Sequence[str],
        initial: int = 0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock.

        Args:
          total: steps of the whole run.
          label: what is counted: `train`, `evaluate`.
          shown: names of the values to show, in this order; a step without one of them leaves it out.
          initial: steps done before this start.
          file: where to show it; the error stream when not given.
          clock: seconds that never run backwards.
        """
        self._file = file or sys.stderr
        self._total, self._label, self._shown = total, label, list(shown)
        self._clock, self._began = clock, clock()
        self._first: tuple[int, float] | None = None
        self._bar = None
        if self._file.isatty():
            self._bar = tqdm(total=total, initial=initial, desc=label, file=self._file, dynamic_ncols=True, unit="step")

    def step(self, step: int, values: Mapping[str, float | int]) -> None:
        """Step number `step`, counted from 1, is done."""
        numbers = [f"{name} {values[name]:.4g}" for name in self._shown if name in values]
        if self._bar is not None:
            self._bar.set_postfix_str(" | ".join(numbers), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = self._clock()
        # The first step of a start compiles, so the pace is taken from those after it.
        self._first = self._first or (step, now)
        times = f"{tqdm.format_interval(now - self._began)} passed"
        if step > self._first[0]:
            pace = (now - self._first[1]) / (step - self._first[0])
            times += f", {tqdm.format_interval(pace * (self._total - step))} left"
        self._print(" | ".join([f"{self._label} {step}/{self._total}", *numbers, times]))

    def say(self, message: str) -> None:
        """A line of its own, which does not break the bar."""
        if self._bar is not None:
            tqdm.write(message, file=self._file)
        else:
            self._print(message)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print(self, line: str) -> None:
        print(line, file=self._file, flush=True)
