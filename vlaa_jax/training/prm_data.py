"""Batches for reward models: a question's prompt once in a row, its labelled solutions behind it; exact to resume.

Rows are dealt by the index, so every process knows all of them and encodes those of its own chips.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from ml_collections import ConfigDict

from vlaa_jax.models.reward_model import Kind
from vlaa_jax.objectives.shared_prompt import ROW_MULTIPLE, row_bucket, row_tokens
from vlaa_jax.processing.batches import bucket
from vlaa_jax.processing.buckets import choose_buckets
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.records import ProcessRecord
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.processing.solutions import Solutions, SolutionShape, pad_solutions, question_of
from vlaa_jax.processing.steps import split_steps
from vlaa_jax.training.prm import Labels
from vlaa_jax.training.prm_index import LabelledQuestion, LabelledSolution, QuestionIndex

_WINDOW_MULTIPLE = 4  # of W


@dataclasses.dataclass(frozen=True)
class Row:
    """A question and those of its solutions that share a row."""

    question: LabelledQuestion
    solutions: tuple[LabelledSolution, ...]

    def tokens(self, length: int) -> int:
        """That it takes in a row of `length`."""
        lengths = np.asarray([[solution.tokens for solution in self.solutions]])
        return int(row_tokens(np.asarray([self.question.prompt]), lengths, length)[0])


def deal_rows(question: LabelledQuestion, *, length: int, most: int) -> list[Row]:
    """A question with more solutions than a row holds gets several: each solution goes to the first that has room.

    Args:
      question: each of whose solutions alone fits a row.
      length: T.
      most: G, solutions of a row.
    """
    alone = [Row(question, (solution,)).tokens(length) for solution in question.solutions]
    prompt = Row(question, ()).tokens(length)
    rows: list[list[LabelledSolution]] = []
    taken: list[int] = []
    for solution, tokens in zip(question.solutions, alone, strict=True):
        own = tokens - prompt
        row = next((i for i, used in enumerate(taken) if used + own <= length and len(rows[i]) < most), len(rows))
        if row == len(rows):
            rows.append([])
            taken.append(prompt)
        rows[row].append(solution)
        taken[row] += own
    return [Row(question, tuple(solutions)) for solutions in rows]


class LabelledRows:
    """The rows of a shard set, in micro-batches of few shapes.

    Attributes:
      of_question: rows of each question of the index.
      lengths, windows: T and W that micro-batches may have.
      shapes: all that they may have.
    """

    def __init__(
        self,
        source: RecordSource[ProcessRecord],
        index: QuestionIndex,
        encoder: Encoder,
        sizes: ConfigDict,
        kind: Kind,
    ):
        """Reads nothing yet.

        Args:
          source, index, encoder: the shard set and how it becomes arrays.
          sizes: `config.updates`; buckets that it leaves empty are chosen from the rows.
          kind: of the model.

        Raises:
          InputError: a row is larger than the largest bucket.
        """
        self._source, self._encoder, self._sizes, self._kind = source, encoder, sizes, kind
        deal = lambda question: deal_rows(question, length=sizes.longest_row, most=sizes.row_solutions)  # noqa: E731
        self.of_question = [deal(question) for question in index.questions]
        rows = [row for rows in self.of_question for row in rows]
        lengths = [row.tokens(sizes.longest_row) for row in rows]
        windows = [row.question.windows for row in rows]
        # Micro-batches are of rows of like size.
        choose = lambda found, multiple: choose_buckets(found, sizes.most_buckets, drawn=1, multiple=multiple)  # noqa: E731
        self.lengths = tuple(sizes.row_buckets) or choose(lengths, ROW_MULTIPLE)
        self.windows = tuple(sizes.window_buckets) or choose(windows, _WINDOW_MULTIPLE)
        alone = {self.shape([row]) for row in rows}
        both = itertools.product(sorted({shape.length for shape in alone}), sorted({shape.windows for shape in alone}))
        self.shapes = [
            dataclasses.replace(next(iter(alone)), length=length, windows=windows) for length, windows in both
        ]

    def micro_batches(self, rows: Sequence[Row]) -> list[tuple[SolutionShape, list[Row | None]]]:
        """Rows of like size together, `sizes.rows` a batch; None where the last batch has none."""
        size = self._sizes.rows
        ordered = sorted(rows, key=lambda row: (self._windows(row), row.tokens(max(self.lengths))), reverse=True)
        batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
        return [(self.shape(batch), [*batch, *[None] * (size - len(batch))]) for batch in batches]

    def shape(self, rows: Sequence[Row]) -> SolutionShape:
        """Of a micro-batch with these rows."""
        sizes = self._sizes
        counts = np.zeros((len(rows), max(len(row.solutions) for row in rows)), int)
        for lengths, row in zip(counts, rows, strict=True):
            lengths[: len(row.solutions)] = [solution.tokens for solution in row.solutions]
        return SolutionShape(
            prompt=sizes.longest_prompt,
            windows=max(map(self._windows, rows)),
            solutions=sizes.row_solutions,
            tokens=sizes.longest_solution,
            steps=sizes.most_steps if self._kind == "process" else 1,
            length=row_bucket(np.asarray([row.question.prompt for row in rows]), counts, self.lengths),
        )

    def batch(self, shape: SolutionShape, rows: Sequence[Row | None]) -> tuple[Solutions, Labels]:
        """Rows as arrays."""
        prompts, solutions = [], []
        values = np.zeros((len(rows), shape.solutions, shape.steps), np.float32)
        weights = np.zeros_like(values)
        for b, row in enumerate(rows):
            if row is None:
                prompts.append(self._encoder.no_prompt)
                solutions.append([])
                continue
            records = [self._source[solution.place] for solution in row.solutions]
            prompts.append(self._encoder.encode(question_of(records[0])))
            solutions.append([self._solution(record) for record in records])
            for g, solution in enumerate(row.solutions):
                steps = len(solution.values)
                values[b, g, :steps] = np.where(solution.weights > 0, solution.values, 0)
                weights[b, g, :steps] = solution.weights
        return pad_solutions(prompts, solutions, shape), Labels(values, weights)

    def _solution(self, record: ProcessRecord) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, and the ends that the model scores."""
        tokens, ends = self._encoder.solution(split_steps(record.process))
        return tokens, ends if self._kind == "process" else ends[-1:]

    def _windows(self, row: Row) -> int:
        return bucket(row.question.windows, self.windows, "the number of windows of a question")


