"""From encoded prompts to completions: bucketed shapes around the jitted programs, prompts that wait for a slot.

A call samples from whole prompts. Whoever samples again and again from partial solutions of the same questions keeps
what the questions leave behind (`Generator.keep`) and goes on from there (`Generator.go_on`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.processing.batches import Rows, bucket, pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.decode import Completions, admit, decode, empty_caches, open_slots, take
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.random_bits import split_draws
from vlaa_jax.rollout.sampler import (
    ContinuedPrompts,
    Prefix,
    Prompts,
    SamplingWeights,
    WholePrompts,
    encode_images,
    keep_prompts,
)
from vlaa_jax.rollout.schedule import SEGMENT, Schedule, prompts_at_once, steps_of_segment
from vlaa_jax.sharding import chunks_of_rows, fetch_all, fetch_rows, join_rows, own_rows, place_rows, row_shards


@dataclasses.dataclass(frozen=True)
class RowSteps:
    """Rows times steps of a rollout.

    Attributes:
      ran: all.
      used: those that gave a token; the first of a completion comes from the prompt.
    """

    ran: int = 0
    used: int = 0

    @property
    def wasted(self) -> float:
        """Share of them."""
        return 1 - self.used / self.ran if self.ran else 0.0

    def __add__(self, other: "RowSteps") -> "RowSteps":
        return RowSteps(self.ran + other.ran, self.used + other.used)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """What a batch of prompts gave.

    Attributes:
      rows: `[B, P]` the prompts as they ran; of a frozen tower without patches.
      features: `[B, slots, D]` of a frozen tower: they serve reference and update too. None of one that trains.
      completions: `[B, G, C]`.
      row_steps: what they cost.
    """

    rows: Rows
    features: jax.Array | None
    completions: Completions
    row_steps: RowSteps = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Ended:
    """Groups that have ended, on the host.

    Attributes:
      places: `[b]` of their prompts among the B, rising.
      tokens, lengths, ended: `[b, G, C]` and `[b, G]` of `Completions`.
    """

    places: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray


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

    @property
    def segments(self) -> int:
        """Those of a completion of full length."""
        return -(-max(self.new_tokens - 1, 1) // steps_of_segment(self.segment, self.new_tokens))

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
        run = self.start(weights, prompts, draws, shape, check_stop)
        for _ in run:
            pass
        return run.rollout

    def keep(
        self,
        weights: SamplingWeights,
        questions: Sequence[EncodedPrompt],
        count: int,
        shape: tuple[int, int],
        check_stop: Callable[[], None] = lambda: None,
    ) -> Prefix:
        """Runs the images and the tokens of Q questions once; arguments as those of a call.

        Args:
          count: Q, of all processes.
        """
        seen, _ = _see(self, weights, questions, count, shape, check_stop)
        return keep_prompts(weights, seen.rows, seen.features)

    def go_on(
        self,
        weights: SamplingWeights,
        kept: Prefix,
        partial: Sequence[np.ndarray],
        draws: Sequence[int],
        length: int,
        check_stop: Callable[[], None] = lambda: None,
    ) -> tuple[Completions, RowSteps]:
        """Samples G continuations of each of B partial solutions, the same that a call with the whole prompts gives.

        Args:
          weights: the policy.
          kept: Q questions (`keep`).
          partial: tokens of each partial solution of this process's rows: as many of every question, one question after
            the other.
          draws: `[B]` numbers that name their random bits.
          length: T, of the program, which holds all partial solutions of the call.
          check_stop: as in a call.
        """
        draws = np.asarray(draws)
        count, chips = len(draws), row_shards()
        if count % len(kept.valid):
            raise ValueError(f"{count} partial solutions of {len(kept.valid)} questions")
        own = own_rows(count)
        tokens = np.zeros((len(own), length), np.int32)
        for row, part in zip(tokens, partial, strict=True):
            row[: len(part)] = part
        lengths = np.asarray([len(part) for part in partial], np.int32)
        first = own % (count // chips) // (count // len(kept.valid))
        rows = place_rows((first.astype(np.int32), tokens, lengths))
        run = Run(self, weights, ContinuedPrompts(kept, *rows), draws, check_stop)
        for _ in run:
            pass
        return run.completions, run.row_steps

    def start(
        self,
        weights: SamplingWeights,
        prompts: Sequence[EncodedPrompt],
        draws: Sequence[int],
        shape: tuple[int, int],
        check_stop: Callable[[], None],
    ) -> "WholeRun":
        """What a call does, segment by segment; arguments as those of a call."""
        return WholeRun(self, weights, prompts, np.asarray(draws), shape, check_stop)


class Run:
    """Samples groups, and gives those of this process as soon as they have ended.

    Attributes:
      completions, row_steps: of all groups, after the last of them was given.
    """

    completions: Completions
    row_steps: RowSteps

    def __init__(
        self,
        generator: Generator,
        weights: SamplingWeights,
        prompts: Prompts,
        draws: np.ndarray,
        check_stop: Callable[[], None],
    ):
        """Begins nothing yet.

        Args:
          generator: the distribution and the shapes.
          weights: the policy.
          prompts: B.
          draws: `[B]` numbers that name their random bits.
          check_stop: as in a call of the generator.
        """
        self._generator, self._weights, self._prompts, self._check_stop = generator, weights, prompts, check_stop
        self._count = len(draws)
        self._batch = min(generator.batch or self._count, self._count)
        self._own = own_rows(self._count)
        self._name = (
            jnp.uint32(generator.seed),
            jnp.uint32(generator.stream),
            place_rows(split_draws(draws[self._own])),
        )

    def __iter__(self) -> Iterator[Ended]:
        """Yields once a segment, when the next one has been started: what the caller then does costs the chips no time.

        The groups are those that ended in the segment before, in the order of the prompts; often there are none.
        """
        generator, weights = self._generator, self._weights
        group, new_tokens = generator.group, generator.new_tokens
        chips, slots = row_shards(), self._batch // row_shards()
        at_once = prompts_at_once(slots, self._prompts.shape[1])
        schedule = Schedule(chips, self._count // chips, slots, group, at_once, generator.row_ratio)
        prefix, out = open_slots(weights, self._prompts, slots=slots, group=group, new_tokens=new_tokens)
        caches = empty_caches(prefix, rows=schedule.completions.shape[1], new_tokens=new_tokens)
        steps = steps_of_segment(generator.segment, new_tokens)
        column, ran_all = 0, 0
        given, groups = np.zeros(self._count, bool), None
        while True:
            while admission := schedule.admit():
                self._check_stop()
                places = _place(admission.slots), _place(admission.prompts)
                prefix, out = admit(
                    weights,
                    prefix,
                    out,
                    self._prompts,
                    *places,
                    *self._name,
                    sampling=generator.sampling,
                )
            if not schedule.busy:
                break
            self._check_stop()
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
            if groups is not None:
                yield groups
            lengths, ended, ran = fetch_all((out.lengths, out.ended, ran))
            ran_all += int(ran.sum()) * schedule.completions.shape[1]
            done = ended | (lengths == new_tokens)
            schedule.retire(done.reshape(chips, -1, group))
            groups = self._fetch(out, done.all(axis=1) & ~given)
            given |= done.all(axis=1)
        self.completions, self.row_steps = out, RowSteps(ran_all, int(lengths.sum()) - lengths.size)
        yield groups

    def _fetch(self, out: Completions, which: np.ndarray) -> Ended:
        """The groups of this process among `which` `[B]`."""
        mine = which[self._own]
        leaves = (out.tokens, out.lengths, out.ended)
        if not mine.any():
            return Ended(self._own[mine], *(np.empty((0, *leaf.shape[1:]), leaf.dtype) for leaf in leaves))
        return Ended(self._own[mine], *(fetch_rows(leaf)[mine] for leaf in leaves))


class WholeRun(Run):
    """Samples groups of prompts that run from their first token on.

    Attributes:
      rows, features: of `Rollout`.
    """

    def __init__(
        self,
        generator: Generator,
        weights: SamplingWeights,
        prompts: Sequence[EncodedPrompt],
        draws: np.ndarray,
        shape: tuple[int, int],
        check_stop: Callable[[], None],
    ):
        """Runs the tower, see `Generator.start`."""
        seen, self.rows = _see(generator, weights, prompts, len(draws), shape, check_stop)
        self.features = seen.features if generator.frozen_vision else None
        super().__init__(generator, weights, seen, draws, check_stop)

    @property
    def rollout(self) -> Rollout:
        """All groups, after the last of them was given."""
        return Rollout(self.rows, self.features, self.completions, self.row_steps)


def _see(
    generator: Generator,
    weights: SamplingWeights,
    prompts: Sequence[EncodedPrompt],
    count: int,
    shape: tuple[int, int],
    check_stop: Callable[[], None],
) -> tuple[WholePrompts, Rows]:
    """All prompts with the features of their images, and their rows, which for a tower that trains keep the patches."""
    own, parts = own_rows(count), []
    for chunk in chunks_of_rows(count, min(generator.batch or count, count)):
        jax.block_until_ready(parts[-1:])
        check_stop()
        places = np.searchsorted(own, chunk[own_rows(len(chunk))])
        rows = place_rows(pad_prompts([prompts[place] for place in places], *shape))
        features = encode_images(weights, rows.vision)
        if generator.frozen_vision:
            rows = dataclasses.replace(rows, vision=None)  # the patches have served
        parts.append((rows, features))
    rows, features = parts[0] if len(parts) == 1 else join_rows(parts)
    return WholePrompts(dataclasses.replace(rows, vision=None), features), rows


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
