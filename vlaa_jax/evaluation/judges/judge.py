"""What every judge does: it gives each step of a response a score, whatever it is made of."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vlaa_jax.processing.records import Record


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with the responses to be judged.

    Attributes:
      record: with its images; gold answer and metadata are not shown to a judge.
      responses: texts, tags included; their steps are those of `steps.split_steps`.
    """

    record: Record
    responses: tuple[str, ...]


class Judge(Protocol):
    """Scores responses. The same question gives the same scores, to rounding, whatever else is judged with it.

    Attributes:
      name: for tables and files.
      whole: whether it scores a response as a whole, and so only once.
      problems: what could not be judged so far, by reason.
    """

    name: str
    whole: bool
    problems: collections.Counter[str]

    def __call__(self, questions: Sequence[Question]) -> list[list[np.ndarray]]:
        """Step scores `[S]` of every response of every question, float64, higher is better.

        A step is judged as the prefix of the response that ends with it; a judge of wholes gives one score. What could
        not be judged, or read in a judge's reply, is NaN; a response without a step has one NaN.
        """
        ...


def unread(steps: int) -> np.ndarray:
    """The scores of a response of which none is known."""
    return np.full(max(steps, 1), np.nan)
