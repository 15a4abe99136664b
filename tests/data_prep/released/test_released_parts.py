"""Parts of the import as literal tables: routes, options, boxes, fields."""

import math
import random
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from data_prep.released import boxes, choices, fields
from data_prep.released.boxes import Reading
from data_prep.released.report import Skip
from data_prep.released.routing import OTHER_SOURCE, OTHER_VERIFIER, UNKNOWN_VERIFIER, Route, route

pytestmark = pytest.mark.quick

ROUTES = [
    # By the id, as in the project's own examples.
    (("clevr_math-CLEVR_train_027977.png", "clevr_math/CLEVR_train_027977.png", "digit"), ("clevr_math", "digit")),
    (("geoqa170k-geoqa_plus-2905-63590", "geoqa170k/geoqa_plus-2905.png", "mcq"), ("geoqa170k", "mcq")),
    (("geo3k-17", "x.png", None), ("geoqa170k", "mcq")),
    (("synthesis-2", "synthesis/gen_func-func_sine_1_qtmb.png", "math"), ("synthesis", "math")),
    (("arxivqa-cond-mat-23815", "arxivqa/1907.10497_1.jpg", None), ("arxivqa", "mcq")),
    (("allava-allava_laion_100760552", "allava_laion/images/100760552.jpeg", None), ("allava_laion", "open_ended")),
    (("docvqa-1", "docvqa/1.png", ""), ("docvqa", "open_ended")),
    # By the picture's folder.
    (("", "vizwiz/1.jpg", None), ("vizwiz", "open_ended")),
    (("", "coco/train2017/000000000009.jpg", None), ("coco", "iou")),
    (("17", "vg/VG_100K/1.jpg", None), ("vg", "iou")),
    (("17", "VG_100K_2/1.jpg", None), ("vg", "iou")),
    (("", "/data/images/synthesis/1.png", None), ("synthesis", "math")),
    (("", "chartqa/1.png", None), ("", "")),
    (("", "clevr_math.png", None), ("", "")),
    (("synthesised-1", "x.png", None), ("", "")),
    # Names of verifiers.
    (("", "vg/VG_100K/1.jpg", "IoU"), ("vg", "iou")),
    (("", "docvqa/1.jpg", "open-ended"), ("docvqa", "open_ended")),
    (("", "docvqa/1.jpg", "General Reasoning"), ("docvqa", "open_ended")),
    (("", "arxivqa/1.jpg", "multiple_choice_reward"), ("arxivqa", "mcq")),
    (("", "chartqa/1.png", "math"), ("", "math")),
]


@pytest.mark.parametrize(("entry", "expected"), ROUTES)
def test_routes(entry, expected):
    assert route(*entry) == Route(*expected)


def test_remarks_of_routes():
    assert route("", "docvqa/1.png", "anls") == Route("docvqa", "open_ended", ((UNKNOWN_VERIFIER, "anls"),))
    assert route("", "docvqa/1.png", 7) == Route("docvqa", "open_ended", ((UNKNOWN_VERIFIER, "7"),))
    remark = (OTHER_VERIFIER, "math, geoqa170k has mcq")
    assert route("", "geoqa170k/1.png", "math") == Route("geoqa170k", "math", (remark,))
    remark = (OTHER_SOURCE, "vizwiz, id docvqa")
    assert route("docvqa-1", "vizwiz/1.png", None) == Route("docvqa", "open_ended", (remark,))


