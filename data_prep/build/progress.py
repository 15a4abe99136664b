"""How far a step has come: a bar on a terminal, now and then a line in a log."""

import sys
import threading
import time

import tqdm

_SECONDS = 30.0  # between two lines


class Progress:
    """Counts of one worker process; its threads add to them."""

    def __init__(self, title: str, total: int):
        """Shows the start.

        Args:
          title: of the step.
          total: drafts that come, of all processes.
        """
        self._title, self._total = title, total
        self._lock = threading.Lock()
        self._done = self._asked = self._cached = self._aside = 0
        self._start = self._last = time.monotonic()
        # On a terminal only.
        self._bar = tqdm.tqdm(total=total, desc=title, leave=False, disable=None)

    def add(self, done: int, *, asked: int = 0, cached: int = 0, aside: int = 0) -> None:
        """Counts drafts that the step is done with.

        Args:
          done: drafts.
          asked: requests for them.
          cached: of these, answered from the cache.
          aside: drafts set aside.
        """
        with self._lock:
            self._done += done
            self._asked += asked
            self._cached += cached
            self._aside += aside
            self._bar.update(done)
            now = time.monotonic()
            if self._bar.disable and now - self._last >= _SECONDS:
                self._last = now
                rate = self._done / (now - self._start)
                print(f"{self._title}: {self._line()}, {rate:.1f} a second", file=sys.stderr, flush=True)

    def _line(self) -> str:
        return (
            f"{self._done:,} of {self._total:,} drafts, {self._asked:,} requests, {self._cached:,} from the cache, "
            f"{self._aside:,} set aside"
        )
