"""When two sides count as computing the same."""

import numpy as np
import pytest

from vlaa_jax.benchmark.agreement import Disagreement, check_update, compare_drawn, compare_greedy
from vlaa_jax.benchmark.presets import find

pytestmark = pytest.mark.quick


def greedy(*rows):
    """Completions from pairs of a token and its log-probability."""
    return {"tokens": [[t for t, _ in row] for row in rows], "log_probabilities": [[p for _, p in row] for row in rows]}


def test_equal_completions_are_counted():
    first = greedy([(5, -1.0), (6, -2.0)], [(7, -1.0), (8, -1.5)])
    second = greedy([(5, -1.0), (6, -2.0005)], [(7, -1.0), (8, -1.5)])
    assert compare_greedy(first, second, 1e-3) == 2


def test_after_a_tie_nothing_is_compared():
    first = greedy([(5, -1.0), (6, -2.0), (1, -3.0)], [(7, -1.0)] * 3)
    second = greedy([(5, -1.0), (9, -2.0005), (2, -8.0)], [(7, -1.0)] * 3)
    assert compare_greedy(first, second, 1e-3) == 1


@pytest.mark.parametrize(
    "other",
    [
        [(5, -1.0), (9, -2.1)],  # another token, less likely
        [(5, -1.01), (6, -2.0)],  # the same tokens at another probability
        [(5, float("nan")), (6, -2.0)],
    ],
)
def test_a_difference_is_refused(other):
    with pytest.raises(Disagreement, match=r"greedy completion 0: .* at most 0\.001 was expected"):
        compare_greedy(greedy([(5, -1.0), (6, -2.0)]), greedy(other), 1e-3)


def test_draws_may_part_at_neighbours():
    first = np.array([[5, 6, 7], [5, 6, 7], [1, 2, 0]])
    assert compare_drawn(first, np.array([[5, 6, 7], [5, 7, 400], [1, 2, 0]])) == 2


def test_other_draws_are_refused():
    with pytest.raises(Disagreement, match="completion 1: token 1 is 6 in segments and 8 in one loop"):
        compare_drawn(np.array([[5, 6], [5, 6]]), np.array([[5, 6], [5, 8]]))


@pytest.mark.parametrize(("loss", "norm"), [(0.5, 2.01), (0.6, 2.0), (float("nan"), 2.0)])
def test_another_update_is_refused(loss, norm):
    with pytest.raises(Disagreement, match="first update: loss "):
        check_update({"loss": loss, "gradient_norm": norm}, {"loss": 0.5, "gradient_norm": 2.0}, find("tiny"))


def test_the_same_update():
    sentence = check_update({"loss": 0.5, "gradient_norm": 2.001}, {"loss": 0.5, "gradient_norm": 2.0}, find("tiny"))
    assert sentence == "loss of the first update differs by 0.0e+00, its gradient's norm by 5.0e-04 of itself"
