"""Digit scenes: pictures, boxes, golds, balance, and that tests and training share nothing."""

import collections
import dataclasses
import fractions
import io
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from data_prep.digit_scenes import builder, command, glyphs, questions, scenes
from vlaa_jax.errors import InputError
from vlaa_jax.processing.shards import RecordSource

SEED = 0
KINDS = [
    ("count_value", "digit"),
    ("count_above", "digit"),
    ("sum", "math"),
    ("fraction_even", "math"),
    ("range", "math"),
    ("largest", "mcq"),
    ("position", "mcq"),
    ("which_appear", "mcq"),
    ("compare_sums", "mcq"),
    ("box_only", "iou"),
    ("box_largest", "iou"),
    ("describe", "open_ended"),
]


@pytest.fixture(scope="module")
def splits():
    """Whole test splits, the beginnings of the training splits' kinds."""
    drawn = {name: list(builder.draw_split(name, builder.SPLITS[name], SEED)) for name in ("heldout", "harder")}
    for name in ("sft", "rl"):
        split = dataclasses.replace(builder.SPLITS[name], records=1200)
        drawn[name] = list(builder.draw_split(name, split, SEED))
    return drawn


@pytest.fixture(scope="module")
def all_records(splits):
    return list(itertools.chain.from_iterable(splits.values()))


def pictures_of(record):
    return [[scenes.Glyph.from_json(entry) for entry in picture] for picture in record.metadata["glyphs"]]


def open_images(record):
    return [Image.open(io.BytesIO(image)) for image in record.images]


@pytest.mark.quick
def test_shipped_glyphs_are_those_of_scikit_learn():
    images, labels = glyphs.load_glyphs()
    expected = sklearn.datasets.load_digits()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.target)


@pytest.mark.quick
def test_glyph_ranges_are_contiguous_and_apart():
    assert {name: (r.start, r.stop, r.step) for name, r in glyphs.RANGES.items()} == {
        "train": (0, 1200, 1),
        "heldout": (1200, 1497, 1),
        "harder": (1497, 1797, 1),
    }
    by_value = glyphs.glyphs_by_value("heldout")
    assert sorted(itertools.chain.from_iterable(by_value)) == list(range(1200, 1497))
    assert all(glyphs.load_glyphs()[1][index] == 7 for index in by_value[7])
    assert min(map(len, by_value)) >= 9  # a scene of nine equal digits is possible


def test_splits_hold_what_the_specification_says(splits):
    glyph_range = {"sft": (0, 1200), "rl": (0, 1200), "heldout": (1200, 1497), "harder": (1497, 1797)}
    digits = {"sft": (2, 6), "rl": (3, 7), "heldout": (3, 7), "harder": (8, 9)}
    for name, records in splits.items():
        seen = collections.Counter()
        for record in records:
            flat = list(itertools.chain.from_iterable(pictures_of(record)))
            assert len({glyph.index for glyph in flat}) == len(flat)
            assert all(glyph_range[name][0] <= glyph.index < glyph_range[name][1] for glyph in flat)
            if record.metadata["kind"] != "compare_sums":
                seen[len(flat)] += 1
        assert (min(seen), max(seen)) == digits[name]
        assert min(seen.values()) > 0.5 * max(seen.values())
    for name in ("heldout", "harder"):
        kinds = collections.Counter((r.metadata["kind"], r.verifier) for r in splits[name])
        assert kinds == {(kind, v): 200 if kind == "describe" else 100 for kind, v in KINDS}
    assert collections.Counter(r.metadata["kind"] for r in splits["rl"]) == {kind: 100 for kind, _ in KINDS}
    assert {(builder.SPLITS[n].records) for n in ("sft", "rl")} == {20_000, 8_192}


def test_no_glyph_set_with_question_of_a_test_split_occurs_in_training(splits):
    def keys(names):
        return {
            (tuple(sorted(g.index for p in pictures_of(r) for g in p)), r.question) for n in names for r in splits[n]
        }

    assert not keys(["sft", "rl"]) & keys(["heldout", "harder"])
    # Nor does a question about the same glyphs come twice.
    assert len(keys(splits)) == sum(map(len, splits.values()))


