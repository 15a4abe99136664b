"""Batches for supervised fine-tuning: several examples packed in a row, exact to resume.

Rows are packed by the index, so every process knows all of them and encodes those of its own chips.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from vlaa_jax.processing.batches import Rows, Targets, assign_rows, pack
from vlaa_jax.processing.conversation import completion_text
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.shards import RecordSource


@dataclasses.dataclass(frozen=True)
class PackedShape:
    """Shape of every micro-batch.

    Attributes:
      rows: B.
      length: T.
      windows: W.
      targets: S, answer tokens that a row can hold.
    """

    rows: int
    length: int
    windows: int
    targets: int


@dataclasses.dataclass(frozen=True)
class SFTUpdate:
    """One update.

    Attributes:
      micro_batches: their rows that belong to this process.
      ids: of all examples.
      tokens: of all examples.
    """

    micro_batches: list[tuple[Rows, Targets]]
    ids: list[str]
    tokens: int


class SFTData:
    """Updates of exactly `examples` examples (the last of an epoch holds what is left), in an order drawn by seed."""

    def __init__(
        self,
        source: RecordSource,
        index: Index,
        encoder: Encoder,
        shape: PackedShape,
        *,
        examples: int,
        seed: int,
        own_rows: np.ndarray,
    ):
        """Reads nothing yet.

        Args:
          source, index, encoder: the shard set and how it becomes arrays.
          shape: of a micro-batch.
          examples: of an update.
          seed: of the order.
          own_rows: places of this process's rows in a micro-batch.
        """
        self._source = source
        self._index = index
        self._encoder = encoder
        self._shape = shape
        self._examples = examples
        self._seed = seed
        self._own_rows = own_rows
        self.updates_per_epoch = -(-len(index.good) // examples)

    def updates(self, start: int) -> Iterator[SFTUpdate]:
        """Updates from number `start` on, endlessly; the position of a run is that number."""
        numbers = grain.MapDataset.range(start, 2**31).map(self.update)
        return iter(numbers.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))

    def update(self, number: int) -> SFTUpdate:
        """Update `number`, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.updates_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(self._index.good)
        chosen = order[place * self._examples : (place + 1) * self._examples]
        lengths = self._index.prompt[chosen] + self._index.completion[chosen]
        rows = assign_rows(
            lengths.tolist(),
            self._index.windows[chosen].tolist(),
            self._shape.length,
            self._shape.windows,
            targets=self._index.completion[chosen].tolist(),
            row_targets=self._shape.targets,
        )
        rows += [[]] * (-len(rows) % self._shape.rows)
        starts = range(0, len(rows), self._shape.rows)
        return SFTUpdate(
            [self._pack([rows[start + own] for own in self._own_rows], chosen) for start in starts],
            [str(self._index.ids[i]) for i in chosen],
            int(lengths.sum()),
        )

    def _example(self, position: int):
        record = self._source[position]
        return self._encoder.encode(record), self._encoder.completion(completion_text(record.trace, record.answer))

    def _pack(self, rows: Sequence[Sequence[int]], chosen: np.ndarray) -> tuple[Rows, Targets]:
        shape = self._shape
        return pack(
            [[self._example(int(chosen[i])) for i in row] for row in rows],
            count=len(rows),
            length=shape.length,
            windows=shape.windows,
            targets=shape.targets,
            slots_per_window=self._encoder.geometry.window_units**2,
            no_vision=self._encoder.no_vision,
        )
