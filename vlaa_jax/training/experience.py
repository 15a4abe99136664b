"""What a step learns from: prompts are drawn, answered and judged; while the chips answer, the host judges."""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.prompt_data import Drawn, PromptData, ReadAhead
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.processing.step_places import step_places
from vlaa_jax.rewards import BatchScorer, Request, Scorer, is_waiting, score_many, score_waiting
from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rollout.decode import Completions
from vlaa_jax.rollout.generate import Ended, Generator, Rollout, RowSteps, WholeRun
from vlaa_jax.rollout.sampler import SamplingWeights, sampling_weights
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
      shape: (P, W) that the prompts of all of them ran at.
      row_steps: of all that was sampled in this step.
    """

    rollout: Rollout
    judged: list[Judged]
    dropped: list[Judged]
    shape: tuple[int, int]
    row_steps: RowSteps

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
      rollout: `[B, G, C]`.
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
        *,
        scorer: Scorer | BatchScorer | None = None,
        pool: MathPool | None = None,
    ):
        """Reads nothing yet.

        Args:
          config: of the run.
          generator: samples.
          source, index, encoder: the shard set and how it becomes arrays.
          scorer, pool: see `rewards.score_many`.

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
        self._source, self._scorer, self._pool = source, scorer, pool
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
          check_stop: called before every segment of a rollout; it may raise.
        """
        count, batch = self._config.rollout.prompts, self._generator.batch
        most = max(count, int(count * self._config.rollout.oversample) // batch * batch)
        shape = self._shape(draw + np.arange(most))  # one for all that the step may draw
        weights = self._weights(model, clock)

        def answer(drawn: int, count: int) -> tuple[Rollout, list[Judged]]:
            """Of the next prompts."""
            return self._answer(weights, draw + drawn + np.arange(count), shape, clock, check_stop)

        rollout, judged = answer(0, count)
        row_steps, drawn, dropped = rollout.row_steps, count, []
        while drawn < most and (empty := [place for place, group in enumerate(judged) if not _has_signal(group)]):
            further, found = answer(drawn, batch)
            row_steps += further.row_steps
            drawn += batch
            good = [place for place, group in enumerate(found) if _has_signal(group)]
            taken = dict(zip(empty, good, strict=False))
            with clock.phase("rollout"):
                rollout = _replace(rollout, further, [taken.get(place, -1) for place in range(count)])
            dropped += [group for place, group in enumerate(found) if place not in taken.values()]
            for to, place in taken.items():
                dropped.append(judged[to])
                judged[to] = found[place]
        return Experience(rollout, judged, dropped, shape, row_steps)

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
          check_stop: called before every segment of a rollout; it may raise.
          last: no step follows.

        Returns:
          What this step learns from, and what was sampled for the next one.
        """
        count = self._config.rollout.prompts
        row_steps = RowSteps()

        def start(draw: int) -> tuple[list[Drawn], WholeRun]:
            draws = draw + np.arange(count)
            return self._start(self._weights(model, clock), draws, self._shape(draws), clock, check_stop)

        if sampled is None:
            drawn, run = start(draw)
            collections.deque(clock.waits("rollout", run), maxlen=0)
            sampled, row_steps = Sampled(drawn, run.rollout), run.rollout.row_steps
            del run  # and its copy of the weights, before the next one is made
        completions = sampled.rollout.completions
        with clock.phase("rollout"):
            arrays = [fetch_rows(leaf) for leaf in (completions.tokens, completions.lengths, completions.ended)]
        own = own_rows(count)
        following, run = ([], None) if last else start(draw + count)
        segments = clock.waits("rollout", run or ())
        judging = _Judging(lambda *arguments: self._judge(*arguments, clock))
        # Spread over the segments of a completion of full length.
        for rows in np.array_split(np.arange(len(own)), min(len(own), self._generator.segments)):
            next(segments, None)
            judging.add(Ended(own[rows], *(array[rows] for array in arrays)), [sampled.drawn[row] for row in rows])
        collections.deque(segments, maxlen=0)
        judged = self._settle(judging, clock)
        if run is not None:
            row_steps += run.rollout.row_steps
        experience = Experience(sampled.rollout, judged, [], self._shape(draw + np.arange(count)), row_steps)
        return experience, Sampled(following, run.rollout) if run is not None else None

    def sampled_before(self, model: Qwen2_5_VL, draw: int, completions: Completions) -> Sampled:
        """What a checkpoint kept the completions of, as `collect_ahead` left it.

        Args:
          model: any policy with the same frozen weights.
          draw: prompts of the stream that earlier steps have learnt from.
          completions: `[B, G, C]`.
        """
        draws, clock = draw + np.arange(self._config.rollout.prompts), Clock()
        # Prompts and features depend on no trained weight, so nothing is sampled again.
        drawn, run = self._start(self._weights(model, clock), draws, self._shape(draws), clock, lambda: None)
        return Sampled(drawn, Rollout(run.rows, run.features, completions, RowSteps()))

    def _answer(
        self,
        weights: SamplingWeights,
        draws: np.ndarray,
        shape: tuple[int, int],
        clock: Clock,
        check_stop: Callable[[], None],
    ) -> tuple[Rollout, list[Judged]]:
        """Groups and verdicts of some draws."""
        drawn, run = self._start(weights, draws, shape, clock, check_stop)
        own = own_rows(len(draws))
        judging = _Judging(lambda *arguments: self._judge(*arguments, clock))
        for groups in clock.waits("rollout", run):
            judging.add(groups, [drawn[row] for row in np.searchsorted(own, groups.places)])
        return run.rollout, self._settle(judging, clock)

    def _start(
        self,
        weights: SamplingWeights,
        draws: np.ndarray,
        shape: tuple[int, int],
        clock: Clock,
        check_stop: Callable[[], None],
    ) -> tuple[list[Drawn], WholeRun]:
        """Prompts of this process, and the rollout of all."""
        drawn = self._draw(draws, clock)
        with clock.phase("rollout"):
            return drawn, self._generator.start(weights, [d.prompt for d in drawn], draws, shape, check_stop)

    def _shape(self, draws: np.ndarray) -> tuple[int, int]:
        """(P, W) of the programs that these draws need."""
        places = [self.data.place(int(draw)) for draw in draws]
        return self._generator.shape(self._index.prompt[places], self._index.windows[places])

    def _weights(self, model: Qwen2_5_VL, clock: Clock) -> SamplingWeights:
        with clock.phase("rollout"):
            return sampling_weights(model, settings.compute_dtype(self._config))

    def _draw(self, draws: np.ndarray, clock: Clock) -> list[Drawn]:
        """Those of this process's rows; the next ones are made ready while these are sampled and learnt from."""
        with clock.phase("data"):
            drawn = distributed.together(lambda: self._records.take(draws[own_rows(len(draws))]))
            self._records.expect(draws[-1] + 1 + own_rows(self._config.rollout.prompts))
            return drawn

    def _judge(self, groups: Ended, drawn: Sequence[Drawn], clock: Clock) -> list[Judged]:
        """Groups of this process."""
        tokenizer = self._encoder.tokenizer
        with clock.phase("decode_text"):
            tokens = [
                [row[:n] for row, n in zip(group, sizes, strict=True)]
                for group, sizes in zip(groups.tokens, groups.lengths, strict=True)
            ]
            texts = [[tokenizer.decode(own) for own in group] for group in tokens]
            in_steps = self._config.rewards.process
            places = [[step_places(tokenizer, own) for own in group] if in_steps else [] for group in tokens]
        with clock.phase("verify"):
            requests = [
                Request(d.record.verifier, text, d.record.answer, d.record, d.prompt.resizes)
                for d, group in zip(drawn, texts, strict=True)
                for text in group
            ]
            traces = iter(
                score_many(requests, strict=self._config.rewards.strict, scorer=self._scorer, pool=self._pool)
            )
        return [
            Judged(
                draw=d.draw,
                id=d.record.id,
                verifier=d.record.verifier,
                gold=d.record.answer,
                texts=group,
                traces=[next(traces) for _ in group],
                lengths=groups.lengths[b],
                ended=groups.ended[b],
                step_places=places[b],
            )
            for b, (d, group) in enumerate(zip(drawn, texts, strict=True))
        ]

    def _settle(self, judging: "_Judging", clock: Clock) -> list[Judged]:
        """All groups, on every process; the chips are free, so what waits for them is judged too."""
        with clock.phase("verify"):
            judged = judging.everywhere()
        waiting = [place for place, group in enumerate(judged) if any(map(is_waiting, group.traces))]
        if waiting:
            with clock.phase("judge"):
                groups = [judged[place] for place in waiting]
                asked = zip(self.records(groups), [group.traces for group in groups], strict=True)
                for place, traces in zip(waiting, score_waiting(list(asked), self._scorer), strict=True):
                    judged[place] = dataclasses.replace(judged[place], traces=traces)
        return judged

    def records(self, groups: Sequence[Judged]) -> list[Record]:
        """Those of some groups, on every process."""
        return distributed.together(lambda: [self._source[self.data.place(group.draw)] for group in groups])