def test_pictures_have_one_size_that_is_no_multiple_of_a_window(splits):
    for name in ("sft", "heldout", "harder"):
        for record in splits[name]:
            assert all((image.size, image.mode) == ((168, 168), "RGB") for image in open_images(record))


def test_the_tint_of_the_ground_tells_where_one_is(splits):
    for name in ("sft", "harder"):
        pixels = np.stack([np.asarray(open_images(record)[0], float) for record in splits[name][:100]])
        red, blue = (pixels[..., channel] - pixels[..., 1] for channel in (0, 2))
        assert (np.diff(red.mean((0, 1)).reshape(6, 28).mean(1)) > 3).all()  # from left to right
        assert (np.diff(blue.mean((0, 2)).reshape(6, 28).mean(1)) > 3).all()  # from top to bottom


def test_tiles_lie_inside_apart_and_in_their_cells(all_records):
    for record in all_records:
        for picture, image in zip(pictures_of(record), open_images(record), strict=True):
            for glyph in picture:
                x1, y1, x2, y2 = glyph.box
                assert 0 <= x1 and x2 <= image.width and 0 <= y1 and y2 <= image.height
                assert x2 - x1 == y2 - y1 and 32 <= x2 - x1 <= 40
                words = {(0, 0): "northwest", (0, 1): "north", (0, 2): "northeast", (1, 0): "west", (1, 1): "centre"}
                words |= {(1, 2): "east", (2, 0): "southwest", (2, 1): "south", (2, 2): "southeast"}
                row, column = int((y1 + y2) / 2 * 3 // image.height), int((x1 + x2) / 2 * 3 // image.width)
                assert glyph.place == words[row, column]
                # No place word hangs on a pixel: the whole tile lies in the cell.
                for corner in itertools.product((x1, x2 - 1), (y1, y2 - 1)):
                    assert scenes.place_of(corner, image.size) == glyph.place
            for a, b in itertools.combinations(picture, 2):
                assert a.box[2] <= b.box[0] or b.box[2] <= a.box[0] or a.box[3] <= b.box[1] or b.box[3] <= a.box[1]


def test_ink_stands_in_the_boxes_and_nowhere_else(splits):
    """Every glyph is found again by correlation with its 8 x 8 image, at its own box better than nearby."""
    images, _ = glyphs.load_glyphs()
    found = total = 0
    for record in [*splits["heldout"][:60], *splits["harder"][:30]]:
        for picture, image in zip(pictures_of(record), open_images(record), strict=True):
            grey = np.asarray(image.convert("L"), np.float32)
            for glyph in picture:
                side = glyph.box[2] - glyph.box[0]
                template = np.asarray(
                    Image.fromarray(images[glyph.index] * np.uint8(15)).resize((side, side)), np.float32
                )

                def likeness(dx, dy, glyph=glyph, grey=grey, template=template, side=side):
                    x, y = glyph.box[0] + dx, glyph.box[1] + dy
                    if x < 0 or y < 0:
                        return 0.0
                    tile = grey[y : y + side, x : x + side]
                    return abs(np.corrcoef(tile.ravel(), template.ravel())[0, 1]) if tile.shape == template.shape else 0

                here = likeness(0, 0)
                assert here > 0.6, (record.id, glyph)
                found += here >= max(likeness(dx, dy) for dx, dy in ((-4, 0), (4, 0), (0, -4), (0, 4)))
                total += 1
    assert found / total > 0.97


def test_golds_follow_from_the_scene(all_records):
    """Computed again from the glyphs' labels and the question's own words."""
    _, labels = glyphs.load_glyphs()
    seen = collections.Counter()
    for record in all_records:
        pictures = pictures_of(record)
        values = [[int(labels[glyph.index]) for glyph in picture] for picture in pictures]
        assert values == [[glyph.value for glyph in picture] for picture in pictures]
        shown, text, gold = values[0], record.question.splitlines()[0], record.answer
        named = [int(digit) for digit in re.findall(r"\d", text)]
        options = dict(line.split(". ", 1) for line in record.question.splitlines()[1:])
        assert tuple(options.values()) == record.choices and "".join(options) == "ABCD"[: len(options)]
        match record.metadata["kind"]:
            case "count_value":
                assert gold == str(shown.count(*named))
            case "count_above":
                assert gold == str(sum(value > named[0] for value in shown))
            case "sum":
                assert gold == str(sum(shown))
            case "fraction_even":
                numerator, denominator = re.fullmatch(r"\\frac\{(\d)\}\{(\d)\}|(\d)", gold).groups()[:2]
                share = fractions.Fraction(int(numerator), int(denominator)) if numerator else int(gold)
                assert share == fractions.Fraction(sum(value % 2 == 0 for value in shown), len(shown))
            case "range":
                assert gold == str(max(shown) - min(shown))
            case "largest":
                assert options[gold] == str(max(shown))
            case "position":
                assert [options[gold]] == [glyph.place for glyph in pictures[0] if glyph.value == named[0]]
            case "which_appear":
                assert gold == ",".join(letter for letter, digit in options.items() if int(digit) in shown) != ""
            case "compare_sums":
                first, second = map(sum, values)
                outcome = "first" if first > second else "second" if second > first else "equal"
                assert outcome in options[gold] and min(map(len, values)) >= 2
            case "box_only":
                assert gold == str(next(list(g.box) for g in pictures[0] if g.value == named[0])).replace(" ", "")
                assert shown.count(*named) == 1
            case "box_largest":
                assert gold == str(next(list(g.box) for g in pictures[0] if g.value == max(shown))).replace(" ", "")
                assert shown.count(max(shown)) == 1
            case "describe":
                facts = collections.Counter((glyph.value, glyph.place) for glyph in pictures[0])
                stated = re.findall(r"In the ([a-z]+) there is an? (\d)\.", gold)
                assert collections.Counter((int(value), place) for place, value in stated) < facts
                assert 1 <= len(stated) and abs(len(stated) - len(shown) / 2) <= 2
        assert record.box_space == ("pixels" if record.verifier == "iou" else "")
        assert len(set(record.choices)) == len(record.choices)
        seen[record.metadata["kind"]] += 1
    assert len(seen) == 12


def test_no_answer_is_common_and_letters_are_even(splits):
    for name, records in splits.items():
        by_kind = collections.defaultdict(list)
        for record in records:
            by_kind[record.metadata["kind"]].append(record)
        for kind, group in by_kind.items():
            answers = collections.Counter(record.answer for record in group)
            assert max(answers.values()) <= 0.35 * len(group), (name, kind, answers.most_common(2))
            if kind in ("largest", "position", "compare_sums"):
                options = len(group[0].choices)
                assert max(answers.values()) - min(answers.values()) <= 1 and len(answers) == options
                golds = collections.Counter(r.choices["ABCD".index(r.answer)] for r in group)
                assert max(golds.values()) <= 0.35 * len(group), (name, kind, golds.most_common(2))
            if kind == "which_appear":
                right = collections.Counter("".join(r.answer for r in group).replace(",", ""))
                assert max(right.values()) < 1.35 * min(right.values())
            # Always the largest, or the smallest, option: no better than chance.
            if kind == "largest":
                ranks = [sorted(r.choices).index(r.choices["ABCD".index(r.answer)]) for r in group]
                assert max(collections.Counter(ranks).values()) <= 0.3 * len(group)


def test_templates_occur_evenly_and_do_not_tell_the_answer(splits):
    by_template = collections.defaultdict(list)
    for record in splits["rl"]:
        wording = re.sub(r"\d", "#", record.question.splitlines()[0])
        by_template[record.metadata["kind"], wording].append(record.answer)
    assert len(by_template) == 3 * 12
    assert min(map(len, by_template.values())) > 15


def test_only_sft_has_traces_and_about_thirty_percent_enumerate(splits):
    styles = collections.Counter(record.metadata["style"] for record in splits["sft"])
    assert 0.25 < styles["enumerate"] / 1200 < 0.35
    assert all((r.trace == "I can answer at once.") == (r.metadata["style"] == "direct") for r in splits["sft"])
    others = [r for name in ("rl", "heldout", "harder") for r in splits[name]]
    assert not any(record.trace or "style" in record.metadata for record in others)


@pytest.mark.quick
def test_reading_order_is_by_row_of_cells_then_from_left_to_right():
    def glyph(x, y):
        box = (x, y, x + 24, y + 24)
        return scenes.Glyph(0, 0, box, scenes.place_of((x + 12, y + 12), (120, 120)))

    low_left, high_right, middle, below = glyph(5, 15), glyph(70, 2), glyph(40, 40), glyph(0, 90)
    assert scenes.reading_order([below, middle, high_right, low_left]) == [low_left, high_right, middle, below]


@pytest.mark.quick
def test_a_record_depends_on_seed_and_number_only():
    split = dataclasses.replace(builder.SPLITS["rl"], records=24)
    first = list(builder.draw_split("rl", split, 3))
    assert list(builder.draw_split("rl", split, 3)) == first
    assert list(builder.draw_split("rl", split, 4)) != first
    sums = dataclasses.replace(split, kinds={"sum": 1})
    drawn = [[r.metadata["glyphs"] for r in builder.draw_split(name, sums, 3)] for name in ("rl", "sft")]
    assert not any(scene in drawn[0] for scene in drawn[1])  # splits are drawn apart


@pytest.mark.quick
def test_weights_of_kinds_and_share_of_styles_are_parameters():
    split = dataclasses.replace(
        builder.SPLITS["sft"], records=40, kinds={"sum": 3, "box_only": 1, "largest": 0}, enumerate_share=1.0
    )
    records = list(builder.draw_split("sft", split, 0))
    assert collections.Counter(r.metadata["kind"] for r in records) == {"sum": 30, "box_only": 10}
    assert {r.metadata["style"] for r in records} == {"enumerate"}
    located = list(builder.draw_split("sft", dataclasses.replace(split, locate_share=1.0), 0))
    assert all((r.metadata["style"] == "locate") == (r.verifier == "iou") for r in located)
    for kinds in ({"sums": 1}, {"sum": -1, "range": 2}, {"sum": 0}):
        with pytest.raises(InputError, match="kinds of a split"):
            list(builder.draw_split("sft", dataclasses.replace(split, kinds=kinds), 0))


@pytest.mark.quick
def test_too_many_digits_for_any_size_is_one_sentence():
    for count in (10, 60):
        with pytest.raises(InputError, match=f"{count} digits: 9 at most"):
            scenes.compose(np.random.default_rng(0), list(range(count)), scenes.PLAIN)


@pytest.mark.quick
def test_command_builds_shards_and_says_what_it_wants(tmp_path):
    def run(*arguments):
        line = [sys.executable, "-m", "data_prep", "digit-scenes", *arguments]
        return subprocess.run(line, capture_output=True, text=True)

    good = run(f"--out={tmp_path}/a", "--seed=5", "--splits=rl=13,heldout=26")
    assert good.returncode == 0 and "rl: 13 of 13" in good.stderr, good.stderr
    builder.build(tmp_path / "b", seed=5, splits=command.parse_splits("rl=13,heldout=26"), progress=False)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(RecordSource(f"{tmp_path}/a:heldout")) == 26

    again = run(f"--out={tmp_path}/a", "--splits=rl=13")
    assert (again.returncode, again.stdout) == (2, "") and "exists already" in again.stderr
    wrong = run(f"--out={tmp_path}/c", "--splits=dev")
    assert wrong.returncode == 2 and "'dev' is none of see, sft, rl, heldout, harder" in wrong.stderr
    for count in ("rl=0", "rl=many", "rl="):
        with pytest.raises(InputError, match="number of records above 0"):
            command.parse_splits(count)


def test_even_share_is_in_lowest_terms():
    assert questions.even_share([2, 4, 1, 3]) == r"\frac{1}{2}"
    assert questions.even_share([2, 4, 1, 3, 5]) == r"\frac{2}{5}"
    assert questions.even_share([0, 8]) == "1"
    assert questions.even_share([1, 7, 9]) == "0"
