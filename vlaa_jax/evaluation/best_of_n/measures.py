"""What picks are worth: means over questions with bootstrap intervals, and their gain over the mean sample."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from vlaa_jax.evaluation.best_of_n.answered import Judged
from vlaa_jax.evaluation.best_of_n.selection import LONGEST, MAJORITY, MEAN, SHORTEST, Picks, Rule, rules, select
from vlaa_jax.evaluation.bootstrap import Estimate, interval, paired_interval
from vlaa_jax.evaluation.judges.aggregate import ORM, PRM
from vlaa_jax.processing.records import VERIFIERS

_RESAMPLES = 2000
DOMINANCE = ("text", "vision")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A rule at one N, over some questions.

    Attributes:
      questions: that have N responses.
      accuracy, reward: of the pick.
      gain: of the accuracy over that of the mean sample, on the same questions.
      tied: share of the questions where the rule could not decide between responses that differ.
      unread: responses without a score of their own.
    """

    questions: int
    accuracy: Estimate
    reward: Estimate
    gain: Estimate
    tied: float
    unread: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """All figures of one model's responses.

    Attributes:
      model: that answered.
      rules: rows.
      sizes: the Ns that were asked for.
      cells: by rule and N; none where no question has N responses.
      splits: title -> group -> rule -> cell at `largest`.
      duels: by two rules, the gain of the first one's accuracy over the second's on the same questions, at `largest`.
    """

    model: str
    rules: list[Rule]
    sizes: tuple[int, ...]
    cells: Mapping[tuple[Rule, int], Cell]
    splits: Mapping[str, Mapping[str, Mapping[Rule, Cell]]]
    duels: Mapping[tuple[Rule, Rule], Estimate]

    @property
    def largest(self) -> int:
        """The largest N with figures; 0 for none."""
        return max((n for _, n in self.cells), default=0)


def measure(judged: Judged, sizes: Sequence[int], *, dominance: str = "dominance") -> Measured:
    """The figures of every rule at every N, and at the largest one by verifier and by dominance.

    Args:
      judged: one model's responses.
      sizes: the Ns.
      dominance: field of a record's metadata that is `text` or `vision`: what its question can be answered from.
    """
    found = rules(judged)
    picks = {(rule, n): select(judged, rule, n) for rule in found for n in sizes}
    every = np.ones(len(judged.questions), bool)
    cells = _cells(picks, every)
    measured = Measured(judged.model, found, tuple(sizes), cells, {}, {})
    largest = measured.largest
    at_largest = {key: own for key, own in picks.items() if key[1] == largest}
    verifiers = np.asarray([question.record.verifier for question in judged.questions])
    dominances = np.asarray([str(question.record.metadata.get(dominance, "")) for question in judged.questions])
    splits = {}
    for title, names, labels in (("verifier", VERIFIERS, verifiers), ("dominance", DOMINANCE, dominances)):
        groups = {name: _cells(at_largest, labels == name) for name in names}
        groups = {name: {rule: cell for (rule, _), cell in own.items()} for name, own in groups.items() if own}
        if len(groups) > 1 or (groups and title == "dominance"):
            splits[title] = groups
    return dataclasses.replace(measured, splits=splits, duels=_duels(judged, at_largest))


def _duels(judged: Judged, picks: Mapping[tuple[Rule, int], Picks]) -> dict[tuple[Rule, Rule], Estimate]:
    """Every judge, by the mean of its step scores or its only score, against each other one and against no judge."""
    judges = [Rule(name, ORM if name in judged.whole else PRM) for name in judged.scores]
    others = [*judges, *map(Rule, (MAJORITY, SHORTEST, LONGEST))]
    accuracy = {rule: own.accuracy for (rule, _), own in picks.items()}
    duels = {}
    for first, second in itertools.product(judges, others):
        if first == second or not {first, second} <= accuracy.keys():
            continue
        both = ~np.isnan(accuracy[first] + accuracy[second])
        if both.any():
            before, after = accuracy[second][both], accuracy[first][both]
            duels[first, second] = paired_interval(before, after, resamples=_RESAMPLES)
    return duels


def _cells(picks: Mapping[tuple[Rule, int], Picks], chosen: np.ndarray) -> dict[tuple[Rule, int], Cell]:
    cells = {}
    for (rule, n), own in picks.items():
        mean = picks[Rule(MEAN), n].accuracy
        here = chosen & ~np.isnan(own.accuracy)
        if here.any():
            cells[rule, n] = Cell(
                int(here.sum()),
                interval(own.accuracy[here], resamples=_RESAMPLES),
                interval(own.reward[here], resamples=_RESAMPLES),
                paired_interval(mean[here], own.accuracy[here], resamples=_RESAMPLES),
                float(own.tied[here].mean()),
                int(own.unread[here].sum()),
            )
    return cells
