"""Every patch has one slot, windows hold one frame, reading order comes back."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.processing.vision_plan import WindowGeometry, pad_windows, plan

pytestmark = pytest.mark.quick


def numbered(grids):
    """Patches whose two values are their own number and its negative."""
    number = np.arange(1, 1 + sum(int(np.prod(grid)) for grid in grids), dtype=np.float32)
    return np.stack([number, -number], axis=-1)


def test_the_example_of_the_module():
    geometry = WindowGeometry(merge=1, window_units=2)
    arrays, slots = plan(numbered([(1, 3, 5)]), [(1, 3, 5)], geometry)
    expected = [[1, 2, 6, 7], [3, 4, 8, 9], [5, 0, 10, 0], [11, 12, 0, 0], [13, 14, 0, 0], [15, 0, 0, 0]]
    assert arrays.patches[..., 0].tolist() == expected
    assert arrays.valid.tolist() == [[value > 0 for value in window] for window in expected]
    assert slots.tolist() == [0, 1, 4, 5, 8, 2, 3, 6, 7, 10, 12, 13, 16, 17, 20]
    assert arrays.ids[2].tolist() == [[0, 4], [0, 0], [1, 4], [0, 0]]
    assert arrays.frames.tolist() == [1] * 6


def test_merged_tokens_of_two_images():
    """Windows of one merged token of 2 x 2 patches: the patches of a token stay side by side."""
    grids = [(1, 2, 4), (2, 2, 2)]
    arrays, slots = plan(numbered(grids), grids, WindowGeometry(merge=2, window_units=1))
    assert arrays.patches[..., 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    assert arrays.ids[1].tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert arrays.frames.tolist() == [1, 1, 2, 3]
    assert slots.tolist() == [0, 1, 2, 3]


@st.composite
def layouts(draw):
    geometry = WindowGeometry(draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    side = st.integers(1, 9).map(lambda units: units * geometry.merge)
    return geometry, draw(st.lists(st.tuples(st.integers(1, 3), side, side), max_size=4))


@hypothesis.given(layouts())
@hypothesis.settings(deadline=None)
def test_every_patch_has_one_slot_in_a_window_of_its_frame(layout):
    geometry, grids = layout
    merge, side = geometry.merge, geometry.merge * geometry.window_units
    patches = numbered(grids)
    arrays, slots = plan(patches, grids, geometry)
    windows = sum(geometry.windows(grid) for grid in grids)
    assert arrays.patches.shape == (windows, geometry.slots, 2) and geometry.slots == side**2
    assert len(slots) == sum(geometry.tokens(grid) for grid in grids) == len(patches) / merge**2
    held = arrays.patches[..., 0]
    assert sorted(held[arrays.valid].tolist()) == patches[:, 0].tolist()
    assert not arrays.patches[~arrays.valid].any()
    units = arrays.patches.reshape(-1, merge**2, 2)
    np.testing.assert_array_equal(units[slots].reshape(-1, 2), patches)
    # Where each patch lies, from the processor's order alone.
    where, frame = {}, 0
    number = itertools.count(1)
    for frames, rows, columns in grids:
        for _ in range(frames):
            frame += 1
            order = itertools.product(range(0, rows, merge), range(0, columns, merge), range(merge), range(merge))
            where |= {next(number): (frame, top + row, left + column) for top, left, row, column in order}
    for window, name in enumerate(arrays.frames):
        corners = set()
        for slot in np.flatnonzero(arrays.valid[window]):
            frame, row, column = where[held[window, slot]]
            unit, inside = divmod(slot, merge**2)
            assert frame == name and arrays.ids[window, slot].tolist() == [row, column]
            assert row % side == unit // geometry.window_units * merge + inside // merge
            assert column % side == unit % geometry.window_units * merge + inside % merge
            corners.add((row // side, column // side))
        assert len(corners) == 1  # and so no window is empty
    assert len(set(arrays.frames.tolist())) == sum(grid[0] for grid in grids)


def test_counts():
    published = WindowGeometry(merge=2, window_units=4)
    assert published.slots == 64
    assert [published.windows(grid) for grid in ((1, 8, 8), (1, 10, 8), (1, 12, 20), (3, 12, 20))] == [1, 2, 6, 18]
    assert [published.tokens(grid) for grid in ((1, 8, 8), (1, 12, 20), (3, 12, 20))] == [16, 60, 180]


@pytest.mark.parametrize(("patches", "grid"), [(15, (1, 4, 4)), (17, (1, 4, 4)), (15, (1, 3, 5))])
def test_grids_must_account_for_the_patches(patches, grid):
    with pytest.raises(ValueError, match=f"{patches} patches, but the grids"):
        plan(np.zeros((patches, 2), np.float32), [grid], WindowGeometry(2, 2))


def test_padding_windows_are_empty():
    geometry = WindowGeometry(2, 1)
    rows = [plan(numbered(grids), grids, geometry)[0] for grids in ([(1, 2, 6)], [], [(1, 2, 2), (1, 2, 2)])]
    batch = pad_windows(rows, 4)
    assert batch.patches.shape == (3, 4, 4, 2) and batch.ids.shape == (3, 4, 4, 2)
    assert batch.frames.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 2, 0, 0]]
    assert batch.valid.any(axis=-1).tolist() == (batch.frames > 0).tolist()
    np.testing.assert_array_equal(batch.patches[0, :3], rows[0].patches)
    with pytest.raises(InputError, match="a row have 3 vision windows, but there is room for 2"):
        pad_windows(rows, 2)
