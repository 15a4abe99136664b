"""Which of N responses is picked: by a judge, by a vote, by its length; exact where several are equally good.

A pick is a vector of N chances: what a rule cannot decide is drawn evenly, so its accuracy is the expected one and
nothing here is random. A rule looks at a question's first N responses, and at nothing else.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlaa_jax.evaluation.best_of_n.answered import Answered, Judged
from vlaa_jax.evaluation.judges.aggregate import aggregate, aggregations, fill

MEAN, ORACLE, MAJORITY, SHORTEST, LONGEST, GREEDY = (
    "mean sample",
    "oracle",
    "majority vote",
    "shortest",
    "longest",
    "greedy",
)
BASELINES = (MEAN, ORACLE, MAJORITY, SHORTEST, LONGEST, GREEDY)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A row of the tables.

    Attributes:
      judge: a judge's name, or one of `BASELINES`.
      aggregation: of the judge's step scores; '' for a baseline.
    """

    judge: str
    aggregation: str = ""


@dataclasses.dataclass(frozen=True)
class Picks:
    """What a rule picked of the first N responses of Q questions; NaN where a question has fewer.

    Attributes:
      accuracy: `[Q]` chance that the pick is right.
      reward: `[Q]` expected reward of the pick.
      tied: `[Q]` 1 where the rule could not decide between responses that differ.
      unread: `[Q]` responses without a score of their own.
    """

    accuracy: np.ndarray
    reward: np.ndarray
    tied: np.ndarray
    unread: np.ndarray


def best(scores: np.ndarray) -> np.ndarray:
    """Chances `[N]` when one of the highest scores `[N]` is drawn."""
    highest = scores == scores.max()
    return highest / highest.sum()


def majority(forms: Sequence[str | None]) -> np.ndarray:
    """Chances `[N]` when one of the most frequent answers is drawn, and with it one that gave it.

    Args:
      forms: normal form of each response's answer; None for one without, which has no vote. Without any vote all have
        the same chance.
    """
    counts = collections.Counter(form for form in forms if form is not None)
    if not counts:
        return np.full(len(forms), 1 / len(forms))
    most = max(counts.values())
    winners = [form for form, count in counts.items() if count == most]
    return np.asarray([1 / (len(winners) * most) if form in winners else 0.0 for form in forms])


def rules(judged: Judged) -> list[Rule]:
    """The rows: baselines, then every judge with its aggregations."""
    found = [Rule(name) for name in BASELINES]
    if not all(question.greedy for question in judged.questions):
        found.remove(Rule(GREEDY))
    for judge, scores in judged.scores.items():
        found += [Rule(judge, how) for how in aggregations(scores, whole=judge in judged.whole)]
    return found


def select(judged: Judged, rule: Rule, n: int) -> Picks:
    """What a rule picks of the first `n` responses of every question."""
    picks = Picks(*(np.full(len(judged.questions), np.nan) for _ in range(4)))
    for place, question in enumerate(judged.questions):
        scores = judged.scores[rule.judge][place] if rule.aggregation else question.texts
        if min(len(question.texts), len(scores)) < n:
            continue
        if rule.judge in _CHANCES:
            chances, unread = _CHANCES[rule.judge](question, n), 0
        elif rule.judge in (ORACLE, GREEDY):
            picks.accuracy[place], picks.reward[place] = _known(question, rule, n)
            picks.tied[place] = picks.unread[place] = 0
            continue
        else:
            found = aggregate(scores[:n], rule.aggregation)
            chances, unread = best(fill(found)), int(np.isnan(found).sum())
        picks.accuracy[place] = chances @ question.right[:n]
        picks.reward[place] = chances @ question.rewards[:n]
        drawn = {text for text, chance in zip(question.texts[:n], chances, strict=True) if chance}
        picks.tied[place] = len(drawn) > 1
        picks.unread[place] = unread
    return picks


def _forms(question: Answered, n: int) -> list[str | None]:
    return [trace.normal_form if trace.valid else None for trace in question.traces[:n]]


def _lengths(question: Answered, n: int) -> np.ndarray:
    return np.asarray([len(text) for text in question.texts[:n]])


_CHANCES: Mapping[str, Callable[[Answered, int], np.ndarray]] = {
    MEAN: lambda question, n: np.full(n, 1 / n),
    MAJORITY: lambda question, n: majority(_forms(question, n)),
    SHORTEST: lambda question, n: best(-_lengths(question, n)),
    LONGEST: lambda question, n: best(_lengths(question, n)),
}


def _known(question: Answered, rule: Rule, n: int) -> tuple[float, float]:
    """Accuracy and reward of the best response, or of the greedy one."""
    if rule.judge == ORACLE:
        return question.right[:n].max(), question.rewards[:n].max()
    greedy = dataclasses.replace(question, texts=question.greedy[:1], traces=question.greedy[1:])
    return greedy.right[0], greedy.rewards[0]
