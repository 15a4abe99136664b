"""Judges that are one pass of a model over a question and all its responses."""

import abc
import collections
from collections.abc import Sequence

import jax
import numpy as np

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.judge import Question, unread
from vlaa_jax.evaluation.judges.rows import Solved, over_solutions
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.solutions import Solutions

LONGEST_ROW = 16_384  # tokens
AT_ONCE = 8  # questions, where nothing else is said


class ModelJudge(abc.ABC):
    """A `Judge`; what is scored, and how, is said by the methods below.

    Attributes:
      name, whole, problems: see `Judge`.
    """

    def __init__(self, encoder: Encoder, *, name: str, whole: bool, rows: int, longest: int):
        """Compiles nothing yet.

        Args:
          encoder: how the model sees a question.
          name, whole: see `Judge`.
          rows: B, questions at once.
          longest: tokens of a row that holds a question and its responses, see `rows.over_solutions`.
        """
        self.name, self.whole = name, whole
        self.problems: collections.Counter[str] = collections.Counter()
        self._encoder, self._rows, self._longest = encoder, rows, longest

    def __call__(self, questions: Sequence[Question]) -> list[list[np.ndarray]]:
        """See `Judge`; NaN for a response that is empty, spells a special token, or has no room in a row."""
        texts = [list(dict.fromkeys(question.responses)) for question in questions]  # the same ones are scored once
        written = [[self._written(text) for text in own] for own in texts]
        solved = [
            Solved(self.shown(question.record), [solution for solution in own if solution is not None])
            for question, own in zip(questions, written, strict=True)
        ]
        found = over_solutions(
            solved,
            self._encoder,
            self.program,
            rows=self._rows,
            longest=self._longest,
            description=self.name,
        )
        out = []
        for b, question in enumerate(questions):
            values, scores = iter(found[b]), {}
            for text, solution in zip(texts[b], written[b], strict=True):
                scores[text] = self._scores(solution, None if solution is None else next(values))
            out.append([scores[text] for text in question.responses])
        return out

    @abc.abstractmethod
    def shown(self, record: Record) -> Record:
        """What the model sees of a question."""

    @abc.abstractmethod
    def written(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[C]` of a response and the place `[S]` of each step's last; raises `InputError` as `Encoder`."""

    @abc.abstractmethod
    def program(self, batch: Solutions) -> jax.Array:
        """`[B, G, ...]` of a batch over the mesh."""

    @abc.abstractmethod
    def read(self, values: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Step scores `[S]` from a response's own part `[...]` of what the program gave."""

    def _written(self, text: str) -> tuple[np.ndarray, np.ndarray] | None:
        if not text.strip():
            self.problems["empty"] += 1
            return None
        try:
            return self.written(text)
        except InputError:
            self.problems["spells a special token"] += 1
            return None

    def _scores(self, solution: tuple[np.ndarray, np.ndarray] | None, values: np.ndarray | None) -> np.ndarray:
        if solution is not None and values is not None:
            return self.read(values.astype(np.float64), solution[1])
        if solution is not None:
            self.problems["too long for a row"] += 1
        return unread(1 if solution is None or self.whole else len(solution[1]))
