"""A judge as the scorer S of open-ended answers, and how steep the reward is in its scores.

Of the answer inside the tags S is the judge's score, averaged over steps where the answer has several: a head's logit,
a rubric judge's rating. The reward `1 - exp(-beta * (S(answer) - S(reference)))` needs a beta that fits the range of S,
which no paper can state for another model: it is set so that a typical difference gives one half.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vlaa_jax import distributed
from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.judge import Judge, Question
from vlaa_jax.processing.records import Record
from vlaa_jax.sharding import move

PAIRS = 200
_SAME = 1e-6  # of scores that differ by rounding alone


class JudgeScorer:
    """A `rewards.BatchScorer` made of a judge.

    Attributes:
      beta: NaN until it is set.
      scale: in words.
      references: see `BatchScorer`.
    """

    def __init__(self, judge: Judge, *, beta: float = math.nan):
        self._judge = judge
        self.beta = beta
        self.scale = f"scores of {judge.name}, averaged over steps"
        self.references: dict[str, float] = {}

    @property
    def name(self) -> str:
        return self._judge.name

    def score_batch(self, questions: Sequence[tuple[Record, Sequence[str]]]) -> list[list[float]]:
        """Mean over the steps of each answer; NaN where one of them is."""
        found = self._judge([Question(record, tuple(answers)) for record, answers in questions])
        return [[float(np.mean(steps)) for steps in answers] for answers in found]


class FromHost:
    """A judge whose weights wait in the host's memory between calls.

    Attributes:
      name, whole, problems: see `Judge`.
    """

    def __init__(self, judge: Judge):
        """Moves the weights there.

        Args:
          judge: one with a `model`.
        """
        self._judge = judge
        self.name, self.whole, self.problems = judge.name, judge.whole, judge.problems
        judge.model = move(judge.model, "pinned_host")

    def __call__(self, questions: Sequence[Question]) -> list[list[np.ndarray]]:
        """See `Judge`."""
        waiting = self._judge.model
        self._judge.model = move(waiting, "device")
        try:
            return self._judge(questions)
        finally:
            self._judge.model = waiting


class FromFirst:
    """A judge without weights on the chips: the first process of a run asks it, once for all.

    Attributes:
      name, whole, problems: see `Judge`.
    """

    def __init__(self, judge: Judge):
        self._judge = judge
        self.name, self.whole, self.problems = judge.name, judge.whole, judge.problems

    def __call__(self, questions: Sequence[Question]) -> list[list[np.ndarray]]:
        """See `Judge`."""
        return distributed.on_first(lambda: self._judge(questions))


@dataclasses.dataclass(frozen=True)
class Steepness:
    """What beta is, and why.

    Attributes:
      beta: ln 2 / median.
      median: of the positive differences.
      pairs: number of these.
    """

    beta: float
    median: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"beta {self.beta:.4g}, so that the median difference of two answers, {self.median:.4g} over {self.pairs} "
            "pairs, gives a reward of 0.5"
        )


def fit_beta(scorer: JudgeScorer, records: Sequence[Record]) -> Steepness:
    """The beta with which the median difference of two answers to one question gives a reward of 1/2.

    The two answers are the record's reference and that of the next record that says something else. Either of them may
    be the better one: its difference to the other is positive and counts.

    Args:
      scorer: its beta is not read.
      records: open-ended ones; the same on all processes.

    Raises:
      InputError: there are no two different references, or S does not tell any two answers apart.
    """
    pairs = []
    for place, record in enumerate(records):
        others = (other.answer for other in [*records[place + 1 :], *records[:place]] if other.answer != record.answer)
        other = next(others, None)
        if other is not None:
            pairs.append((record, (record.answer, other)))
    if not pairs:
        raise InputError(
            f"scorer {scorer.name!r}: expected two open-ended records with different references, by whose scores beta "
            "is set; --config.rewards.scorer_beta=NUMBER sets it"
        )
    scores = np.asarray(scorer.score_batch(pairs), np.float64)
    known = scores[~np.isnan(scores).any(axis=1)]
    if not len(known):
        raise InputError(f"scorer {scorer.name!r} could not judge any of {len(pairs)} pairs of references")
    if np.ptp(known) <= _SAME * max(1.0, np.abs(known).max()):
        raise InputError(
            f"scorer {scorer.name!r} gives every one of {known.size} answers the score {known[0, 0]:.6g}: "
            "expected one that tells answers apart"
        )
    differences = np.abs(known[:, 0] - known[:, 1])
    positive = differences[differences > _SAME * max(1.0, np.abs(known).max())]
    if not len(positive):
        raise InputError(
            f"scorer {scorer.name!r} gives both answers of each of {len(known)} pairs the same score: expected one "
            "that tells answers to a question apart"
        )
    median = float(np.median(positive))
    return Steepness(math.log(2) / median, median, len(positive))
