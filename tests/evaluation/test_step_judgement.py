import numpy as np
import pytest
from scipy import stats

from vlaa_jax.evaluation.step_judgement import (
    JudgedSolution,
    auroc,
    calibration_error,
    first_wrong_auroc,
    first_wrong_f1,
    judge_steps,
)

pytestmark = pytest.mark.quick

NONE = np.nan


def judged(scores, values, own=None, first_wrong=None) -> JudgedSolution:
    scores, values = np.asarray(scores, float), np.asarray(values, float)
    return JudgedSolution(scores, values, np.ones(len(scores), bool) if own is None else np.asarray(own), first_wrong)


def test_f1_of_the_first_wrong_step_by_hand():
    """Four solutions with a wrong step, one hit; two without, one left alone: 2 * 1/4 * 1/2 / (3/4) = 1/3."""
    truth = [2, 0, 1, 3, -1, -1]
    predicted = [2, 1, -1, 2, -1, 0]
    assert first_wrong_f1(predicted, truth) == {
        "accuracy_with": 0.25,
        "accuracy_without": 0.5,
        "f1": pytest.approx(1 / 3),
    }
    assert first_wrong_f1([1, 0], [0, -1]) == {"accuracy_with": 0.0, "accuracy_without": 0.0, "f1": 0.0}
    assert first_wrong_f1([-1], [-1]) == {"accuracy_without": 1.0}
    assert first_wrong_f1([0], [1]) == {"accuracy_with": 0.0}


def test_auroc_of_the_first_wrong_step_by_hand():
    """Right: .9 .6 (before the wrong .6), .5 (a whole one). Wrong: .6 and .2. What follows a wrong step is neither.

    .9 beats both, .6 ties one and beats one, .5 beats one: 2 + 1.5 + 1 of 6.
    """
    scores = [np.array([0.9, 0.6, 0.6, 0.99]), np.array([0.2, 0.99]), np.array([0.5])]
    assert first_wrong_auroc(scores, [2, 0, -1]) == pytest.approx(4.5 / 6)
    assert first_wrong_auroc(scores[2:], [-1]) is None
    assert first_wrong_auroc(scores[1:2], [0]) is None


def test_auroc_is_that_of_ranks():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 40) / 8, rng.integers(0, 7, 30) / 8
    u = stats.mannwhitneyu(positive, negative).statistic
    assert auroc(positive, negative) == pytest.approx(u / (40 * 30))


def test_calibration_by_hand():
    """Bin 0: scores .05 .0 against 0 1, gap |.025 - .5| of 2; bin 9: .95 and 1 against 1 and .5, gap .225 of 2."""
    error = calibration_error(np.array([0.05, 0.0, 0.95, 1.0]), np.array([0, 1, 1, 0.5]))
    assert error == pytest.approx((2 * 0.475 + 2 * 0.225) / 4)
    assert calibration_error(np.array([0.25, 0.25]), np.array([0.5, 0.0])) == 0


def test_values_stand_in_for_marks_that_nobody_made():
    """The unlabelled step in the middle is passed over; the shared first step counts once in what is of steps."""
    solutions = [
        judged([0.9, 0.1, 0.2], [1.0, NONE, 0.0]),
        judged([0.9, 0.8], [1.0, 0.75], own=[False, True]),
    ]
    found = judge_steps(solutions)
    assert found == {
        "mse": pytest.approx((0.1**2 + 0.2**2 + 0.05**2) / 3),
        "brier": pytest.approx((0.1**2 + 0.2**2 + 0.2**2) / 3),
        "ece": pytest.approx((0.1 + 0.2 + 0.05) / 3),
        "first_below_half/accuracy_with": 1.0,
        "first_below_half/accuracy_without": 1.0,
        "first_below_half/f1": 1.0,
        "first_below_half/auroc": 1.0,
    }
    assert judge_steps(solutions, threshold=0.85)["first_below_half/accuracy_without"] == 0.0


def test_a_mark_goes_before_values():
    """All values are low, but the first wrong step is marked: the second."""
    found = judge_steps([judged([0.9, 0.4, 0.9], [0.0, 0.0, 0.0], first_wrong=1), judged([0.9], [0.0], first_wrong=-1)])
    assert found["first_wrong/f1"] == 1.0 and found["first_wrong/auroc"] == 1.0
    assert not any(name.startswith("first_below_half") for name in found)


def test_steps_without_any_value_have_no_error():
    assert judge_steps([judged([0.3], [NONE])]) == {}