CHOICES = [
    ("Find x.\nChoices:\nA: \\frac{1}{2}\nB: 2\nC: √{3}\nD: 30°", ("\\frac{1}{2}", "2", "√{3}", "30°")),
    ("Find x.\nChoices:\nA: 1\nB: 2\nAnswer with the option's letter from the given choices.", ("1", "2")),
    ("Why? Choose from the following options\nA) It increases.\nB) It\ndecreases.", ("It increases.", "It")),
    ("Why?\nA) It\nincreases. \nB) It decreases.", ("It\nincreases.", "It decreases.")),
    ("Which? (A) 1 (B) 2 (C) 3", ("1", "2", "3")),
    ("Which?\nA. one\nB. two", ("one", "two")),
    ("Is (A) or (B) right?\n(A) yes (B) no (C) maybe", ("yes", "no", "maybe")),
    ("Which?\nA: see B: there\nB: no\nC: A: again", ("see", "there\nB: no", "A: again")),
    ("Which?\nA)30\nB)40", ("30", "40")),
    ("Which?\nA:", ()),
    ("Only A) one", ()),
    ("B) two\nC) three", ()),
    ("J.A. Smith and B. Jones", ()),
    ("", ()),
]


@pytest.mark.parametrize(("question", "options"), CHOICES)
def test_options(question, options):
    assert choices.parse(question) == options


@hypothesis.given(st.lists(st.from_regex(r"[a-z0-9 ]{0,8}[a-z0-9]", fullmatch=True), min_size=2, max_size=26))
@hypothesis.settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("style", ["({})", "{})", "{}:", "{}."])
def test_written_options_are_read(style, texts):
    lines = [f"{style.format(chr(65 + place))} {text}" for place, text in enumerate(texts)]
    expected = tuple(text.strip() for text in texts)
    assert choices.parse("Which one?\n" + "\n".join(lines) + "\nGive the letter.") == expected
    assert choices.parse("Which one? " + " ".join(lines)) == expected


@pytest.mark.parametrize("question", ["A) " * 15_000, "A) B) " * 8_000, "(A" * 20_000, "A) " + " " * 49_000])
def test_hostile_questions_take_no_time(question):
    start = time.perf_counter()
    choices.parse(question)
    assert time.perf_counter() - start < 1


WIDE, TALL = (400, 300), (300, 400)


def boxes_on(size, count, space, seed=0):
    """Random boxes in a picture, in the space given."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        xs, ys = (sorted(draw.uniform(0, 1) for _ in range(2)) for _ in range(2))
        found.append((space((xs[0], ys[0], xs[1], ys[1]), size), size))
    return found


def in_square(box, size):
    """Fractions of the padded square, rounded as LLaVA's are."""
    side = max(size)
    x, y = ((side - length) / 2 for length in size)
    return tuple(
        round((value * length + start) / side, 3)
        for value, length, start in zip(box, size * 2, (x, y, x, y), strict=True)
    )


def test_boxes_of_the_padded_square_are_told_by_oblong_pictures():
    samples = boxes_on(WIDE, 40, in_square) + boxes_on(TALL, 40, in_square, 1) + boxes_on((300, 300), 20, in_square, 2)
    assert boxes.measure(samples) == Reading("normalised", True, 100, 80, 0)
    plain = boxes_on(WIDE, 100, lambda box, size: box)
    reading = boxes.measure(plain)
    assert (reading.padded, reading.boxes, reading.oblong) == (False, 100, 100) and reading.outside >= 30
    assert not boxes.measure(samples[:40]).padded  # too few to tell
    assert not boxes.measure(boxes_on((300, 300), 200, in_square)).padded  # squares say nothing
    assert boxes.measure([]) == Reading()


def test_spaces_of_boxes():
    pixels = boxes_on(WIDE, 100, lambda box, size: tuple(v * s for v, s in zip(box, size * 2, strict=True)))
    assert boxes.measure(pixels).space == "pixels"
    assert boxes.measure(boxes_on(WIDE, 100, lambda box, size: tuple(v * 1000 for v in box))).space == "thousand"
    stray = [((0, 0, 500, 500), WIDE)]
    assert boxes.measure(boxes_on(WIDE, 100, lambda box, size: box) + stray).space == "normalised"


