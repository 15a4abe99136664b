"""What a step learns from: prompts are drawn, answered and judged; while the chips answer, the host judges."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.prompt_data import Drawn, PromptData, ReadAhead
from vlaa_jax.processing.records import RecordSource
from vlaa_jax.rewards import Request, score_many
from vlaa_jax.rollout.generate import Generator, Rollout, join
from vlaa_jax.rollout.sampler import Completions, SamplingWeights, sampling_weights
from vlaa_jax.sharding import fetch_rows, own_rows, replace_rows
from vlaa_jax.training import settings
from vlaa_jax.training.answers import Judged
from vlaa_jax.training.clock import Clock


@dataclasses.dataclass(frozen=True)
class Experience:
    """Groups that a step learns from.

    Attributes:
      rollout: `[B, G, C]`, on the chips.
      judged: B groups, on every process.
      dropped: others that were sampled for this step.
    """

    rollout: Rollout
    judged: list[Judged]
    dropped: list[Judged]

    @property
    def all(self) -> list[Judged]:
        """All that were sampled: what is said of the policy must not hang on which of them are learnt from."""
        return self.judged + self.dropped

    @property
    def kept_share(self) -> float:
        """Groups with signal that are learnt from, of all."""
        return sum(map(_has_signal, self.judged)) / len(self.all)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What a later step will judge and learn from.

    Attributes:
      drawn: prompts of this process's rows.
      rollout: `[B, G, C]`; it may still be running.
    """

    drawn: list[Drawn]
    rollout: Rollout


