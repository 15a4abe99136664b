"""Where the seconds of a step went, and how many programs were compiled."""

import collections
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")
_END: Any = object()


class Clock:
    """Seconds by phase since the last `read`.

    Phases say what the loop waited for, not what ran: work in the background, on the host or on the chips, counts where
    its result was waited for.
    """

    def __init__(self) -> None:
        self._seconds: collections.Counter[str] = collections.Counter()
        self._open: list[str] = []  # phases around the present moment, the innermost last
        self._since = 0.0  # it has been the innermost

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a phase, but for that of phases inside it: no second counts twice."""
        self._charge()
        self._open.append(name)
        try:
            with jax.profiler.TraceAnnotation(name):
                yield
        finally:
            self._charge()
            self._open.pop()

    def waits(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items; what each is waited for belongs to a phase."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                item = next(iterator, _END)
            if item is _END:
                return
            yield item

    def read(self) -> dict[str, float]:
        """Phases and their seconds, and starts anew."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds

    def _charge(self) -> None:
        """Up to now the innermost phase ran."""
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now


class CompileCounter:
    """Programs compiled by this process since the counter was made."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
