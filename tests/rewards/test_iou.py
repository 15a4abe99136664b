import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.processing.images import Resize
from vlaa_jax.rewards.iou import box_image, judge, read, read_gold

HALVED = (Resize(original=(640, 480), resized=(320, 240)),)


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, numbers",
    [
        ("[0.1, 0.2, 0.7, 0.5]", (0.1, 0.2, 0.7, 0.5)),
        ("[10, 20, 30, 40]", (10, 20, 30, 40)),
        ("10 20 30 40", (10, 20, 30, 40)),
        ("(10,20),(30,40)", (10, 20, 30, 40)),
        ("<box>(10, 20), (30, 40)</box>.", (10, 20, 30, 40)),
        ('{"bbox_2d": [10, 20, 30, 40], "label": "cat"}', (10, 20, 30, 40)),
        ('```json\n[{"bbox_2d": [10, 20, 30, 40]}]\n```', (10, 20, 30, 40)),
        ("x1=10, y1=20, x2=30, y2=40", (10, 20, 30, 40)),
        (r"\boxed{[.1, .2, .7, .5]}", (0.1, 0.2, 0.7, 0.5)),
        ("[-5, +2.5, 1e2, 4.]", (-5, 2.5, 100, 4)),
        ("[−5, 0, ３, 4]", (-5, 0, 3, 4)),
        ("[0.1, 0.2, 0.7, 0.5].", (0.1, 0.2, 0.7, 0.5)),
        ("the box is 0.1, 0.2, 0.7, 0.5.", (0.1, 0.2, 0.7, 0.5)),
        # not one box
        ("", None),
        ("no box", None),
        ("[10, 20, 30]", None),
        ("[10, 20, 30, 40, 50]", None),
        ("[10, 20, 30, 40] or [1, 2, 3, 4]", None),
        ("[10, 20, 30, 40], [10, 20, 30, 40]", None),
        ("object 1: [10, 20, 30, 40]", None),
        ("[nan, 0, 1, 1]", None),
        ("[nan, 0, 0, 1, 1]", None),
        ("[0, 0, inf, 1]", None),
        ("[0, 0, 1e999, 1]", None),
        ("[0, 0, 1, 1] nan", None),
        ("[10%, 20%, 30%, 40%]", None),
        ("[1/2, 3/4]", None),
        ("[10-20, 30-40]", None),
        ("[1.2.3, 1, 2, 3]", None),
    ],
)
def test_read(text, numbers):
    box = read(text, "pixels")
    assert (box and (box.x1, box.y1, box.x2, box.y2)) == numbers


@pytest.mark.quick
@pytest.mark.parametrize(
    "answer, score, valid",
    [
        ("[0.1, 0.2, 0.7, 0.6]", 1, True),
        ("[0.1, 0.2, 0.4, 0.6]", 0.5, True),
        ("[0.7, 0.6, 0.1, 0.2]", 0, True),
        ("[0.1, 0.2, 0.1, 0.6]", 0, True),
        ("[0.8, 0.8, 0.9, 0.9]", 0, True),
        ("[-0.5, -0.2, 0.7, 0.6]", 0.25, True),
        ("[0.1, 0.2, 0.7]", 0, False),
        ("[0.1, 0.2, 0.7, 0.6], [0, 0, 1, 1]", 0, False),
        ("[0.1, nan, 0.7, 0.6]", 0, False),
    ],
)
def test_normalised(answer, score, valid):
    verdict = judge(answer, "[0.1, 0.2, 0.7, 0.6]", "normalised")
    assert verdict.score == pytest.approx(score)
    assert verdict.valid == valid


@pytest.mark.quick
def test_pixels_of_the_stored_image_against_pixels_of_the_resized_one():
    assert judge("[50, 60, 150, 160]", "[100, 120, 300, 320]", "pixels", HALVED).score == 1
    assert judge("[100, 120, 300, 320]", "[100, 120, 300, 320]", "pixels", HALVED).score < 0.2
    stretched = (Resize(original=(100, 100), resized=(200, 50)),)
    assert judge("[20, 5, 40, 10]", "[10, 10, 20, 20]", "pixels", stretched).score == 1


