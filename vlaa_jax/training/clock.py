"""Where the seconds of a step went, and how many programs were compiled."""

import collections
import contextlib
import time
from collections.abc import Iterator

import jax


class Clock:
    """Seconds by phase since the last `read`."""

    def __init__(self) -> None:
        self._seconds: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a phase; the block must wait for its own device work."""
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation(name):
            yield
        self._seconds[name] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Phases and their seconds, and starts anew."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds


class CompileCounter:
    """Programs compiled by this process since the counter was made."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
