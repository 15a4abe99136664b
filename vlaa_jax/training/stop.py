"""Ctrl-C and SIGTERM: every process of a run stops at the same place."""

import signal
from typing import Self

from vlaa_jax import distributed


class Stopped(Exception):
    """Work was left because the run was asked to stop."""


class StopRequest:
    """Made by the first Ctrl-C or SIGTERM (the notice of a spot machine) on any process; a second one ends at once."""

    def __enter__(self) -> Self:
        self._signal: int | None = None
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> int | None:
        """The signal that some process has got. All processes must ask at the same places, and get the same answer."""
        return max((number for number in distributed.gather(self._signal) if number is not None), default=None)

    def check(self) -> None:
        """Raises `Stopped` on all processes when one of them was asked to stop."""
        if self.asked() is not None:
            raise Stopped

    def _note(self, number: int, _: object) -> None:
        self._signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
