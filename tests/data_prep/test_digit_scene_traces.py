"""Traces of digit scenes: what is written is true, and false or repeated steps are found."""

import dataclasses
import itertools
import json
import re

import pytest

from data_prep.digit_scenes import builder, traces
from vlaa_jax.processing.records import Record

pytestmark = pytest.mark.quick


def record(kind="sum", verifier="math", answer="19", choices=(), value=None, pictures=None):
    """7 northwest, 9 northwest, 3 centre, unless other pictures are given."""
    pictures = pictures or [[(7, "northwest"), (9, "northwest"), (3, "centre")]]
    box = iter(range(100))
    glyphs = [
        [{"index": 0, "value": v, "place": place, "box": [next(box), 0, 30, 30]} for v, place in picture]
        for picture in pictures
    ]
    metadata = {"kind": kind, "value": value, "glyphs": glyphs}
    return Record("r", (b"",) * len(pictures), "?", answer, verifier, choices, metadata=metadata)


def test_traces_of_every_kind_are_true_and_numbered():
    split = dataclasses.replace(
        builder.SPLITS["sft"], records=360, digits=(2, 9), enumerate_share=1.0, locate_share=0.5
    )
    kinds = set()
    for example in builder.draw_split("traces", split, 0):
        lines = example.trace.split("\n")
        assert [line.split(": ")[0] for line in lines] == [f"Step {k}" for k in range(1, len(lines) + 1)]
        checks = traces.check_trace(example, example.trace)
        assert checks == [True] * len(lines), example
        # The digits come first, in reading order; something is concluded from them.
        glyphs = list(itertools.chain.from_iterable(example.metadata["glyphs"]))
        for glyph, line in zip(glyphs, lines, strict=False):
            box = " " + str(glyph["box"]).replace(" ", "") if example.metadata["style"] == "locate" else ""
            assert line.endswith(f" {glyph['place']} {glyph['value']}{box}")
        assert len(lines) > len(glyphs)
        kinds.add((example.metadata["kind"], example.metadata["style"]))
    assert {kind for kind, style in kinds if style == "locate"} == {"box_only", "box_largest"}
    assert len(kinds) == 12 + 2


def test_the_last_steps_lead_to_the_answer():
    """An enumerating trace ends with the answer itself, or with the glyph or fraction that it is read from."""
    split = dataclasses.replace(builder.SPLITS["sft"], records=240, enumerate_share=1.0)
    for example in builder.draw_split("traces", split, 1):
        last = example.trace.split("\n")[-1].split(": ", 1)[1]
        match example.metadata["kind"]:
            case "count_value" | "count_above":
                assert last == f"count {example.answer}"
            case "sum":
                assert last.endswith(f"={example.answer}")
            case "range":
                assert last.endswith(f"={example.answer}")
            case "largest" | "position" | "compare_sums" | "which_appear":
                assert re.findall(r": ([A-D]) .*yes", example.trace) == example.answer.split(",")
            case "box_only" | "box_largest":
                box = json.loads(example.answer)
                (glyph,) = (glyph for glyph in example.metadata["glyphs"][0] if glyph["box"] == box)
                assert last.startswith(f"find {glyph['value']}: ")
                assert last.endswith(f"{glyph['place']} {glyph['value']} {example.answer}")


def test_a_direct_trace_has_no_steps():
    split = dataclasses.replace(builder.SPLITS["sft"], records=12, enumerate_share=0.0)
    for example in builder.draw_split("traces", split, 0):
        assert example.trace == "I can answer at once."
        assert traces.check_trace(example, example.trace) == []


def check(example, *facts):
    return traces.check_trace(example, "\n".join(f"Step {k}: {fact}" for k, fact in enumerate(facts, 1)))


def test_enumeration():
    assert check(record(), "northwest 7", "northwest 9", "centre 3") == [True, True, True]
    assert check(record(), "northwest 9", "northwest 7") == [True, True]
    assert check(record(), "centre 7", "northwest 8", "north 7") == [False, False, False]
    assert check(record(), "northwest 7", "northwest 7") == [True, False]
    twins = record(pictures=[[(7, "west"), (7, "west")]])
    assert check(twins, "west 7", "west 7", "west 7") == [True, True, False]
    pair = record(pictures=[[(7, "west")], [(8, "west")]])
    assert check(pair, "first west 7", "second west 7", "second west 8") == [True, False, True]
    assert check(record(), "second northwest 7") == [False]


