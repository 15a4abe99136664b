import numpy as np
import pytest

from vlaa_jax.evaluation.best_of_n.answered import Answered, Judged
from vlaa_jax.evaluation.best_of_n.selection import (
    GREEDY,
    LONGEST,
    MAJORITY,
    MEAN,
    ORACLE,
    SHORTEST,
    Rule,
    best,
    majority,
    rules,
    select,
)
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import Trace

pytestmark = pytest.mark.quick


def verdict(score: float, form: str = "", valid: bool = True) -> Trace:
    return Trace(valid=valid, normal_form=form, rule="equal", score=score, extracted=form, seconds=0.0)


def question(scores, forms, texts=None, greedy=None) -> Answered:
    """A form of None is no valid answer."""
    traces = tuple(verdict(s, f or "", f is not None) for s, f in zip(scores, forms, strict=True))
    texts = texts or tuple(f"response {i}" for i in range(len(traces)))
    return Answered(Record("r", (), "?", "3", "digit"), tuple(texts), traces, greedy)


FOUR = question([1, 0, 0, 1], ["3", "4", "4", "3"], ["aa", "b", "ccc", "ddd"], ("g", verdict(1.0, "3")))
TWO = question([0, 1], ["4", "3"], ["b", "b"], ("g", verdict(0.0, "4")))
SCORES = {
    "steps": [
        [np.array([0.2, 0.8]), np.array([0.5, 0.5]), np.array([np.nan]), np.array([0.1, 0.9])],
        [np.array([0.7]), np.array([0.3])],
    ],
    "whole": [[np.array([0.1]), np.array([0.4]), np.array([0.4]), np.array([0.2])], [np.array([1.0]), np.array([1.0])]],
}
JUDGED = Judged("m", (FOUR, TWO), SCORES, frozenset({"whole"}))


def picked(rule: Rule, n: int) -> list:
    picks = select(JUDGED, rule, n)
    return [
        [None if np.isnan(x) else x for x in values.tolist()] for values in (picks.accuracy, picks.tied, picks.unread)
    ]


def test_ties_are_drawn_evenly():
    np.testing.assert_array_equal(best(np.array([1.0, 3.0, 3.0, 2.0])), [0, 0.5, 0.5, 0])
    np.testing.assert_array_equal(best(np.array([-1.0])), [1])


def test_a_vote():
    np.testing.assert_array_equal(majority(["4", "3", "3", None]), [0, 0.5, 0.5, 0])
    # Two answers have two votes each: each answer is drawn half the time, and one of its two responses with it.
    np.testing.assert_array_equal(majority(["4", "3", "3", "4", "5", None]), [0.25, 0.25, 0.25, 0.25, 0, 0])
    np.testing.assert_array_equal(majority([None, None]), [0.5, 0.5])
    assert majority(["4", "3", "3"]) @ np.array([1.0, 0.0, 0.0]) == 0


@pytest.mark.parametrize(
    ("name", "at_two", "at_four"),
    [
        (MEAN, [0.5, 0.5], [0.5, None]),
        (ORACLE, [1.0, 1.0], [1.0, None]),
        (MAJORITY, [0.5, 0.5], [0.5, None]),
        (SHORTEST, [0.0, 0.5], [0.0, None]),
        (LONGEST, [1.0, 0.5], [0.5, None]),
        (GREEDY, [1.0, 0.0], [1.0, None]),
    ],
)
def test_baselines(name, at_two, at_four):
    assert picked(Rule(name), 2)[0] == at_two
    assert picked(Rule(name), 4)[0] == at_four


def test_judges():
    # Means 0.5, 0.5 | unread -> 0.5 | 0.5: all four tie, and so do the first two.
    assert picked(Rule("steps", "mean"), 2) == [[0.5, 0.0], [1, 0], [0, 0]]
    assert picked(Rule("steps", "mean"), 4) == [[0.5, None], [1, None], [1, None]]
    # Last scores 0.8, 0.5, unread -> 2.2 / 3, 0.9.
    assert picked(Rule("steps", "last"), 2) == [[1.0, 0.0], [0, 0], [0, 0]]
    assert picked(Rule("steps", "last"), 4) == [[1.0, None], [0, None], [1, None]]
    assert picked(Rule("whole", "last"), 4) == [[0.0, None], [1, None], [0, None]]
    # Equal texts with equal scores are no tie: there is nothing to decide.
    assert picked(Rule("whole", "last"), 2) == [[0.0, 0.5], [0, 0], [0, 0]]


def test_rewards_of_picks():
    graded = question([0.25, 0.75], ["[1]", "[2]"])
    judged = Judged("m", (graded,), {"j": [[np.array([2.0]), np.array([2.0])]]})
    assert select(judged, Rule("j", "mean"), 2).reward.tolist() == [0.5]
    assert select(judged, Rule(ORACLE), 2).reward.tolist() == [0.75]
    assert select(judged, Rule("j", "mean"), 2).accuracy.tolist() == [0.5]


def test_responses_that_a_judge_has_not_seen_leave_the_cell_empty():
    judged = Judged("m", (FOUR,), {"j": [[np.array([1.0]), np.array([0.0])]]})
    assert select(judged, Rule("j", "mean"), 2).accuracy.tolist() == [1.0]
    assert np.isnan(select(judged, Rule("j", "mean"), 4).accuracy).all()


def test_rows():
    names = [(rule.judge, rule.aggregation) for rule in rules(JUDGED)]
    assert [name for name, how in names if not how] == [MEAN, ORACLE, MAJORITY, SHORTEST, LONGEST, GREEDY]
    assert [how for name, how in names if name == "whole"] == ["last"]
    assert len([how for name, how in names if name == "steps"]) == 7
    without = Judged("m", (FOUR, question([1], ["3"])), {})
    assert Rule(GREEDY) not in rules(without)
