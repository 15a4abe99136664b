"""Batches for supervised fine-tuning: several examples packed in a row, exact to resume."""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from vlaa_jax.processing.batches import Rows, Targets, assign_rows, pack
from vlaa_jax.processing.conversation import completion_text
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.records import RecordSource


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
    """The micro-batches of one update and the ids of its examples."""

    micro_batches: list[tuple[Rows, Targets]]
    ids: list[str]


class SFTData:
    """Updates of exactly `examples` examples (the last of an epoch holds what is left), in an order drawn by seed."""

    def __init__(
        self, source: RecordSource, index: Index, encoder: Encoder, shape: PackedShape, *, examples: int, seed: int
    ):
        self._source = source
        self._index = index
        self._encoder = encoder
        self._shape = shape
        self._examples = examples
        self._seed = seed
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
        encoded = [[self._example(int(chosen[i])) for i in row] for row in rows]
        size = self._shape.rows
        return SFTUpdate(
            [self._pack(encoded[at : at + size]) for at in range(0, len(encoded), size)],
            [str(self._index.ids[i]) for i in chosen],
        )

    def _example(self, position: int):
        record = self._source[position]
        return self._encoder.encode(record), self._encoder.completion(completion_text(record.trace, record.answer))

    def _pack(self, rows: Sequence) -> tuple[Rows, Targets]:
        shape = self._shape
        return pack(
            rows,
            count=shape.rows,
            length=shape.length,
            windows=shape.windows,
            targets=shape.targets,
            slots_per_window=self._encoder.geometry.window_units**2,
        )
