"""Prompts for rollouts in an order drawn by seed; the position is the number of prompts drawn so far."""

import dataclasses
import functools
from collections.abc import Iterator

import grain
import numpy as np

from vlaa_jax.processing.encode import EncodedPrompt, Encoder
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.records import Record, RecordSource


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

    def batches(self, size: int, start: int, own_rows: np.ndarray) -> Iterator[list[Drawn]]:
        """The rows of this process in batches of `size` prompts, from draw `start` on.

        Images are made ready ahead in threads.

        Args:
          size: of a batch, over all processes.
          start: draw of its first row.
          own_rows: places in it.
        """
        own = len(own_rows)
        rows = grain.MapDataset.range(2**62).map(lambda i: self.draw(start + i // own * size + int(own_rows[i % own])))
        reads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=own)
        return iter(rows.to_iter_dataset(reads).batch(own, batch_fn=list))

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
