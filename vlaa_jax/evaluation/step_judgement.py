"""How well step scores judge reasoning: the first wrong step, order, and calibration.

The first wrong step is exact where someone has marked it (a step of a demo trace is a fact of its scene). Where steps
have values only, it is the first labelled one with a value below `HALF`, and metrics say so: `first_below_half`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

HALF = 0.5
BINS = 10


@dataclasses.dataclass(frozen=True)
class JudgedSolution:
    """A solution's steps with what a judge and the truth say of them.

    Attributes:
      scores: `[S]` in [0, 1].
      values: `[S]` in [0, 1]; NaN where none is known.
      own: `[S]` steps that no other solution of the question shares, or of which this one is the first: what is said
        of single steps counts each once.
      first_wrong: place of the first wrong step, -1 where all are right; None where nobody has marked it.
    """

    scores: np.ndarray
    values: np.ndarray
    own: np.ndarray
    first_wrong: int | None = None


def judge_steps(solutions: Sequence[JudgedSolution], *, threshold: float = HALF) -> dict[str, float]:
    """All metrics; one that has no value (an F1 without a wrong step) has no key.

    `mse`: mean of `(score - value)^2` over the labelled steps. `brier`: the same against 1 for a right step and 0 for a
    wrong one, that is, for a value below `HALF`. `ece`: see `calibration_error`, against the values.
    `first_wrong/...` of the solutions with a marked step and `first_below_half/...` of the others: `f1`,
    `accuracy_with`, `accuracy_without` (`first_wrong_f1`) and `auroc` (`first_wrong_auroc`).

    Args:
      solutions: of any questions.
      threshold: a step with a score below it is called wrong.
    """
    chosen = [solution.own & ~np.isnan(solution.values) for solution in solutions]
    scores = np.concatenate([solution.scores[own] for solution, own in zip(solutions, chosen, strict=True)])
    values = np.concatenate([solution.values[own] for solution, own in zip(solutions, chosen, strict=True)])
    out: dict[str, float] = {}
    if len(scores):
        out["mse"] = float(np.mean((scores - values) ** 2))
        out["brier"] = float(np.mean((scores - (values >= HALF)) ** 2))
        out["ece"] = calibration_error(scores, values)
    marked = [solution for solution in solutions if solution.first_wrong is not None]
    valued = [_labelled(solution) for solution in solutions if solution.first_wrong is None]
    valued = [solution for solution in valued if len(solution.values)]
    for name, group in (("first_wrong", marked), ("first_below_half", valued)):
        found = first_wrong_metrics(group, threshold=threshold)
        out |= {f"{name}/{metric}": value for metric, value in found.items()}
    return out


def first_wrong_metrics(solutions: Sequence[JudgedSolution], *, threshold: float = HALF) -> dict[str, float]:
    """`first_wrong_f1` and `first_wrong_auroc` of solutions whose first wrong step is known."""
    truth = [solution.first_wrong for solution in solutions]
    scores = [solution.scores for solution in solutions]
    out = first_wrong_f1([first_below(own, threshold) for own in scores], truth)
    area = first_wrong_auroc(scores, truth)
    return out if area is None else out | {"auroc": area}


def first_below(scores: np.ndarray, threshold: float) -> int:
    """Place of the first score below, -1 where there is none."""
    below = np.flatnonzero(scores < threshold)
    return int(below[0]) if len(below) else -1


def first_wrong_f1(predicted: Sequence[int], truth: Sequence[int]) -> dict[str, float]:
    """F1 of the first wrong step as ProcessBench defines it (Zheng et al., arXiv 2412.06559).

    `accuracy_with`: share of the solutions with a wrong step in which just the first one is predicted.
    `accuracy_without`: share of those without in which none is. `f1`: their harmonic mean, 0 where either is 0.

    Args:
      predicted, truth: of each solution the place of its first wrong step, -1 for none.

    Returns:
      The three; one that has no solution to be taken over, and then `f1` too, is left out.
    """
    predicted, truth = np.asarray(predicted, int), np.asarray(truth, int)
    hit, wrong = predicted == truth, truth >= 0
    out = {}
    if wrong.any():
        out["accuracy_with"] = float(hit[wrong].mean())
    if not wrong.all():
        out["accuracy_without"] = float(hit[~wrong].mean())
    if len(out) == 2:
        both = sum(out.values())
        out["f1"] = 2 * out["accuracy_with"] * out["accuracy_without"] / both if both else 0.0
    return out


def first_wrong_auroc(scores: Sequence[np.ndarray], truth: Sequence[int]) -> float | None:
    """Probability that a right step has a higher score than a first wrong one, of any two solutions; ties count half.

    Right are the steps before the first wrong one, or all. What follows a wrong step is neither.

    Args:
      scores: `[S]` of each solution.
      truth: place of its first wrong step, -1 for none.

    Returns:
      None where there is no right or no wrong step.
    """
    right = [own if first < 0 else own[:first] for own, first in zip(scores, truth, strict=True)]
    wrong = np.asarray([own[first] for own, first in zip(scores, truth, strict=True) if first >= 0])
    right = np.concatenate(right) if right else wrong[:0]
    return auroc(right, wrong) if len(right) and len(wrong) else None


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: share of pairs in which the positive score is the higher one, ties counted half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float(np.mean(below + not_above) / (2 * len(negative)))


def calibration_error(scores: np.ndarray, values: np.ndarray, *, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599): |mean score - mean value| of equal bins of the score.

    Weighted by the steps of a bin.

    Args:
      scores, values: `[N]` in [0, 1].
      bins: of equal width; a score of 1 is in the last one.
    """
    place = np.minimum((np.asarray(scores, np.float64) * bins).astype(int), bins - 1)
    gap = np.bincount(place, np.asarray(scores, np.float64) - values, minlength=bins)
    return float(np.abs(gap).sum() / len(scores))


def _labelled(solution: JudgedSolution) -> JudgedSolution:
    """The labelled steps alone, with the first of value below `HALF` as the first wrong one."""
    known = ~np.isnan(solution.values)
    values = solution.values[known]
    return JudgedSolution(solution.scores[known], values, solution.own[known], first_below(values, HALF))