@pytest.mark.quick
def test_the_image_that_metadata_names():
    two = (HALVED[0], Resize(original=(100, 100), resized=(100, 100)))
    gold = "[10, 10, 20, 20]"
    assert judge(gold, gold, "pixels", two, {"box_image": 1}).score == 1
    assert judge("[5, 5, 10, 10]", gold, "pixels", two).score == 1
    for wrong in (2, -1, "1", True, 0.0):
        with pytest.raises(InputError, match="box_image"):
            box_image({"box_image": wrong}, 2)


SUSPECTS = [
    # space, gold, answer, suspect
    ("normalised", "[0.1, 0.2, 0.7, 0.6]", "[100, 200, 700, 600]", True),
    ("normalised", "[0.1, 0.2, 0.7, 0.6]", "[32, 48, 224, 144]", True),
    ("normalised", "[0.1, 0.2, 0.7, 0.6]", "[64, 96, 448, 288]", True),
    ("normalised", "[0.1, 0.2, 0.7, 0.6]", "[0.8, 0.8, 0.9, 0.9]", False),
    ("normalised", "[0.1, 0.2, 0.7, 0.6]", "[0.1, 0.2, 0.7, 0.6]", False),
    ("normalised", "[0.1, 0.2, 0.7, 0.6]", "[900, 900, 990, 990]", False),
    ("thousand", "[100, 200, 700, 600]", "[0.1, 0.2, 0.7, 0.6]", True),
    ("thousand", "[100, 200, 700, 600]", "[100, 200, 700, 600]", False),
    ("pixels", "[64, 96, 448, 288]", "[0.1, 0.2, 0.7, 0.6]", True),
    ("pixels", "[400, 300, 600, 460]", "[400, 300, 600, 460]", True),  # pixels of the stored image
    ("pixels", "[64, 96, 448, 288]", "[32, 48, 224, 144]", False),
]


@pytest.mark.quick
@pytest.mark.parametrize("space, gold, answer, suspect", SUSPECTS)
def test_a_box_in_another_space_is_flagged_and_not_rescored(space, gold, answer, suspect):
    verdict = judge(answer, gold, space, HALVED)
    assert verdict.box_space_suspect == suspect
    if suspect:
        assert verdict.score < 0.1


@pytest.mark.quick
def test_suspects_without_known_sizes():
    assert judge("[100, 200, 700, 600]", "[0.1, 0.2, 0.7, 0.6]", "normalised").box_space_suspect


@pytest.mark.quick
@pytest.mark.parametrize(
    "gold, space, message",
    [
        ("[0.1, 0.2, 0.7, 0.6]", "", "box_space"),
        ("[0.1, 0.2, 0.7, 0.6]", "percent", "box_space"),
        ("[0.1, 0.2, 0.7]", "normalised", "four finite numbers"),
        ("[nan, 0.2, 0.7, 0.6]", "normalised", "four finite numbers"),
        ("[0.7, 0.6, 0.1, 0.2]", "normalised", "reversed or has no area"),
        ("[0.1, 0.2, 0.1, 0.6]", "normalised", "reversed or has no area"),
        ("[10, 20, 70, 60]", "normalised", "outside the range"),
        ("[10, 20, 70, 1060]", "thousand", "outside the range"),
        ("[-10, 20, 70, 60]", "pixels", "outside the range"),
    ],
)
def test_bad_gold(gold, space, message):
    with pytest.raises(InputError, match=message):
        read_gold(gold, space)


@pytest.mark.quick
def test_pixels_need_the_sizes():
    with pytest.raises(InputError, match="sizes of the images"):
        judge("[1, 2, 3, 4]", "[1, 2, 3, 4]", "pixels")


@given(st.text(), st.sampled_from(["normalised", "thousand", "pixels"]))
def test_any_text_scores_between_0_and_1(text, space):
    gold = "[0.1, 0.2, 0.7, 0.6]"
    assert 0 <= judge(text, gold, space, HALVED).score <= 1


@given(st.lists(st.floats(), min_size=4, max_size=4))
def test_any_four_floats_score_between_0_and_1(numbers):
    verdict = judge(str(numbers), "[0.1, 0.2, 0.7, 0.6]", "normalised", HALVED)
    assert 0 <= verdict.score <= 1