def test_running_sum():
    assert check(record(), "7+9=16", "16+3=19") == [True, True]
    assert check(record(), "3+9=12", "12+7=19") == [True, True]
    assert check(record(), "7+9=15", "15+3=18") == [False, False]  # built on a wrong step
    assert check(record(), "7+7=14") == [False]  # there is one 7
    assert check(record(), "7+9=16", "16+9=25") == [True, False]
    assert check(record(), "7+2=9") == [False]
    assert check(record(), "7+9=16", "3+16=19") == [True, None]
    pair = record(pictures=[[(7, "west"), (2, "north")], [(8, "west"), (1, "north")]])
    assert check(pair, "first 7+2=9", "second 8+1=9", "9=9", "9>9", "8<9") == [True, True, True, False, False]


def test_conclusions():
    count = record("count_above", "digit", "2", value=5)
    above = ["above 5: 7 yes, 9 yes, 3 no", "above 5: 3 no, 9 yes, 7 yes"]
    assert check(count, *above) == [True, True]
    wrong = ["above 5: 7 yes, 9 yes", "above 5: 7 yes, 9 yes, 3 yes", "above 5: 7 yes, 7 yes, 9 yes, 3 no"]
    assert check(count, *wrong) == [False] * 3
    assert check(count, "equal to 7: 7 yes, 9 no, 3 no", "equal to 8: 7 no, 9 no, 3 no") == [True, True]
    assert check(count, "equal to 7: 7 no, 9 no, 3 no", "equal to 7: none", "above 5: 7 yes,") == [False, None, None]
    assert check(count, "count 2", "count 3") == [True, False]
    assert check(record(), "count 19") == [False]  # the question is not about a number of digits
    assert check(record(), "even: 7 no, 9 no, 3 no", "even: 7 no, 9 yes, 3 no") == [True, False]
    assert check(record(), "0 of 3", "1 of 3", "0 of 4") == [True, False, False]
    assert check(record(), "largest 9", "smallest 3", "9-3=6") == [True, True, True]
    assert check(record(), "largest 7", "smallest 7", "9-7=2", "9-3=5") == [False] * 4
    assert check(record(), "3 digits", "4 digits") == [True, False]
    options = record("which_appear", "mcq", "A", choices=("7", "8"))
    assert check(options, "A 7 yes", "B 8 no") == [True, True]
    assert check(options, "A 7 no", "B 8 yes", "A 8 no", "C 7 yes") == [False] * 4
    places = record("position", "mcq", "B", choices=("northwest", "centre", "east"), value=3)
    assert check(places, "A northwest 7 no", "B centre 3 yes", "C east empty no") == [True] * 3
    assert check(places, "A northwest 7 yes", "B centre 7 yes", "C east 3 no", "B centre yes") == [False] * 4


def test_boxes():
    """Those of the record are [0,0,30,30], [1,0,30,30] and [2,0,30,30]; half of one in common is enough."""
    assert check(record(), "northwest 7 [0,0,30,30]", "northwest 9 [1,0,16,30]", "centre 3 [2,0,15,30]") == [
        True, True, False,
    ]  # fmt: skip
    assert check(record(), "centre 7 [0,0,30,30]", "centre 3 [30,30,2,0]", "centre 3 [2,0,30]") == [False, False, None]
    assert check(record(), "centre 3 [2,0,30,30]", "centre 3") == [True, False]  # listed once
    found = ["find 3: northwest 7 no, northwest 9 no, centre 3 [2,0,30,30]", "find 7: northwest 7 [0,0,30,30]"]
    assert check(record(), *found, "find 3: centre 3 [3,0,30,30]") == [True] * 3
    wrong = [
        "find 3: northwest 3 [2,0,30,30]",
        "find 3: northwest 7 [2,0,30,30]",
        "find 7: centre 3 [2,0,30,30]",
        "find 3: northwest 3 no, centre 3 [2,0,30,30]",
        "find 3: northwest 7 no, northwest 7 no, centre 3 [2,0,30,30]",
        "find 3: northwest 7 no, centre 3 [40,40,60,60]",
    ]
    assert check(record(), *wrong) == [False] * len(wrong)
    twins = record(pictures=[[(7, "west"), (7, "centre")]])
    assert check(twins, "find 7: west 7 [0,0,30,30]") == [False]
    assert check(record(), "find 3: centre 3 yes", "find 3: northwest 7 no") == [None, None]


def test_unknown_forms_are_none_and_other_lines_are_left_out():
    text = "Let me see.\n  Step 1: northwest 7 \nStep 1: lots of digits\n\nStep 12: north 3\nstep 4: centre 3"
    assert traces.check_trace(record(), text) == [True, None, False]
    assert traces.check_trace(record(), "") == []