class Collector:
    """Makes the experience of one step after the other."""

    def __init__(
        self,
        config: ConfigDict,
        generator: Generator,
        source: RecordSource,
        index: Index,
        encoder: Encoder,
        **verify: Any,
    ):
        """Reads nothing yet.

        Args:
          config: of the run.
          generator: samples.
          source, index, encoder: the shard set and how it becomes arrays.
          verify: further arguments of `rewards.score_many`.

        Raises:
          InputError: `config.rollout.oversample` is below 1, or `config.rollout.ahead` is without what it needs.
        """
        if config.rollout.ahead and config.rollout.oversample != 1:
            raise InputError("config.rollout.ahead and config.rollout.oversample above 1 exclude each other")
        if config.rollout.ahead and not config.objective.importance_cap > 0:
            raise InputError(
                "config.rollout.ahead samples with weights one step old: expected config.objective.importance_cap "
                "above 0, as 2.0"
            )
        if not config.rollout.oversample >= 1:
            raise InputError(f"config.rollout.oversample is {config.rollout.oversample}: expected 1 (off) or more")
        self._config, self._generator, self._index, self._encoder = config, generator, index, encoder
        self._verify = verify
        self.data = PromptData(source, index, encoder, seed=config.seed)
        self._records = ReadAhead(self.data.draw)

    def collect(self, model: Qwen2_5_VL, draw: int, clock: Clock, check_stop: Callable[[], None]) -> Experience:
        """The groups of a step.

        With `config.rollout.oversample` above 1 this is dynamic sampling (DAPO, arXiv 2503.14476, 3.2) at fixed shapes:
        further prompts are drawn and answered, `rollout.batch` at once, and their groups with signal take the places of
        those without, until all have signal or no more may be drawn; then the rest stays, as without oversampling.
        Groups too many are dropped, so that nothing is carried from step to step.

        Args:
          model: the policy that samples.
          draw: prompts of the stream that earlier steps have drawn.
          clock: takes its times.
          check_stop: called before every chunk of prompts; it may raise.
        """
        count, batch = self._config.rollout.prompts, self._generator.batch
        most = max(count, int(count * self._config.rollout.oversample) // batch * batch)
        shape = self._shape(draw + np.arange(most), clock)  # one for all that the step may draw
        weights = self._weights(model, clock)

        def answer(drawn: int, count: int) -> tuple[list[tuple[np.ndarray, Rollout]], list[Judged]]:
            """Of the next prompts."""
            return self._answer(weights, draw + drawn + np.arange(count), shape, clock, check_stop)

        chunks, judged = answer(0, count)
        with clock.phase("rollout"):
            rollout = join([part for _, part in chunks])
        drawn, dropped = count, []
        while drawn < most and (empty := [place for place, group in enumerate(judged) if not _has_signal(group)]):
            further = min(-(-len(empty) // batch) * batch, most - drawn)
            chunks, found = answer(drawn, further)
            drawn += further
            good = [place for place, group in enumerate(found) if _has_signal(group)]
            taken = dict(zip(empty, good, strict=False))
            with clock.phase("rollout"):
                for rows, part in chunks:
                    row = {place: row for row, place in enumerate(rows.tolist())}
                    source = [row.get(taken.get(to), -1) for to in range(count)]
                    rollout = replace_rows(rollout, part, np.asarray(source, np.int32))
            dropped += [group for place, group in enumerate(found) if place not in taken.values()]
            for to, place in taken.items():
                dropped.append(judged[to])
                judged[to] = found[place]
        return Experience(rollout, judged, dropped)

    def collect_ahead(
        self,
        model: Qwen2_5_VL,
        draw: int,
        sampled: Sampled | None,
        clock: Clock,
        check_stop: Callable[[], None],
        *,
        last: bool,
    ) -> tuple[Experience, Sampled | None]:
        """As `collect`, of what an earlier step sampled; while the host judges it the chips sample for the next step.

        Args:
          model: the policy that samples for the next step.
          draw: prompts of the stream that earlier steps have learnt from.
          sampled: for this step, by the policy of the step before; None in the first step, then `model` samples it too.
          clock: takes its times.
          check_stop: called before every chunk of prompts; it may raise.
          last: no step follows.

        Returns:
          What this step learns from, and what is being sampled for the next one.
        """
        count = self._config.rollout.prompts

        def start(draw: int) -> tuple[list[Drawn], Iterator[Rollout]]:
            draws = draw + np.arange(count)
            shape, drawn = self._shape(draws, clock), self._draw(draws, clock)
            weights, prompts = self._weights(model, clock), [d.prompt for d in drawn]
            chunks = self._generator.chunks(weights, prompts, draws, shape, check_stop)
            return drawn, (part for _, part in clock.waits("rollout", chunks))

        if sampled is None:
            drawn, chunks = start(draw)
            sampled = Sampled(drawn, join(list(chunks)))
        completions = _fetch(sampled.rollout.completions, clock)
        own = own_rows(count)
        following, chunks = ([], iter(())) if last else start(draw + count)
        judging = _Judging(lambda *arguments: self._judge(*arguments, clock))
        parts = []
        for rows in np.array_split(np.arange(len(own)), count // self._generator.batch):
            parts += itertools.islice(chunks, 1)
            judging.add(own[rows], [sampled.drawn[row] for row in rows], *(array[rows] for array in completions))
        parts += chunks
        with clock.phase("verify"):
            experience = Experience(sampled.rollout, judging.everywhere(), [])
        return experience, Sampled(following, join(parts)) if parts else None

    def sampled_before(self, model: Qwen2_5_VL, draw: int, completions: Completions) -> Sampled:
        """What a checkpoint kept the completions of, as `collect_ahead` left it.

        Args:
          model: any policy with the same frozen weights.
          draw: prompts of the stream that earlier steps have learnt from.
          completions: `[B, G, C]`.
        """
        draws, clock = draw + np.arange(self._config.rollout.prompts), Clock()
        drawn, shape = self._draw(draws, clock), self._shape(draws, clock)
        # Prompts and features depend on no trained weight; one token is the fewest that can be asked for.
        generator = dataclasses.replace(self._generator, new_tokens=1)
        rollout = generator(self._weights(model, clock), [d.prompt for d in drawn], draws, shape)
        return Sampled(drawn, dataclasses.replace(rollout, completions=completions))

    def _answer(
        self,
        weights: SamplingWeights,
        draws: np.ndarray,
        shape: tuple[int, int],
        clock: Clock,
        check_stop: Callable[[], None],
    ) -> tuple[list[tuple[np.ndarray, Rollout]], list[Judged]]:
        """Chunks (`Generator.chunks`) and verdicts of some draws."""
        own, drawn = own_rows(len(draws)), self._draw(draws, clock)
        chunks = self._generator.chunks(weights, [d.prompt for d in drawn], draws, shape, check_stop)
        judging = _Judging(lambda drawn, completions: self._judge(drawn, *_fetch(completions, clock), clock))
        parts, before = [], None
        for rows, part in clock.waits("rollout", chunks):
            parts.append((rows, part))
            if before is not None:
                judging.add(*before)  # while this chunk is sampled
            mine = rows[own_rows(len(rows))]
            before = mine, [drawn[place] for place in np.searchsorted(own, mine)], part.completions
        judging.add(*before)
        with clock.phase("verify"):
            return parts, judging.everywhere()

    def _shape(self, draws: np.ndarray, clock: Clock) -> tuple[int, int]:
        """(P, W) of the program that these draws need."""
        places = [self.data.place(int(draw)) for draw in draws]
        shape = self._generator.shape(self._index.prompt[places], self._index.windows[places])
        clock.program(f"rollout of {shape[0]} + {self._generator.new_tokens} tokens, {shape[1]} windows")
        return shape

    def _weights(self, model: Qwen2_5_VL, clock: Clock) -> SamplingWeights:
        with clock.phase("rollout"):
            return sampling_weights(model, settings.compute_dtype(self._config))

    def _draw(self, draws: np.ndarray, clock: Clock) -> list[Drawn]:
        """Those of this process's rows; the next ones are made ready while these are sampled and learnt from."""
        with clock.phase("data"):
            drawn = distributed.together(lambda: self._records.take(draws[own_rows(len(draws))]))
            self._records.expect(draws[-1] + 1 + own_rows(self._config.rollout.prompts))
            return drawn

    def _judge(
        self, drawn: Sequence[Drawn], tokens: np.ndarray, lengths: np.ndarray, ended: np.ndarray, clock: Clock
    ) -> list[Judged]:
        """Groups of this process."""
        with clock.phase("decode_text"):
            texts = [
                [self._encoder.tokenizer.decode(row[:n]) for row, n in zip(group, sizes, strict=True)]
                for group, sizes in zip(tokens, lengths, strict=True)
            ]
        with clock.phase("verify"):
            requests = [
                Request(d.record.verifier, text, d.record.answer, d.record, d.prompt.resizes)
                for d, group in zip(drawn, texts, strict=True)
                for text in group
            ]
            traces = iter(score_many(requests, strict=self._config.rewards.strict, **self._verify))
        return [
            Judged(
                draw=d.draw,
                id=d.record.id,
                verifier=d.record.verifier,
                gold=d.record.answer,
                texts=group,
                traces=[next(traces) for _ in group],
                lengths=lengths[b],
                ended=ended[b],
            )
            for b, (d, group) in enumerate(zip(drawn, texts, strict=True))
        ]


def _fetch(completions: Completions, clock: Clock) -> tuple[np.ndarray, ...]:
    """Tokens, lengths and ends of this process's rows, as soon as they are sampled."""
    with clock.phase("rollout"):
        return tuple(map(fetch_rows, (completions.tokens, completions.lengths, completions.ended)))


def _has_signal(group: Judged) -> bool:
    """Whether rewards differ: else all advantages are 0."""
    rewards = {trace.score for trace in group.traces}
    return len(rewards) > 1


class _Judging:
    """Verdicts of this process, until they are wanted everywhere.

    Between chunks no process may wait for another, nor leave: an error waits too.
    """

    def __init__(self, judge: Callable[..., list[Judged]]):
        self._judge = judge
        self._groups: dict[int, Judged] = {}
        self._error: Exception | None = None

    def add(self, places: np.ndarray, *arguments: Any) -> None:
        """Judges the groups at some places of the batch."""
        if self._error is None:
            try:
                self._groups |= zip(places.tolist(), self._judge(*arguments), strict=True)
            except Exception as error:
                self._error = error

    def everywhere(self) -> list[Judged]:
        """All groups, on every process; raises on every process what was raised on one."""
        return distributed.gather_rows(distributed.together(self._settled))

    def _settled(self) -> dict[int, Judged]:
        if self._error is not None:
            raise self._error
        return self._groups
