"""From encoded prompts to completions: bucketed shapes around the jitted programs, prompts that wait for a slot."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.processing.batches import Rows, bucket, pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.decode import Completions, admit, decode, empty_caches, open_slots, take
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.random_bits import split_draws
from vlaa_jax.rollout.sampler import Prefix, SamplingWeights, encode_images
from vlaa_jax.rollout.schedule import SEGMENT, Schedule, prompts_at_once, steps_of_segment
from vlaa_jax.sharding import chunks_of_rows, fetch_all, join_rows, own_rows, place_rows, row_shards


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """What a batch of prompts gave.

    Attributes:
      rows: `[B, P]` the prompts as they ran; of a frozen tower without patches.
      features: `[B, slots, D]` of a frozen tower: they serve reference and update too. None of one that trains.
      completions: `[B, G, C]`.
      row_steps: rows times steps that ran.
      row_steps_used: those that gave a token; the first of a completion comes from the prompt.
    """

    rows: Rows
    features: jax.Array | None
    completions: Completions
    row_steps: int = dataclasses.field(metadata={"static": True})
    row_steps_used: int = dataclasses.field(metadata={"static": True})

    @property
    def wasted_row_steps(self) -> float:
        """Share of them."""
        return 1 - self.row_steps_used / self.row_steps if self.row_steps else 0.0


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples groups at a fixed list of shapes.

    Attributes:
      sampling: the distribution.
      group: G.
      new_tokens: C, bound on a completion's length.
      prompt_buckets: lengths P that programs are compiled for.
      window_buckets: numbers of windows W likewise.
      seed: of the run.
      stream: `random_bits.TRAINING`, ...
      batch: prompts whose caches are on the chips at once, the others wait; 0 for all. It divides the prompts of a call
        where these are more.
      frozen_vision: whether a rollout keeps features in place of patches.
      segment: steps after which rows change places (`schedule`).
      row_ratio: of the numbers of rows that there are programs for.
    """

    sampling: Sampling
    group: int
    new_tokens: int
    prompt_buckets: tuple[int, ...]
    window_buckets: tuple[int, ...]
    seed: int
    stream: int
    batch: int = 0
    frozen_vision: bool = True
    segment: int = SEGMENT
    row_ratio: int = 2

    def shape(self, lengths: Sequence[int], windows: Sequence[int]) -> tuple[int, int]:
        """(P, W) of the program that prompts of these lengths and numbers of windows need."""
        length = bucket(int(max(lengths)), self.prompt_buckets, "a prompt's length")
        return length, bucket(int(max(windows)), self.window_buckets, "a prompt's window count")

    def __call__(
        self,
        weights: SamplingWeights,
        prompts: Sequence[EncodedPrompt],
        draws: Sequence[int],
        shape: tuple[int, int] | None = None,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Rollout:
        """Samples G completions of each of B prompts.

        Args:
          weights: the policy.
          prompts: those of this process's rows (`sharding.own_rows`).
          draws: `[B]` numbers that name their random bits.
          shape: (P, W) for all B of them; by default for `prompts`, where these are all.
          check_stop: called before every segment and every chunk of prompts; it may raise.
        """
        if shape is None:
            shape = self.shape([len(p.tokens) for p in prompts], [len(p.vision.frames) for p in prompts])
        return _Run(self, weights, prompts, np.asarray(draws), shape).run(check_stop)


class _Run:
    """One call of a generator."""

    def __init__(
        self,
        generator: Generator,
        weights: SamplingWeights,
        prompts: Sequence[EncodedPrompt],
        draws: np.ndarray,
        shape: tuple[int, int],
    ):
        self._generator, self._weights, self._prompts, self._shape = generator, weights, prompts, shape
        self._count = len(draws)
        self._batch = min(generator.batch or self._count, self._count)
        self._slots, chips = self._batch // row_shards(), row_shards()
        at_once = prompts_at_once(self._slots, shape[0])
        self._schedule = Schedule(
            chips, self._count // chips, self._slots, generator.group, at_once, generator.row_ratio
        )
        own = place_rows(split_draws(draws[own_rows(self._count)]))
        self._name = (jnp.uint32(generator.seed), jnp.uint32(generator.stream), own)

    def run(self, check_stop: Callable[[], None]) -> Rollout:
        """Images, then prompts and segments in turn."""
        generator, schedule, weights = self._generator, self._schedule, self._weights
        rows, features = self._see(check_stop)
        text = dataclasses.replace(rows, vision=None)
        group, new_tokens = generator.group, generator.new_tokens
        prefix, out = open_slots(weights, text, slots=self._slots, group=group, new_tokens=new_tokens)
        caches = empty_caches(prefix, rows=schedule.completions.shape[1], new_tokens=new_tokens)
        steps = steps_of_segment(generator.segment, new_tokens)
        column, row_steps = 0, 0
        while True:
            while admission := schedule.admit():
                check_stop()
                places = _place(admission.slots), _place(admission.prompts)
                prefix, out = admit(
                    weights, prefix, out, text, features, *places, *self._name, sampling=generator.sampling
                )
            if not schedule.busy:
                break
            check_stop()
            move = schedule.fit()
            if move is not None:
                caches = _take_each(list(caches), _place(move.rows))
                if move.slots is not None:
                    prefix = _take_slots(prefix, _place(move.slots))
            caches, out, ran = decode(
                weights,
                prefix,
                caches,
                out,
                _place(schedule.completions),
                _place(schedule.row_slots()),
                jnp.int32(column),
                *self._name,
                steps=steps,
                sampling=generator.sampling,
            )
            column = (column + steps) % new_tokens
            lengths, ended, ran = fetch_all((out.lengths, out.ended, ran))
            row_steps += int(ran.sum()) * schedule.completions.shape[1]
            schedule.retire((ended | (lengths == new_tokens)).reshape(row_shards(), -1, group))
        kept = features if generator.frozen_vision else None
        return Rollout(rows, kept, out, row_steps, int(lengths.sum()) - lengths.size)

    def _see(self, check_stop: Callable[[], None]) -> tuple[Rows, jax.Array]:
        """All prompts and the features of their images; a tower that trains keeps its patches."""
        own = own_rows(self._count)
        parts = []
        for chunk in chunks_of_rows(self._count, self._batch):
            jax.block_until_ready(parts[-1:])
            check_stop()
            places = np.searchsorted(own, chunk[own_rows(len(chunk))])
            rows = place_rows(pad_prompts([self._prompts[place] for place in places], *self._shape))
            features = encode_images(self._weights, rows.vision)
            if self._generator.frozen_vision:
                rows = dataclasses.replace(rows, vision=None)  # the patches have served
            parts.append((rows, features))
        return parts[0] if len(parts) == 1 else join_rows(parts)


def _place(numbers: np.ndarray) -> jax.Array:
    """Numbers of all chips `[chips, ...]` as rows of a batch."""
    flat = numbers.reshape(-1).astype(np.int32)
    return place_rows(flat[own_rows(len(flat))])


def _take_each(layers: list, source: jax.Array) -> tuple:
    """One layer after the other: what changes places exists twice for a moment, and that is then one layer."""
    for index in range(len(layers)):
        old, layers[index] = layers[index], take(layers[index], source)
        for leaf in old:
            leaf.delete()
    return tuple(layers)


def _take_slots(prefix: Prefix, source: jax.Array) -> Prefix:
    pairs = _take_each(list(zip(prefix.keys, prefix.values, strict=True)), source)
    rest = take((prefix.valid, prefix.state, prefix.position), source)
    return Prefix(*(tuple(part) for part in zip(*pairs, strict=True)), *rest)
