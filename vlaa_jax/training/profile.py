"""A trace of some steps of a run: what the host and the chips did when, for XProf and TensorBoard."""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Self

import jax

from vlaa_jax.errors import InputError
from vlaa_jax.training.clock import Clock


def profiled_steps(value: str) -> range:
    """The steps that `--profile=STEP,N` names.

    Raises:
      InputError: it is written in another way.
    """
    match = re.fullmatch(r"0*([1-9]\d*),0*([1-9]\d*)", value)
    if match is None:
        raise InputError(f"--profile is {value!r}: expected STEP,N, two whole numbers above 0, as --profile=10,2")
    first, count = map(int, match.groups())
    return range(first, first + count)


class Profiler:
    """Traces those steps of a start that are to be traced; each phase of `Clock` has its name there."""

    def __init__(self, directory: pathlib.Path, steps: range):
        """Starts nothing yet.

        Args:
          directory: of the trace.
          steps: those to trace; a resumed run traces what is left of them.
        """
        self._directory, self._steps = directory, steps
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int, clock: Clock) -> Iterator[None]:
        """The block is step `number`."""
        if number in self._steps and not self._running:
            with clock.phase("profile"):
                jax.profiler.start_trace(self._directory)
            self._running = True
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            yield
        if self._running and number + 1 not in self._steps:
            with clock.phase("profile"):
                self.close()

    def close(self) -> None:
        """Writes what was traced."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
