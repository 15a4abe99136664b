"""What a step learns from: prompts are drawn, answered and judged; while the chips answer, the host judges."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.prompt_data import Drawn, PromptData, ReadAhead
from vlaa_jax.processing.records import RecordSource
from vlaa_jax.rewards import Request, score_many
from vlaa_jax.rollout.generate import Generator, Rollout, join
from vlaa_jax.rollout.sampler import Completions, sampling_weights
from vlaa_jax.sharding import fetch_rows, own_rows
from vlaa_jax.training import settings
from vlaa_jax.training.answers import Judged
from vlaa_jax.training.clock import Clock


@dataclasses.dataclass(frozen=True)
class Experience:
    """Groups that a step learns from.

    Attributes:
      rollout: `[B, G, C]`, on the chips.
      judged: B groups, on every process.
      drawn: prompts that were drawn for them from the stream.
    """

    rollout: Rollout
    judged: list[Judged]
    drawn: int


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
        """
        self._config, self._generator, self._index, self._encoder = config, generator, index, encoder
        self._verify = verify
        self.data = PromptData(source, index, encoder, seed=config.seed)
        self._records = ReadAhead(self.data.draw)

    def collect(self, model: Qwen2_5_VL, draw: int, clock: Clock, check_stop: Callable[[], None]) -> Experience:
        """The groups of a step.

        Args:
          model: the policy that samples.
          draw: prompts of the stream that earlier steps have drawn.
          clock: takes its times.
          check_stop: called before every chunk of prompts; it may raise.
        """
        count = self._config.rollout.prompts
        draws = draw + np.arange(count)
        own = own_rows(count)
        with clock.phase("data"):
            drawn = distributed.together(lambda: self._records.take(draws[own]))
            self._records.expect(draws[own] + count)  # of the next step, while this one samples and learns
            places = [self.data.place(int(draw)) for draw in draws]
            shape = self._generator.shape(self._index.prompt[places], self._index.windows[places])
        with clock.phase("rollout"):
            clock.program(f"rollout of {shape[0]} + {self._config.rollout.new_tokens} tokens, {shape[1]} windows")
            weights = sampling_weights(model, settings.compute_dtype(self._config))
            chunks = self._generator.chunks(weights, [d.prompt for d in drawn], draws, shape, check_stop)
            del weights
        judging = _Judging(lambda *arguments: self._judge(*arguments, clock))
        parts, before = [], None
        for rows, part in clock.waits("rollout", chunks):
            parts.append(part)
            if before is not None:
                judging.add(*before)  # while this chunk is sampled
            mine = rows[own_rows(len(rows))]
            before = mine, [drawn[place] for place in np.searchsorted(own, mine)], part.completions
        judging.add(*before)
        with clock.phase("rollout"):
            rollout = join(parts)
        with clock.phase("verify"):
            judged = judging.everywhere()
        return Experience(rollout, judged, count)

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
