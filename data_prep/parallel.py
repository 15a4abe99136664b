"""Work on a stream in threads, results in the order of the stream."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING = 4  # items a thread that may be started ahead: enough to keep it busy, few enough to hold pictures of


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """As `map`, several items at a time; of a stream no more than a window is held.

    Args:
      function: called from `threads` threads; what it raises ends the iteration.
      items: drawn in this thread.
      threads: how many.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        window: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        try:
            for item in items:
                window.append(pool.submit(function, item))
                if len(window) >= _WAITING * threads:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()
