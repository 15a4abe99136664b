"""From the scores of a response's steps to one of the response.

What ViLBench calls ORM and PRM are aggregations of one judge's step scores: the last score and the mean of all. Between
them lie the means of the last n (its Figure 3).
"""

from collections.abc import Callable, Sequence

import numpy as np


def _last(n: int) -> Callable[[np.ndarray], float]:
    return lambda scores: np.mean(scores[-n:])


AGGREGATIONS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "last": _last(1),
    "last-2": _last(2),
    "last-4": _last(4),
    "last-8": _last(8),
    "min": np.min,
    "product": np.prod,
}
PRM, ORM = "mean", "last"
LAST_N = {"last": 1, "last-2": 2, "last-4": 4, "last-8": 8}  # scores that are read; "mean" reads all


def aggregate(scores: Sequence[np.ndarray], how: str) -> np.ndarray:
    """Scores `[N]` of responses; NaN where a score that is read is NaN.

    Args:
      scores: `[S]` of each response.
      how: of `AGGREGATIONS`; of fewer than n steps, last-n reads all.
    """
    return np.asarray([AGGREGATIONS[how](np.asarray(own, np.float64)) for own in scores], np.float64)


def aggregations(scores: Sequence[Sequence[np.ndarray]], *, whole: bool) -> tuple[str, ...]:
    """The aggregations that say something of a judge.

    Of one score a response there is only the last. Where scores may be negative (likelihoods, logits), their product
    says nothing.

    Args:
      scores: of all responses of all questions.
      whole: of the judge.
    """
    if whole:
        return (ORM,)
    negative = any((own < 0).any() for question in scores for own in question)
    return tuple(name for name in AGGREGATIONS if name != "product" or not negative)


def fill(scores: np.ndarray) -> np.ndarray:
    """Scores `[N]` of a question's responses, those that are NaN replaced by the mean of the others.

    So a response that the judge could not read is neither favoured nor ruled out; where it could read none, all tie.
    """
    known = np.isfinite(scores)
    return np.where(known, scores, scores[known].mean() if known.any() else 0.0)
