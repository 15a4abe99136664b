"""M-RoPE positions, literally; tests/models compares them with transformers'."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vlaa_jax.processing.positions import mrope_positions

pytestmark = pytest.mark.quick


def vision(text):
    return np.asarray([letter == "v" for letter in text])


def test_text_image_text():
    positions = mrope_positions(vision("ttvvvvvvtt"), [(1, 4, 6)], merge=2)
    assert positions.dtype == np.int32
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_images_side_by_side_and_at_the_ends():
    positions = mrope_positions(vision("vvvv"), [(1, 2, 2), (1, 2, 6)], merge=2)
    assert positions.tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 2, 3]]


def test_video_time_follows_seconds():
    grids = [(3, 2, 2)]
    positions = mrope_positions(vision("tvvvt"), grids, merge=2, tokens_per_second=2, seconds_per_grid=[1.25])
    assert positions.tolist() == [[0, 1, 3, 6, 7], [0, 1, 1, 1, 7], [0, 1, 1, 1, 7]]


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 5), st.tuples(st.integers(1, 5), st.integers(1, 5))), max_size=4),
    st.integers(0, 5),
)
def test_runs_follow_each_other(parts, tail):
    is_vision, grids, expected, start = [], [], [], 0
    for text, (rows, columns) in parts:
        expected += [(start + i,) * 3 for i in range(text)]
        start += text
        expected += [(start, start + row, start + column) for row in range(rows) for column in range(columns)]
        start += max(rows, columns)
        is_vision += [False] * text + [True] * rows * columns
        grids.append((1, 2 * rows, 2 * columns))
    expected += [(start + i,) * 3 for i in range(tail)]
    positions = mrope_positions(np.asarray(is_vision + [False] * tail, bool), grids, merge=2)
    assert positions.T.tolist() == [list(place) for place in expected]


@pytest.mark.parametrize(
    ("tokens", "grids", "message"),
    [
        ("tvt", [(1, 2, 2), (1, 2, 2)], "2 images, but fewer runs"),
        ("tvtv", [(1, 2, 2)], "1 images, but more runs"),
        ("tvt", [(1, 2, 4)], "needs 2 vision tokens in a row"),
        ("tv", [(1, 2, 4)], "needs 2 vision tokens in a row"),
    ],
)
def test_runs_that_do_not_fit_the_grids_are_an_error(tokens, grids, message):
    with pytest.raises(ValueError, match=message):
        mrope_positions(vision(tokens), grids, merge=2)
