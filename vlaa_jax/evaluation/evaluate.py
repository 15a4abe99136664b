"""Evaluation of a policy on a shard set: greedy and at the training temperature, by the verifiers of GRPO."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import tqdm
from PIL import Image

from vlaa_jax import distributed
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.images import decode as decode_image
from vlaa_jax.processing.images import read_size
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rewards import BatchScorer, Request, Scorer, Trace, accuracy, is_waiting, score_many, score_waiting
from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.sampler import SamplingWeights
from vlaa_jax.sharding import evenly, fetch_rows, own_rows

Images = Literal["own", "swapped", "blank"]
_AT_ONCE = 256  # records whose pictures are in memory to be judged
_NEAR = 50  # records among which pictures of the same size are looked for


@dataclasses.dataclass(frozen=True)
class Answer:
    """One completion and its verdict."""

    completion: str
    length: int
    truncated: bool
    trace: Trace


@dataclasses.dataclass(frozen=True)
class Result:
    """A record, without its images, and its answers: one greedy, or several samples."""

    record: Record
    answers: list[Answer]

    @property
    def reward(self) -> float:
        """Mean over the answers."""
        return float(np.mean([answer.trace.score for answer in self.answers]))


class Evaluator:
    """A shard set ready to be answered.

    Records are batched by size so that little padding runs; random bits are named by the record's place, so neither
    batches nor order change a sample.

    Attributes:
      batch: B of every program.
    """

    def __init__(
        self,
        source: RecordSource,
        index: Index,
        encoder: Encoder,
        *,
        batch: int,
        records: int = 0,
        images: Images = "own",
        scorer: Scorer | BatchScorer | None = None,
        pool: MathPool | None = None,
    ):
        """Chooses the records.

        Args:
          source, index, encoder: the shard set and how it becomes arrays.
          batch: B; raised to what the chips share evenly.
          records: take this many, spread evenly over the set; 0 takes all.
          images: show each question its own pictures, those of another record (in the size of its own), or grey ones:
            does the policy look?
          scorer: for open-ended answers.
          pool: workers for symbolic math.
        """
        self._source = source
        self._encoder = encoder
        self.batch = evenly(batch)
        self._images = images
        self._scorer, self._pool = scorer, pool
        good = self._good = index.good
        if records and records < len(good):
            good = good[np.linspace(0, len(good) - 1, records).astype(int)]
        self._places = good
        self._order = sorted(good.tolist(), key=lambda i: (index.windows[i], index.prompt[i]))
        self._index = index

    def __len__(self) -> int:
        return len(self._places)

    def __call__(
        self,
        weights: SamplingWeights,
        generator: Generator,
        description: str = "",
        *,
        check_stop: Callable[[], None] = lambda: None,
    ) -> list[Result]:
        """Results in the order of the shard set; every process judges its own rows, and gets all.

        Args:
          weights: the policy.
          generator: its distribution and shapes.
          description: for the progress bar.
          check_stop: called before every batch; it may raise.
        """
        results: dict[int, Result] = {}
        batches = tqdm.tqdm(
            self._batches(), total=-(-len(self) // self.batch), desc=description, leave=False, disable=None
        )
        for places in batches:
            check_stop()
            results |= self._answer(places, weights, generator)
        return self._settle(distributed.gather_rows(results))

    def _settle(self, results: list[Result]) -> list[Result]:
        """Judges what waits for the chips (`rewards.score_waiting`), by the questions' own pictures."""
        places = np.sort(self._places).tolist()
        waiting = [i for i, result in enumerate(results) if any(is_waiting(answer.trace) for answer in result.answers)]
        for start in range(0, len(waiting), _AT_ONCE):
            chosen = waiting[start : start + _AT_ONCE]
            records = distributed.together(lambda chosen=chosen: [self._source[places[i]] for i in chosen])
            asked = [
                (record, [answer.trace for answer in results[i].answers])
                for i, record in zip(chosen, records, strict=True)
            ]
            for i, traces in zip(chosen, score_waiting(asked, self._scorer), strict=True):
                results[i] = _with_traces(results[i], traces)
        return results

    def _answer(self, places: list[int], weights: SamplingWeights, generator: Generator) -> dict[int, Result]:
        """Results of a batch that belong to this process, by place."""
        # The last batch is filled up with its own first record: no further program is compiled for it.
        filled = places + places[:1] * (self.batch - len(places))
        own = own_rows(self.batch)
        records = distributed.together(lambda: [self._record(filled[row]) for row in own])
        prompts = distributed.together(lambda: [self._encoder.encode(record) for record in records])
        shape = generator.shape(self._index.prompt[filled], self._index.windows[filled])
        completions = generator(weights, prompts, filled, shape).completions
        tokens, lengths, ended = map(fetch_rows, (completions.tokens, completions.lengths, completions.ended))
        real = range(int(np.sum(own < len(places))))
        texts = [
            [self._encoder.tokenizer.decode(row[:n]) for row, n in zip(tokens[b], lengths[b], strict=True)]
            for b in real
        ]
        requests = [
            Request(records[b].verifier, text, records[b].answer, records[b], prompts[b].resizes)
            for b in real
            for text in texts[b]
        ]
        traces = iter(distributed.together(lambda: score_many(requests, scorer=self._scorer, pool=self._pool)))
        return {
            places[own[b]]: Result(
                dataclasses.replace(records[b], images=()),
                [
                    Answer(text, int(n), not end, next(traces))
                    for text, n, end in zip(texts[b], lengths[b], ended[b], strict=True)
                ],
            )
            for b in real
        }

    def _batches(self) -> Iterator[list[int]]:
        for at in range(0, len(self._order), self.batch):
            yield self._order[at : at + self.batch]

    def _record(self, place: int) -> Record:
        record = self._source[place]
        if self._images == "own":
            return record
        if self._images == "blank":
            return dataclasses.replace(record, images=tuple(_blank(image) for image in record.images))
        return dataclasses.replace(record, images=self._other_images(place, record.images))

    def _other_images(self, place: int, own: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Pictures of a later usable record that has as many: of the same sizes if one is near, else scaled to them.

        So the prompt keeps its length, and fits the buckets that its own pictures fit.
        """
        sizes = [read_size(image) for image in own]
        start = int(np.searchsorted(self._good, place, side="right"))
        candidates: list[tuple[bytes, ...]] = []
        for other in np.roll(self._good, -start)[: len(self._good) - 1].tolist():
            images = self._source[other].images
            if len(images) != len(own):
                continue
            if [read_size(image) for image in images] == sizes:
                return images
            candidates.append(images)
            if len(candidates) == _NEAR:
                break
        if not candidates:
            return own
        return tuple(_scaled(image, size) for image, size in zip(candidates[0], sizes, strict=True))


def summarise(results: list[Result]) -> dict[str, float]:
    """Mean reward, share valid, reward among valid answers and accuracy: of all, and `.../<verifier>`.

    Accuracy: reward of at least 0.5; for open-ended answers, above 0.
    """
    groups = {"": results}
    for result in results:
        groups.setdefault("/" + result.record.verifier, []).append(result)
    out = {}
    for suffix, group in groups.items():
        answers = [(result.record.verifier, answer) for result in group for answer in result.answers]
        valid = [answer.trace.score for _, answer in answers if answer.trace.valid]
        out["reward" + suffix] = float(np.mean([result.reward for result in group]))
        out["valid" + suffix] = len(valid) / len(answers)
        out["accuracy" + suffix] = float(np.mean([accuracy(answer.trace, verifier) for verifier, answer in answers]))
        if valid:
            out["reward_if_valid" + suffix] = float(np.mean(valid))
    out["length"] = float(np.mean([answer.length for result in results for answer in result.answers]))
    out["truncated"] = float(np.mean([answer.truncated for result in results for answer in result.answers]))
    return out


def _with_traces(result: Result, traces: list[Trace]) -> Result:
    answers = zip(result.answers, traces, strict=True)
    return dataclasses.replace(result, answers=[dataclasses.replace(answer, trace=trace) for answer, trace in answers])


def _scaled(encoded: bytes, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    decode_image(encoded).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def _blank(encoded: bytes) -> bytes:
    """A grey picture of the same size."""
    buffer = io.BytesIO()
    Image.new("RGB", decode_image(encoded).size, (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()
