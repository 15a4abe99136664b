"""From encoded prompts to completions: bucketed shapes around the jitted programs, prompts that wait for a slot."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.processing.batches import Rows, bucket, pad_prompts, pad_text
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.decode import Completions, admit, decode, empty_caches, open_slots, take
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.random_bits import split_draws
from vlaa_jax.rollout.sampler import Prefix, SamplingWeights, encode_images, prefill
from vlaa_jax.rollout.schedule import SEGMENT, Admission, Schedule, prompts_at_once, steps_of_segment
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
      batch: prompts whose caches are on the chips at once, those after them wait; 0 for all.
      frozen_vision: whether a rollout keeps features in place of patches.
      segment: steps after which rows change places (`schedule`).
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
          check_stop: called before every segment; it may raise.
        """
        if shape is None:
            shape = self.shape([len(p.tokens) for p in prompts], [len(p.vision.frames) for p in prompts])
        return _Run(self, weights, prompts, np.asarray(draws), shape).finish(check_stop)


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
        self._total, self._chips = len(draws), row_shards()
        self._own = own_rows(self._total)
        self._batch = min(generator.batch or self._total, self._total)
        slots = self._batch // self._chips
        at_once = prompts_at_once(slots, shape[0])
        self._schedule = Schedule(self._chips, self._total // self._chips, slots, generator.group, at_once)
        self._name = (
            jnp.uint32(generator.seed),
            jnp.uint32(generator.stream),
            place_rows(split_draws(draws[self._own])),
        )
        self._held: tuple[Prefix, jax.Array | None, Completions] | None = None

    def finish(self, check_stop: Callable[[], None]) -> Rollout:
        """All segments."""
        generator, schedule = self._generator, self._schedule
        steps = steps_of_segment(generator.segment, generator.new_tokens)
        caches, column, row_steps = None, 0, 0
        while True:
            check_stop()
            while admission := schedule.admit():
                self._admit(admission)
            if not schedule.busy:
                break
            prefix, features, out = self._held
            move = schedule.fit()
            rows = schedule.completions.shape[1]
            if caches is None:
                caches = empty_caches(prefix, rows=rows, new_tokens=generator.new_tokens)
            elif move is not None:
                caches = _take_each(list(caches), _place(move.rows))
            if move is not None and move.slots is not None:
                prefix = _take_slots(prefix, _place(move.slots))
            self._held = None  # given up
            caches, out, ran = decode(
                self._weights,
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
            self._held = prefix, features, out
            column = (column + steps) % generator.new_tokens
            lengths, ended, ran = fetch_all((out.lengths, out.ended, ran))
            row_steps += int(ran.sum()) * rows
            done = ended | (lengths == generator.new_tokens)
            schedule.retire(done.reshape(self._chips, -1, generator.group))
        _, features, out = self._held
        used = int(lengths.sum()) - lengths.size
        return Rollout(self._rows(), features, out, row_steps, used)

    def _admit(self, admission: Admission) -> None:
        """Runs prompts and gives them slots."""
        generator, weights = self._generator, self._weights
        chips, at_once = admission.prompts.shape
        each = self._total // self._chips
        # A place that no prompt fills runs one all the same; what it gives is dropped.
        wanted = np.arange(chips)[:, None] * each + np.minimum(admission.prompts, each - 1)
        mine = wanted.ravel()[own_rows(chips * at_once)]
        chosen = [self._prompts[place] for place in np.searchsorted(self._own, mine)]
        rows = place_rows(pad_prompts(chosen, *self._shape))
        features = encode_images(weights, rows.vision)
        rows = dataclasses.replace(rows, vision=None)  # the patches have served
        fresh = prefill(weights, rows, features), None
        if generator.frozen_vision:
            fresh = fresh[0], features
        if self._held is None:
            self._held = open_slots(
                *fresh,
                prompts=each,
                slots=self._batch // self._chips,
                group=generator.group,
                new_tokens=generator.new_tokens,
            )
        held, self._held = self._held, None  # given up
        places = _place(admission.slots), _place(admission.prompts)
        self._held = admit(weights, *held, fresh, *places, *self._name, sampling=generator.sampling)

    def _rows(self) -> Rows:
        """The prompts for what comes after: text, and the patches of a tower that trains."""
        if self._generator.frozen_vision:
            return place_rows(pad_text(self._prompts, self._shape[0]))
        chunks = []
        for rows in chunks_of_rows(self._total, self._batch):
            places = np.searchsorted(self._own, rows[own_rows(len(rows))])
            chunks.append(place_rows(pad_prompts([self._prompts[place] for place in places], *self._shape)))
        return join_rows(chunks)


def _place(numbers: np.ndarray) -> jax.Array:
    """Numbers of all chips `[chips, ...]` as rows of a batch."""
    flat = numbers.reshape(-1).astype(np.int32)
    return place_rows(flat[own_rows(len(flat))])


def _take_each(layers: list, source: jax.Array) -> tuple:
    """One layer after the other: what changes places exists twice for a moment, and that is then one layer."""
    for index in range(len(layers)):
        layers[index] = take(layers[index], source)
    return tuple(layers)


def _take_slots(prefix: Prefix, source: jax.Array) -> Prefix:
    pairs = _take_each(list(zip(prefix.keys, prefix.values, strict=True)), source)
    rest = take((prefix.valid, prefix.state, prefix.position), source)
    return Prefix(*(tuple(part) for part in zip(*pairs, strict=True)), *rest)
