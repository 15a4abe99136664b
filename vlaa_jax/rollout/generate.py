"""From encoded prompts to completions: bucketed shapes around the jitted programs, prompts that wait for a slot."""

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
from vlaa_jax.rollout.sampler import Prefix, SamplingWeights, encode_images
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

    def start(
        self,
        weights: SamplingWeights,
        prompts: Sequence[EncodedPrompt],
        draws: Sequence[int],
        shape: tuple[int, int],
        check_stop: Callable[[], None],
    ) -> "Run":
        """What a call does, segment by segment; arguments as those of a call."""
        return Run(self, weights, prompts, np.asarray(draws), shape, check_stop)


class Run:
    """Samples groups, and gives those of this process as soon as they have ended.

    Attributes:
      rows, features: of `Rollout`.
      rollout: all groups, after the last of them was given.
    """

    rollout: Rollout

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
        self._generator, self._weights, self._check_stop = generator, weights, check_stop
        self._count = len(draws)
        self._batch = min(generator.batch or self._count, self._count)
        self._own = own_rows(self._count)
        self._name = (
            jnp.uint32(generator.seed),
            jnp.uint32(generator.stream),
            place_rows(split_draws(draws[self._own])),
        )
        self.rows, self._all_features = self._see(prompts, shape)
        self.features = self._all_features if generator.frozen_vision else None

    def __iter__(self) -> Iterator[Ended]:
        """Yields once a segment, when the next one has been started: what the caller then does costs the chips no time.

        The groups are those that ended in the segment before, in the order of the prompts; often there are none.
        """
        generator, weights = self._generator, self._weights
        group, new_tokens = generator.group, generator.new_tokens
        chips, slots = row_shards(), self._batch // row_shards()
        at_once = prompts_at_once(slots, self.rows.tokens.shape[1])
        schedule = Schedule(chips, self._count // chips, slots, group, at_once, generator.row_ratio)
        text = dataclasses.replace(self.rows, vision=None)
        prefix, out = open_slots(weights, text, slots=slots, group=group, new_tokens=new_tokens)
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
                    text,
                    self._all_features,
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
        row_steps = RowSteps(ran_all, int(lengths.sum()) - lengths.size)
        self.rollout = Rollout(self.rows, self.features, out, row_steps)
        yield groups

    def _fetch(self, out: Completions, which: np.ndarray) -> Ended:
        """The groups of this process among `which` `[B]`."""
        mine = which[self._own]
        leaves = (out.tokens, out.lengths, out.ended)
        if not mine.any():
            return Ended(self._own[mine], *(np.empty((0, *leaf.shape[1:]), leaf.dtype) for leaf in leaves))
        return Ended(self._own[mine], *(fetch_rows(leaf)[mine] for leaf in leaves))

    def _see(self, prompts: Sequence[EncodedPrompt], shape: tuple[int, int]) -> tuple[Rows, jax.Array]:
        """All prompts and the features of their images; a tower that trains keeps its patches."""
        parts = []
        for chunk in chunks_of_rows(self._count, self._batch):
            jax.block_until_ready(parts[-1:])
            self._check_stop()
            places = np.searchsorted(self._own, chunk[own_rows(len(chunk))])
            rows = place_rows(pad_prompts([prompts[place] for place in places], *shape))
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
