"""Prompts for rollouts in an order drawn by seed; the position is the number of prompts drawn so far."""

import dataclasses
import functools
import queue
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

import numpy as np

from vlaa_jax.processing.encode import EncodedPrompt, Encoder
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource

T = TypeVar("T")
_THREADS = 2


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One prompt of the shuffled stream.

    Attributes:
      draw: its number in the stream, counted from 0 since the start of the run.
      record: the record.
      prompt: its arrays.
    """

    draw: int
    record: Record
    prompt: EncodedPrompt


class PromptData:
    """Endless stream of prompts: every usable record once an epoch, each epoch in an order of its own."""

    def __init__(self, source: RecordSource, index: Index, encoder: Encoder, *, seed: int):
        self._source = source
        self._good = index.good
        self._encoder = encoder
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def __len__(self) -> int:
        """Prompts of an epoch."""
        return len(self._good)

    def draw(self, number: int) -> Drawn:
        """Draw `number` of the stream."""
        record = self._source[self.place(number)]
        return Drawn(number, record, self._encoder.encode(record))

    def place(self, number: int) -> int:
        """Where the record of draw `number` lies in the shard set."""
        epoch, place = divmod(number, len(self._good))
        return int(self._order(epoch)[place])

    def _draw_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self._good)


class ReadAhead(Generic[T]):
    """Things that are known by a number, made ready in threads before they are asked for.

    Only time depends on what was expected: `take` gives the same without.
    """

    def __init__(self, read: Callable[[int], T]):
        """Starts the threads; they end with this object, or with the process.

        Args:
          read: makes one thing ready; it is called from several threads.
        """
        self._jobs: queue.SimpleQueue[tuple[int, Future[T]] | None] = queue.SimpleQueue()
        self._ready: dict[int, Future[T]] = {}
        for _ in range(_THREADS):
            threading.Thread(target=_work, args=(read, self._jobs), name="read-ahead", daemon=True).start()
        weakref.finalize(self, _end, self._jobs)

    def expect(self, numbers: Iterable[int]) -> None:
        """Begins to make these ready, in this order; anything else that was expected is forgotten."""
        numbers = [int(number) for number in numbers]
        for number in self._ready.keys() - set(numbers):
            self._ready.pop(number).cancel()
        for number in numbers:
            if number not in self._ready:
                self._ready[number] = Future()
                self._jobs.put((number, self._ready[number]))

    def take(self, numbers: Iterable[int]) -> list[T]:
        """These, when they are all ready; raises what making one of them raised."""
        numbers = [int(number) for number in numbers]
        if not self._ready.keys() >= set(numbers):
            self.expect(numbers)  # they do not wait for others
        return [self._ready.pop(number).result() for number in numbers]


def _work(read: Callable[[int], T], jobs: "queue.SimpleQueue[tuple[int, Future[T]] | None]") -> None:
    while (job := jobs.get()) is not None:
        number, future = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(read(number))
        except BaseException as error:
            future.set_exception(error)
        del job, future  # else the last one would stay in memory until the next


def _end(jobs: queue.SimpleQueue) -> None:
    for _ in range(_THREADS):
        jobs.put(None)