def _replace(rollout: Rollout, other: Rollout, source: Sequence[int]) -> Rollout:
    """`sharding.replace_rows` of what they hold."""
    parts = lambda of: (of.rows, of.features, of.completions)  # noqa: E731
    rows, features, completions = replace_rows(parts(rollout), parts(other), np.asarray(source, np.int32))
    return dataclasses.replace(rollout, rows=rows, features=features, completions=completions)


def _has_signal(group: Judged) -> bool:
    """Whether rewards differ: else all advantages are 0."""
    rewards = {trace.score for trace in group.traces}
    return len(rewards) > 1


class _Judging:
    """Verdicts of this process, until they are wanted everywhere.

    While a rollout runs no process may wait for another, nor leave: an error waits too.
    """

    def __init__(self, judge: Callable[..., list[Judged]]):
        self._judge = judge
        self._groups: dict[int, Judged] = {}
        self._error: Exception | None = None

    def add(self, groups: Ended, drawn: Sequence[Drawn]) -> None:
        """Judges groups of some prompts."""
        if self._error is None and len(drawn):
            try:
                self._groups |= zip(groups.places.tolist(), self._judge(groups, drawn), strict=True)
            except Exception as error:
                self._error = error

    def everywhere(self) -> list[Judged]:
        """All groups, on every process; raises on every process what was raised on one."""
        return distributed.gather_rows(distributed.together(self._settled))

    def _settled(self) -> dict[int, Judged]:
        if self._error is not None:
            raise self._error
        return self._groups
