"""Where the seconds of a step went, and which programs were compiled."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")
_END: Any = object()


class Clock:
    """Seconds by phase since the last `read`, and a word before each wait for a program.

    Phases say what the loop waited for, not what ran: work in the background, on the host or on the chips, counts where
    its result was waited for.
    """

    def __init__(self, programs: int = 0, say: Callable[[str], None] = lambda message: None):
        """Starts with nothing.

        Args:
          programs: most of them that `program` will name.
          say: shows a line.
        """
        self._seconds: collections.Counter[str] = collections.Counter()
        self._open: list[str] = []  # phases around the present moment, the innermost last
        self._since = 0.0  # it has been the innermost
        self._programs, self._say = programs, say
        self._ready: set[str] = set()

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

    def program(self, name: str) -> None:
        """Called before a large program runs; the first time it is compiled, which takes seconds to minutes.

        Args:
          name: what the program does and at which sizes.
        """
        if name not in self._ready:
            self._ready.add(name)
            self._say(f"preparing program {len(self._ready)} of at most {self._programs}: {name}")

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
