"""Prompts for rollouts in an order drawn by seed; the position is the number of prompts drawn so far."""

import dataclasses
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

    def __len__(self) -> int:
        """Prompts of an epoch."""
        return len(self._good)

    def batches(self, size: int, start: int) -> Iterator[list[Drawn]]:
        """Batches of `size` prompts from draw `start` on; images are made ready ahead in threads."""
        numbers = grain.MapDataset.range(start, 2**62).map(self.draw)
        reads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=size)
        return iter(numbers.to_iter_dataset(reads).batch(size, batch_fn=list))

    def draw(self, number: int) -> Drawn:
        """Draw `number` of the stream."""
        epoch, place = divmod(number, len(self._good))
        order = np.random.default_rng([self._seed, epoch]).permutation(self._good)
        record = self._source[int(order[place])]
        return Drawn(number, record, self._encoder.encode(record))