UNPADDED = [
    ("[0.1, 0.125, 0.5, 0.875]", WIDE, "[0.1, 0, 0.5, 1]"),
    ("the box [0.125,0.0,.5,1.0] there", TALL, "the box [0, 0, 0.5, 1] there"),
    ("[0.5, 0.5, 0.75, 0.75]", WIDE, "[0.5, 0.5, 0.75, 0.833]"),
    ("[0.0, 0.0, 1.0, 1.0]", WIDE, "[0, 0, 1, 1]"),  # never beyond the picture
    ("[0.1, 0.2, 0.3, 0.4]", (9, 9), "[0.1, 0.2, 0.3, 0.4]"),
    ("[10, 20, 30, 40]", WIDE, "[10, 20, 30, 40]"),
    ("[0.1, 0.2, 0.3]", WIDE, "[0.1, 0.2, 0.3]"),
]


@pytest.mark.parametrize(("text", "size", "expected"), UNPADDED)
def test_unpadded(text, size, expected):
    assert boxes.unpadded(text, size) == expected


@hypothesis.given(
    st.tuples(*[st.floats(0, 1)] * 4),
    st.tuples(st.integers(100, 2000), st.integers(100, 2000)).filter(lambda size: max(size) < 3 * min(size)),
)
def test_unpadding_undoes_padding(box, size):
    shown = ", ".join(f"{value:.3f}" for value in in_square(box, size))
    back = [float(value) for value in boxes.unpadded(f"[{shown}]", size)[1:-1].split(",")]
    assert back == pytest.approx(box, abs=0.003)


GOLDS = [
    ({"gt": 3}, "3"),
    ({"gt": 3.0}, "3.0"),
    ({"gt": " C "}, "C"),
    ({"gt": ["C"]}, "C"),
    ({"gt": [0.1, 0.2, 0.7, 0.5]}, "[0.1, 0.2, 0.7, 0.5]"),
    ({"gt": [[1, 2, 3, 4]]}, "[1, 2, 3, 4]"),
    ({"gt": None}, ""),
    ({"gt": ""}, ""),
    ({}, ""),
]


@pytest.mark.parametrize(("entry", "gold"), GOLDS)
def test_gold_as_text(entry, gold):
    assert fields.gold(entry) == gold


@pytest.mark.parametrize("value", [True, {"a": 1}, [1, 2], ["a", "b"], [], math.nan, math.inf, "a\0b", "\ud800"])
def test_golds_that_are_none(value):
    with pytest.raises(Skip, match="missing or wrong field: gt"):
        fields.gold({"gt": value})


METAS = [
    ({"rationale": "r"}, {"rationale": "r"}, True),
    ("{'rationale': 'it\\'s', 'n': None, 'pair': (1, 2)}", {"rationale": "it's", "n": None, "pair": [1, 2]}, True),
    (None, {}, True),
    ("", {"text": ""}, False),
    ("{'a': open('x')}", {"text": "{'a': open('x')}"}, False),
    ("__import__('os').getcwd()", {"text": "__import__('os').getcwd()"}, False),
    ("['list']", {"text": "['list']"}, False),
    ("{'a': b'bytes'}", {"text": "{'a': b'bytes'}"}, False),
    ({"a": math.nan}, {"text": "{'a': nan}"}, False),
    (7, {"text": "7"}, False),
]


@pytest.mark.parametrize(("value", "expected", "readable"), METAS)
def test_meta_as_dictionary_or_as_text_of_one(value, expected, readable):
    assert fields.meta(value) == (expected, readable)


@pytest.mark.parametrize(
    "value", ["(" * 100_000, "{'a': " * 50_000, "-" * 400_000 + "1", "{'a': '" + "x" * 600_000 + "'}"]
)
def test_hostile_meta_costs_nothing(value):
    found, readable = fields.meta(value)
    assert not readable and found == {"text": value[:500_000]}


def test_texts():
    assert fields.text({"question": "größer? 😀"}, "question") == "größer? 😀"
    for value, words in [(None, "missing"), (3, "must be text, found 3"), (" ", "blank"), ("a\0", "NUL"),
                         ("\udcff", "half a surrogate"), ("x" * 51, "51 characters, at most 50")]:  # fmt: skip
        with pytest.raises(Skip, match=words):
            fields.text({"question": value}, "question", 50)