@dataclasses.dataclass(frozen=True)
class PRMUpdate:
    """One update.

    Attributes:
      micro_batches: their rows that belong to this process.
      ids: of all questions.
      tokens: of all rows.
    """

    micro_batches: list[tuple[Solutions, Labels]]
    ids: list[str]
    tokens: int


class PRMData:
    """Updates of `questions` questions (the last of an epoch holds what is left), in an order drawn by seed."""

    def __init__(self, rows: LabelledRows, *, questions: int, seed: int, own_rows: np.ndarray):
        """Reads nothing yet.

        Args:
          rows: of the shard set.
          questions: of an update.
          seed: of the order.
          own_rows: places of this process's rows in a micro-batch.
        """
        self._rows, self._questions, self._seed, self._own_rows = rows, questions, seed, own_rows
        self.updates_per_epoch = -(-len(rows.of_question) // questions)

    def updates(self, start: int) -> Iterator[PRMUpdate]:
        """Updates from number `start` on, endlessly; the position of a run is that number."""
        numbers = grain.MapDataset.range(start, 2**31).map(self.update)
        return iter(numbers.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))

    def update(self, number: int) -> PRMUpdate:
        """Update `number`, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.updates_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._rows.of_question))
        chosen = order[place * self._questions : (place + 1) * self._questions].tolist()
        rows = [row for question in chosen for row in self._rows.of_question[question]]
        batches = [
            self._rows.batch(shape, [batch[own] for own in self._own_rows])
            for shape, batch in self._rows.micro_batches(rows)
        ]
        tokens = sum(row.question.prompt + sum(solution.tokens for solution in row.solutions) for row in rows)
        return PRMUpdate(batches, [self._rows.of_question[question][0].question.id for question in chosen], tokens)
