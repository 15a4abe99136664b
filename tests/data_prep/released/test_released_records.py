"""Entries of the released files as records: what each becomes, and why some become none."""

import math

import pytest
from released_files import rl_entry, sft_entry, write_pictures

from data_prep import golds
from data_prep.released import reward, thinking
from data_prep.released.boxes import Reading
from data_prep.released.reading import Entry
from data_prep.released.report import DAMAGED, FIELD, GOLD, MISSING, PICTURE, SOURCE, UNKNOWN, VALUE
from data_prep.released.routing import UNKNOWN_VERIFIER
from vlaa_jax.processing.records import ProcessRecord, Record

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "images"
    write_pictures(folder)
    write_pictures(folder, ["wide/1.png"], size=(400, 300))
    content = (folder / "docvqa/0.png").read_bytes()
    (folder / "docvqa/cut.png").write_bytes(content[: len(content) // 2])
    (folder / "docvqa/page.png").write_text("<html>404</html>")
    return folder


def convert(folder, kind, fields, **readings):
    return thinking.Converter(kind, folder, readings)(Entry(7, fields))


def png(folder, name):
    return ((folder / name).read_bytes(),)


def test_an_sft_entry(folder):
    outcome = convert(folder, "sft", sft_entry("clevr_math", 3))
    assert outcome.record == Record(
        id="clevr_math-000007",
        images=png(folder, "clevr_math/3.png"),
        question="Subtract 3 balls. How many objects are left?",
        answer="3",
        verifier="digit",
        trace="Step 3: look at it.",
        source="clevr_math",
        metadata={"image": "clevr_math/3.png", "final": r"\[ \boxed{3} \]"},
    )
    assert (outcome.id, outcome.source, outcome.repairs, outcome.remarks) == (
        "clevr_math-000007",
        "clevr_math",
        (),
        (),
    )


def test_an_rl_entry(folder):
    entry = rl_entry("geoqa170k", 2, gold="(c)") | {"verifier_type": "choices"}
    outcome = convert(folder, "rl", entry)
    assert outcome.record == Record(
        id="geoqa170k-2",
        images=png(folder, "geoqa170k/2.png"),
        question="Figure 2: what is it?\nChoices:\nA: a line\nB: a bar\nC: a pie\nD: a map\nAnswer with the letter.",
        answer="C",
        verifier="mcq",
        choices=("a line", "a bar", "a pie", "a map"),
        trace="It is 2.",
        source="geoqa170k",
        metadata={
            "image": "geoqa170k/2.png",
            "caption": "A drawing.",
            "meta": {"rationale": "none"},
            "final": "So.",
            "gold": "(c)",
            "repairs": [golds.LETTER_MARKS, golds.LETTER_CASE],
        },
    )
    assert outcome.repairs == (golds.LETTER_MARKS, golds.LETTER_CASE)
    assert outcome.remarks == ((UNKNOWN_VERIFIER, "choices"),)


def test_meta_may_be_the_text_of_a_dictionary(folder):
    entry = rl_entry("synthesis", gold="a = -5")
    entry |= {"question": "What is the function's equation?"}
    meta = {"text_question": "The graph of y = a * sin(2 * x) passes (1, 2). What is the equation?"}
    meta["ds_answer"] = "<think>five\n</think>\ny = ..."
    for form in (meta, str(meta)):
        record = convert(folder, "rl", entry | {"meta": form}).record
        assert (record.answer, record.trace) == ("y = (-5) * sin(2 * x)", "five")
        assert record.metadata["meta"] == {"text_question": meta["text_question"]}
        assert record.metadata["repairs"] == [golds.FUNCTION_COMPLETED]
    record = convert(folder, "rl", entry | {"meta": "{'text_question': "}).record
    assert (record.answer, record.trace) == ("a = -5", "")
    assert record.metadata["repairs"] == [thinking.META_AS_TEXT, golds.VALUE_ONLY]
    assert record.metadata["meta"] == {"text": "{'text_question': "}


# (source, gt or None for none, the answer after the think block) -> (gold, verifier, repairs)
GOLD_CHAIN = [
    ("clevr_math", 4, r"<answer>\boxed{3}</answer>", "4", "digit", ()),
    ("clevr_math", None, r"It is \boxed{3}. <answer>three</answer>", "3", "digit", ()),
    ("clevr_math", None, "<answer> **Answer:** There are 3 objects. </answer>", "3", "digit", (golds.NUMBER_IN_WORDS,)),
    ("clevr_math", "3.0", "", "3", "digit", (golds.WHOLE_NUMBER,)),
    ("clevr_math", None, "<answer>several</answer>", "several", "open_ended", (thinking.OPEN_ENDED,)),
    ("arxivqa", "B) a bar", "", "B", "mcq", (golds.OPTION_TEXT,)),
    ("arxivqa", "E", "", "E", "open_ended", (thinking.OPEN_ENDED,)),
    ("synthesis", None, r"<answer> \[ \boxed{y = \frac{1}{2} x} \] </answer>", r"y = \frac{1}{2} x", "math", ()),
    ("synthesis", r"\[\boxed{y = 2x}\]", "", "y = 2x", "math", (golds.DELIMITERS, golds.BOX)),
    ("synthesis", "a = 2", "", "y = (2) * sin(0 * x)", "math", (golds.FUNCTION_COMPLETED,)),
    ("docvqa", None, "<answer> line one </answer>", "line one", "open_ended", ()),
    ("docvqa", None, "line one", "line one", "open_ended", ()),
    ("vg", [0.1, 0.2, 0.7, 0.5], "", "[0.1, 0.2, 0.7, 0.5]", "iou", ()),
    ("vg", None, "<answer>the red car</answer>", "the red car", "open_ended", (thinking.OPEN_ENDED,)),
]


@pytest.mark.parametrize(("source", "gt", "final", "gold", "verifier", "repairs"), GOLD_CHAIN)
def test_where_the_gold_comes_from(folder, source, gt, final, gold, verifier, repairs):
    entry = sft_entry(source) | {"answer": f"<think>\\boxed{{9}}</think>{final or 'x'}"}
    outcome = convert(folder, "sft", entry | ({} if gt is None else {"gt": gt}))
    assert outcome.reason is None, outcome.reason
    assert (outcome.record.answer, outcome.record.verifier, outcome.repairs) == (gold, verifier, repairs)
    assert outcome.record.box_space == ("normalised" if verifier == "iou" else "")


def test_options_in_the_picture(folder):
    entry = rl_entry("arxivqa", gold="F") | {"question": "Which curve is it?"}
    outcome = convert(folder, "rl", entry)
    assert outcome.record.choices == ("A", "B", "C", "D", "E", "F")
    assert outcome.repairs == (thinking.OPTIONS_UNKNOWN,)


def test_small_repairs(folder):
    entry = sft_entry("docvqa") | {"question": "<image><image> What is it?"}
    outcome = convert(folder, "sft", entry)
    assert (outcome.record.question, outcome.repairs) == ("What is it?", (thinking.IMAGE_MARKS,))
    outcome = convert(folder, "sft", sft_entry("docvqa") | {"answer": "<answer>only this</answer>"})
    assert (outcome.record.answer, outcome.record.trace) == ("only this", "")
    assert outcome.repairs == (thinking.NO_TRACE,)
    for spelling in ("/docvqa/0.png", "./docvqa/0.png", "images/docvqa/0.png"):
        record = convert(folder, "sft", sft_entry("docvqa") | {"image": spelling}).record
        assert record.metadata["image"] == "docvqa/0.png"


def test_boxes_of_the_padded_square_are_converted_wherever_they_stand(folder):
    entry = sft_entry("vg", gold="[0.1, 0.125, 0.5, 0.875]") | {"image": "vg/../wide/1.png"}
    entry |= {"image": "wide/1.png", "id": "vg-1", "question": "Where? Not [0.5, 0.5, 0.75, 0.75]."}
    entry["answer"] = entry["answer"].replace("look at it", "it is [0.1, 0.125, 0.5, 0.875]")
    outcome = convert(folder, "sft", entry, vg=Reading(padded=True))
    record = outcome.record
    assert (record.answer, record.box_space, record.verifier) == ("[0.1, 0, 0.5, 1]", "normalised", "iou")
    assert record.question == "Where? Not [0.5, 0.5, 0.75, 0.833]."
    assert record.trace == "Step 0: it is [0.1, 0, 0.5, 1]."
    assert outcome.repairs == (thinking.UNPADDED,)
    assert record.metadata["gold"] == "[0.1, 0.125, 0.5, 0.875]"
    untouched = convert(folder, "sft", entry).record
    assert untouched.answer == "[0.1, 0.125, 0.5, 0.875]"
    bare = entry | {"gt": "(0.1, 0.125), (0.5, 0.875)"}
    assert convert(folder, "sft", bare, vg=Reading(padded=True)).record.answer == "[0.1, 0, 0.5, 1]"
    pixels = convert(folder, "sft", sft_entry("vg", gold="[1, 2, 7, 5]"), vg=Reading("pixels")).record
    assert (pixels.answer, pixels.box_space) == ("[1, 2, 7, 5]", "pixels")


OUT_OF_ALL = [
    ({"image": None}, FIELD, "image is missing"),
    ({"image": 3}, FIELD, "image must be text, found 3"),
    ({"question": " "}, FIELD, "question is blank"),
    ({"question": "x" * 10_000_000}, FIELD, "question has 10000000 characters"),
    ({"question": "nul \0"}, FIELD, "question holds a NUL"),
    ({"verifier_type": "\ud800"}, FIELD, "verifier_type holds half a surrogate"),
    ({"caption": "half \ud800"}, FIELD, "half a surrogate"),
    ({"gt": {"a": 1}}, FIELD, "gt must be"),
    ({"id": "", "image": "chartqa/1.png", "verifier_type": None}, SOURCE, "chartqa/1.png"),
    ({"gt": ""}, GOLD, "no gt"),
    ({"gt": "three"}, GOLD, "'three' is not one integer"),
    ({"id": "docvqa-1", "verifier_type": None, "gt": "the <answer>"}, FIELD, "tags"),
    ({"meta": {"ds_answer": "<think>a </think> b </think> c"}, "gt": "</think>"}, FIELD, "tags"),
    ({"image": "clevr_math/none.png"}, MISSING, "no picture clevr_math/none.png"),
    ({"image": "docvqa/cut.png"}, PICTURE, "docvqa/cut.png"),
    ({"image": "docvqa/page.png"}, PICTURE, "docvqa/page.png"),
    ({"image": "docvqa"}, PICTURE, "docvqa"),
    ({"image": "../images/docvqa/0.png"}, PICTURE, "leaves its folder"),
    ({"image": "docvqa/" + "x" * 300}, PICTURE, "x"),
    ({"image": "docvqa/\0.png"}, FIELD, "NUL"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), OUT_OF_ALL, ids=[str(i) for i in range(len(OUT_OF_ALL))])
def test_entries_that_become_no_record(folder, changes, kind, words):
    outcome = convert(folder, "rl", rl_entry("clevr_math") | changes)
    assert outcome.record is None
    assert outcome.reason.kind == kind and words in outcome.reason.detail


def test_damaged_lines_and_unknown_sources_have_no_source(folder):
    outcome = thinking.Converter("rl", folder, {})(Entry(7, {}, "not JSON (x)"))
    assert (outcome.id, outcome.source, outcome.reason.kind) == ("line 7", UNKNOWN, DAMAGED)
    outcome = convert(folder, "rl", rl_entry("clevr_math") | {"id": "x", "image": "wide/1.png"})
    assert (outcome.id, outcome.source, outcome.record.verifier) == ("x", UNKNOWN, "digit")


def judged(folder, **changes):
    fields = {"index": 5, "image_path": "clevr_math/1.png", "question": "How many?", "process": "Step 1: x", "value": 1}
    return reward.Converter(folder)(Entry(9, fields | changes))


def test_process_records(folder):
    outcome = judged(folder, value=0.25)
    assert outcome.record == ProcessRecord(outcome.id, png(folder, "clevr_math/1.png"), "How many?", "Step 1: x", 0.25)
    question, slash, index = outcome.id.rpartition("/")
    assert (slash, index) == ("/", "5") and question.startswith("vilreward-clevr_math-")
    same = judged(folder, index=6, process="Step 1: y")
    assert same.id == f"{question}/6"
    for change in ({"question": "How many balls?"}, {"image_path": "clevr_math/2.png"}):
        assert judged(folder, **change).id.rpartition("/")[0] != question
    assert judged(folder, index="a/b").id == f"{question}/9"  # the line


VALUES = [(0, 0.0), (1, 1.0), (0.5, 0.5), ("0.5", 0.5), (" 1 ", 1.0)]
NO_VALUES = [None, "", "good", "nan", -0.1, 1.1, math.nan, math.inf, True, [0.5], 10**400]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_values(folder, value, expected):
    outcome = judged(folder, value=value)
    assert outcome.record.value == expected
    assert outcome.repairs == ((reward.VALUE_AS_TEXT,) if isinstance(value, str) else ())


@pytest.mark.parametrize("value", NO_VALUES)
def test_values_out_of_range(folder, value):
    outcome = judged(folder, value=value)
    assert outcome.record is None and outcome.reason.kind == VALUE


def test_process_entries_that_become_no_record(folder):
    assert judged(folder, process="").reason.kind == FIELD
    assert judged(folder, question=None).reason.kind == FIELD
    assert judged(folder, image_path="clevr_math/none.png").reason.kind == MISSING
    assert reward.Converter(folder)(Entry(9, {}, "not JSON (x)")).reason.kind == DAMAGED
    unknown = judged(folder, image_path="wide/1.png")
    assert unknown.source == UNKNOWN and unknown.remarks == ((reward.UNKNOWN_FOLDER, "wide"),)


SOURCES_OF_PICTURES = [
    ("images/MAVIS_Geometry/12.png", "mavis_geometry"),
    ("geo170k/images/geo3k/1.png", "geoqa170k"),
    ("GeoQA170K/1.png", "geoqa170k"),
    ("CLEVR-Math/train/1.png", "clevr_math"),
    ("A-OKVQA/train2017/1.jpg", "a_okvqa"),
    ("aokvqa_images/1.jpg", "a_okvqa"),
    ("ScienceQA/train/2/image.png", "scienceqa"),
    ("1.png", UNKNOWN),
]


@pytest.mark.parametrize(("image", "source"), SOURCES_OF_PICTURES)
def test_sources_of_process_records(image, source):
    assert reward.source_of(image) == source
    assert reward.source_of_id(f"vilreward-{source}-0123456789ab/7") == source
