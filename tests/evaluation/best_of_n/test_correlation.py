import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vlaa_jax.evaluation.best_of_n.correlation import correlate

pytestmark = pytest.mark.quick


def test_literals():
    # Of the 24 orders only the order itself and its reverse are as far from 0.
    assert correlate([1, 2, 3, 4], [2, 4, 6, 8]) == (pytest.approx(1.0), pytest.approx(2 / 24), 4)
    assert correlate([1, 2, 3, 4], [8, 6, 4, 2]) == (pytest.approx(-1.0), pytest.approx(2 / 24), 4)
    # Orders of (1, 0, 0) against (1, 2, 3): r is -0.87 or 0.87 where the 1 stands at an end, twice each; 0 between.
    assert correlate([1, 2, 3], [1, 0, 0]) == (pytest.approx(-math.sqrt(0.75)), pytest.approx(4 / 6), 3)
    assert correlate([1, 2, 3], [0, 1, 0]) == (pytest.approx(0.0), pytest.approx(1.0), 3)


def test_r_is_that_of_scipy_and_p_that_of_all_orders():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 6))
    found = correlate(x, y)
    expected = stats.pearsonr(x, y).statistic
    assert found.r == pytest.approx(expected)
    others = [stats.pearsonr(x, order).statistic for order in itertools.permutations(y)]
    assert found.p == pytest.approx(np.mean(np.abs(others) >= abs(expected) - 1e-9))


def test_more_pairs_than_orders_can_be_tried():
    generator = np.random.default_rng(0)
    x = generator.standard_normal(20)
    y = x + 2 * np.random.default_rng(1).standard_normal(20)
    assert correlate(x, y).p == pytest.approx(stats.pearsonr(x, y).pvalue, abs=0.02)
    assert correlate(x, y) == correlate(x, y)
    assert correlate(x, x).p == pytest.approx(1 / 100_001)


@pytest.mark.parametrize("pairs", [([0.5, 0.6], [0.1, 0.2]), ([0.5] * 4, [1, 2, 3, 4]), ([1, 2, 3], [0.3] * 3)])
def test_nothing_to_correlate(pairs):
    found = correlate(*pairs)
    assert math.isnan(found.r) and math.isnan(found.p)
