"""Partial solutions as paths of a tree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.training.step_paths import step_paths

pytestmark = pytest.mark.quick


def test_a_tree_by_hand():
    """a -> b -> c, and a -> d twice; nobody has judged b."""
    processes = ["a", "abc", "ad", "ad", "e"]
    paths = step_paths(list(map(list, processes)), [0.5, 1.0, 0.2, 0.6, 0.1])
    assert [path.place for path in paths] == [1, 2, 4]
    np.testing.assert_allclose(paths[0].values, [0.5, np.nan, 1.0])
    np.testing.assert_array_equal(paths[0].weights, [1, 0, 1])
    np.testing.assert_allclose(paths[1].values, [0.5, 0.4])
    np.testing.assert_array_equal(paths[1].weights, [0, 2])
    np.testing.assert_allclose(paths[2].values, [0.1])


@given(
    processes=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), min_size=1, max_size=30),
    seed=st.integers(0, 99),
)
def test_every_process_is_counted_once_whatever_the_tree(processes, seed):
    values = np.random.default_rng(seed).random(len(processes))
    paths = step_paths(processes, values.tolist())
    wholes = [tuple(processes[path.place]) for path in paths]
    counted: dict[tuple, int] = {}
    for path, whole in zip(paths, wholes, strict=True):
        assert len(path.values) == len(path.weights) == len(whole)
        for depth, weight in enumerate(path.weights, 1):
            same = [i for i, steps in enumerate(processes) if tuple(steps) == whole[:depth]]
            assert (
                np.isnan(path.values[depth - 1])
                if not same
                else np.isclose(path.values[depth - 1], values[same].mean())
            )
            if weight:
                assert whole[:depth] not in counted
                counted[whole[:depth]] = len(same)
                assert weight == len(same)
    assert set(counted) == set(map(tuple, processes)) and sum(counted.values()) == len(processes)
    # No path is a part of another: there are as few as can be.
    assert not any(a != b and b[: len(a)] == a for a in wholes for b in wholes) and len(set(wholes)) == len(wholes)
