import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.processing.records import BOX_SPACES
from vlaa_jax.rewards.box import SPACES, Box, convert, extent, intersection_over_union

SIZE = (640, 480)
_sides = st.integers(1, 4000)
_sizes = st.tuples(_sides, _sides)
_fraction = st.floats(0, 1).map(lambda value: round(value, 4))


@st.composite
def boxes(draw, space=None):
    """A box with area, as four fractions of an image of `SIZE`, written in a space."""
    space = space or draw(st.sampled_from(SPACES))
    xs = sorted(draw(st.lists(_fraction, min_size=2, max_size=2, unique=True)))
    ys = sorted(draw(st.lists(_fraction, min_size=2, max_size=2, unique=True)))
    width, height = extent(space, SIZE)
    return Box(xs[0] * width, ys[0] * height, xs[1] * width, ys[1] * height, space)


@pytest.mark.quick
def test_spaces_are_those_of_a_record():
    assert {"", *SPACES} == set(BOX_SPACES)


@pytest.mark.quick
@pytest.mark.parametrize(
    "a, b, expected",
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 2, 2), (0, 0, 2, 1), 1 / 2),
        ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),
        ((0, 0, 1, 1), (5, 5, 6, 6), 0),
        ((0.1, 0.2, 0.7, 0.5), (0.1, 0.2, 0.7, 0.5), 1),
        ((-1, -1, 1, 1), (0, 0, 1, 1), 1 / 4),
        ((2, 2, 0, 0), (0, 0, 2, 2), 0),
        ((2, 2, 0, 0), (2, 2, 0, 0), 0),
        ((0, 0, 0, 2), (0, 0, 2, 2), 0),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0),
        ((0, 0, 1e200, 1e200), (0, 0, 1e200, 1e200), 0),
        ((0, 0, 1e-200, 1e-200), (0, 0, 1e-200, 1e-200), 0),
    ],
)
def test_literal_overlaps(a, b, expected):
    assert intersection_over_union(Box(*a, "pixels"), Box(*b, "pixels")) == pytest.approx(expected)


@pytest.mark.quick
def test_boxes_of_two_spaces_are_not_compared():
    with pytest.raises(ValueError, match="different spaces"):
        intersection_over_union(Box(0, 0, 1, 1, "pixels"), Box(0, 0, 1, 1, "normalised"))


@given(boxes())
def test_identical_boxes_overlap_wholly_in_every_space(box):
    assert intersection_over_union(box, box) == 1


@given(st.sampled_from(SPACES).flatmap(lambda space: st.tuples(boxes(space), boxes(space))))
def test_overlap_is_symmetric_and_bounded(pair):
    a, b = pair
    assert intersection_over_union(a, b) == intersection_over_union(b, a)
    assert 0 <= intersection_over_union(a, b) <= 1


@given(boxes("pixels"), boxes("pixels"), st.floats(0.01, 100))
def test_overlap_does_not_depend_on_scale(a, b, scale):
    scaled = [Box(*(scale * value for value in (c.x1, c.y1, c.x2, c.y2)), "pixels") for c in (a, b)]
    assert intersection_over_union(*scaled) == pytest.approx(intersection_over_union(a, b), abs=1e-9)


@given(
    st.sampled_from(SPACES).flatmap(lambda space: st.tuples(boxes(space), boxes(space))),
    st.sampled_from(SPACES),
    _sizes,
)
def test_overlap_does_not_depend_on_the_space(pair, space, new_size):
    moved = [convert(box, space, size=SIZE, new_size=new_size) for box in pair]
    assert intersection_over_union(*moved) == pytest.approx(intersection_over_union(*pair), abs=1e-9)


@given(boxes(), st.sampled_from(SPACES), _sizes)
def test_there_and_back_again(box, space, new_size):
    back = convert(convert(box, space, size=SIZE, new_size=new_size), box.space, size=new_size, new_size=SIZE)
    assert (back.x1, back.y1, back.x2, back.y2) == pytest.approx((box.x1, box.y1, box.x2, box.y2))
    assert back.space == box.space


@pytest.mark.quick
def test_literal_conversions():
    pixels = Box(64, 120, 320, 480, "pixels")
    assert convert(pixels, "normalised", size=SIZE, new_size=SIZE) == Box(0.1, 0.25, 0.5, 1.0, "normalised")
    assert convert(pixels, "thousand", size=SIZE, new_size=SIZE) == Box(100, 250, 500, 1000, "thousand")
    assert convert(pixels, "pixels", size=SIZE, new_size=(1280, 240)) == Box(128, 60, 640, 240, "pixels")


@pytest.mark.quick
def test_within():
    assert Box(0, 0, 640, 480, "pixels").within(SIZE)
    assert not Box(0, 0, 641, 480, "pixels").within(SIZE)
    assert not Box(-0.1, 0, 0.5, 0.5, "normalised").within(SIZE)
    assert Box(0, 0, 1000, 1000, "thousand").within(SIZE)
    assert not Box(0, 0.5, 0.5, 1.01, "normalised").within(SIZE)
