"""The PRM-preference indicator: does a judge do better as a process reward model (PRM) than as an outcome model (ORM)?

As PRM its step scores are averaged, as ORM the last one counts. The paper calls the indicator the average PRM score
less the average ORM score over the candidate responses; its formula was not published. Two readings of it are here: the
gap in scores, and the gap in right picks.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vlaa_jax.evaluation.judges.aggregate import ORM, PRM, aggregate, fill

Scores = Mapping[str, Sequence[np.ndarray]]
"""Of each judge, for each of N responses to one question, its step scores `[S]`."""


def score_gap(scores: Scores) -> float:
    """Mean over judges and responses of the mean step score less the last one.

    Responses that were not read are left out. Judges weigh in with their own units: they should share a range.

    Returns:
      The gap; NaN where nothing was read.
    """
    gaps = np.concatenate([aggregate(own, PRM) - aggregate(own, ORM) for own in scores.values()])
    known = gaps[~np.isnan(gaps)]
    return float(known.mean()) if len(known) else np.nan


def accuracy_gap(scores: Scores, right: np.ndarray) -> float:
    """Number of judges whose pick by the mean is right less the number of those whose pick by the last score is.

    Between responses with the same score the pick is drawn, so a judge counts with the share of them that is right.

    Args:
      scores: of the question.
      right: `[N]`, 1 for a right response, else 0.
    """
    return float(sum(_chance(own, PRM, right) - _chance(own, ORM, right) for own in scores.values()))


def _chance(scores: Sequence[np.ndarray], how: str, right: np.ndarray) -> float:
    """That the picked response is right."""
    values = fill(aggregate(scores, how))
    return float(right[values == values.max()].mean())
