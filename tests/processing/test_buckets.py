"""Chosen buckets against every choice there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.processing.buckets import choose_buckets, ladder

pytestmark = pytest.mark.quick


def expected_bucket(sizes: list[int], drawn: int, buckets: tuple[int, ...]) -> float:
    """Mean over all ordered draws with replacement, by their probabilities."""
    at_most = lambda bound: np.mean(np.asarray(sizes) <= bound) ** drawn  # noqa: E731
    bounds = [-1, *buckets]  # a size of 0 takes a bucket too
    return sum(high * (at_most(high) - at_most(low)) for low, high in itertools.pairwise(bounds))


def test_by_hand():
    # One of two draws is 40 in 3 of 4 cases: 20 * 1/4 + 40 * 3/4.
    assert expected_bucket([20, 40], 2, (20, 40)) == 35
    assert expected_bucket([0, 2], 1, (2,)) == 2
    assert choose_buckets([20, 40], 2, drawn=2, multiple=4) == (20, 40)
    assert choose_buckets([17, 40], 1, drawn=2, multiple=4) == (40,)
    assert choose_buckets([10] * 98 + [200] * 2, 2, drawn=1, multiple=1) == (10, 200)
    # The largest of 500 is 200 in 99.996 % of all batches: a second program would save nothing.
    assert choose_buckets([10] * 98 + [200] * 2, 2, drawn=500, multiple=1) == (200,)
    assert choose_buckets([0], 3, drawn=1, multiple=4) == (4,)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([1, 8]),
)
def test_no_choice_is_better_by_more_than_a_hundredth(sizes, most, drawn, multiple):
    chosen = choose_buckets(sizes, most, drawn=drawn, multiple=multiple)
    assert len(chosen) <= most and list(chosen) == sorted(set(chosen))
    assert all(size % multiple == 0 for size in chosen)
    assert max(sizes) <= chosen[-1] < max(1, max(sizes)) + multiple
    rounded = sorted({max(1, -(-size // multiple)) * multiple for size in sizes})
    others = [
        (*some, rounded[-1])
        for count in range(min(most, len(rounded)))
        for some in itertools.combinations(rounded[:-1], count)
    ]
    best = min(expected_bucket(sizes, drawn, other) for other in others)
    assert expected_bucket(sizes, drawn, chosen) <= 1.01 * best + 1e-9
    # Fewer would cost more than that.
    fewer = [other for other in others if len(other) < len(chosen)]
    assert all(expected_bucket(sizes, drawn, other) > 1.01 * best for other in fewer)


def test_a_ladder_has_equal_steps():
    assert ladder(100, 1600, 4, multiple=1) == (200, 400, 800, 1600)
    assert ladder(100, 1600, 4, multiple=64) == (256, 448, 832, 1600)
    assert ladder(50, 60, 4, multiple=64) == (64,)
