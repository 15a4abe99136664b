"""Judges as scorers: S, and the steepness that fits its range."""

import collections
import math

import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.scorer import FromHost, JudgeScorer, fit_beta
from vlaa_jax.processing.records import Record

pytestmark = pytest.mark.quick


class Table:
    """A judge that knows the step scores of some texts."""

    name, whole = "table", False

    def __init__(self, scores):
        self.scores, self.problems, self.asked = scores, collections.Counter(), []

    def __call__(self, questions):
        self.asked += [(question.record.id, question.responses) for question in questions]
        return [[np.array(self.scores[text], float) for text in question.responses] for question in questions]


def records(*answers):
    return [Record(f"r{n}", (), "Describe.", answer, "open_ended") for n, answer in enumerate(answers)]


def test_s_is_the_mean_over_steps():
    scorer = JudgeScorer(Table({"a": [1.0, 4.0], "b": [-2.0], "c": [1.0, math.nan]}))
    scores = scorer.score_batch([(records("?")[0], ["a", "b", "c"])])
    assert scores[0][:2] == [2.5, -2.0] and math.isnan(scores[0][2])


def test_the_median_positive_difference_gives_one_half():
    """Pairs a-b, b-c, c-a with the differences 1, 3 and 4: the median is 3."""
    judge = Table({"a": [0.0], "b": [1.0], "c": [4.0]})
    fit = fit_beta(JudgeScorer(judge), records("a", "b", "c"))
    assert judge.asked == [("r0", ("a", "b")), ("r1", ("b", "c")), ("r2", ("c", "a"))]
    assert (fit.median, fit.pairs) == (3, 3)
    assert fit.beta == pytest.approx(math.log(2) / 3)
    assert 1 - math.exp(-fit.beta * 3) == pytest.approx(0.5)


def test_pairs_that_say_nothing_do_not_count():
    """Equal scores, equal texts and what could not be judged; the next record that says something else is taken."""
    judge = Table({"a": [2.0], "b": [2.0], "c": [math.nan], "d": [4.0]})
    fit = fit_beta(JudgeScorer(judge), records("a", "a", "b", "c", "d"))
    assert [answers for _, answers in judge.asked] == [("a", "b"), ("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")]
    assert (fit.median, fit.pairs) == (2, 1)


@pytest.mark.parametrize(
    ("scores", "answers", "message"),
    [
        ({"a": [0.25], "b": [0.25]}, "ab", "gives every one of 4 answers the score 0.25: expected one that tells"),
        ({"a": [3.0], "b": [3.0 + 1e-9]}, "ab", "gives every one of 4 answers the score 3"),
        ({"a": [math.nan], "b": [1.0]}, "ab", "could not judge any of 2 pairs"),
        ({"a": [1.0]}, "aa", "expected two open-ended records with different references"),
        ({}, "", "expected two open-ended records with different references"),
    ],
)
def test_a_scorer_that_tells_nothing_apart_is_refused(scores, answers, message):
    with pytest.raises(InputError, match=f"scorer 'table'.* ?{message}"):
        fit_beta(JudgeScorer(Table(scores)), records(*answers))


def test_weights_wait_on_the_host():
    class Weighted(Table):
        model = jnp.arange(3.0)

        def __call__(self, questions):
            self.seen = self.model.sharding.memory_kind, np.asarray(self.model).tolist()
            if not questions:
                raise RuntimeError("nothing to do")
            return super().__call__(questions)

    judge = Weighted({"a": [1.0]})
    device = judge.model.sharding.memory_kind
    waiting = FromHost(judge)
    assert (waiting.name, waiting.whole) == ("table", False)
    assert judge.model.sharding.memory_kind == "pinned_host" != device
    assert JudgeScorer(waiting).score_batch([(records("?")[0], ["a"])]) == [[1.0]]
    assert judge.seen == ("device", [0.0, 1.0, 2.0])
    with pytest.raises(RuntimeError):
        waiting([])
    assert judge.model.sharding.memory_kind == "pinned_host"
