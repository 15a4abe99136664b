"""What a step learns from: prompts are drawn, answered and judged; while the chips answer, the host judges."""

import dataclasses
from collections.abc import Callable, Sequence
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
          InputError: `config.rollout.oversample` is below 1.
        """
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
        with clock.phase("data"):
            # One shape for all that the step may draw.
            places = [self.data.place(number) for number in range(draw, draw + most)]
            shape = self._generator.shape(self._index.prompt[places], self._index.windows[places])
        with clock.phase("rollout"):
            clock.program(f"rollout of {shape[0]} + {self._config.rollout.new_tokens} tokens, {shape[1]} windows")
            weights = sampling_weights(model, settings.compute_dtype(self._config))

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

    def _answer(
        self,
        weights: SamplingWeights,
        draws: np.ndarray,
        shape: tuple[int, int],
        clock: Clock,
        check_stop: Callable[[], None],
    ) -> tuple[list[tuple[np.ndarray, Rollout]], list[Judged]]:
        """Chunks (`Generator.chunks`) and verdicts of some draws."""
        own = own_rows(len(draws))
        with clock.phase("data"):
            drawn = distributed.together(lambda: self._records.take(draws[own]))
            # What the step may ask for next, or the next step: they are made ready while this is sampled and learnt.
            self._records.expect(draws[-1] + 1 + own_rows(self._config.rollout.prompts))
        chunks = self._generator.chunks(weights, [d.prompt for d in drawn], draws, shape, check_stop)
        judging = _Judging(lambda *arguments: self._judge(*arguments, clock))
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

    def _judge(self, drawn: Sequence[Drawn], completions: Completions, clock: Clock) -> list[Judged]:
        """Groups of this process, as soon as they are sampled."""
        with clock.phase("rollout"):
            tokens, lengths, ended = map(fetch_rows, (completions.tokens, completions.lengths, completions.ended))
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
