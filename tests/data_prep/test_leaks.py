"""Leaks: planted ones are found, whatever was done to the picture or the punctuation; others are not."""

import argparse
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from data_prep import leaks, picture_hashes
from data_prep.leaks import find_leaks
from data_prep.picture_hashes import hash_picture, near_bits, near_pictures
from data_prep.question_overlap import Question, grams, overlaps, words
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import open_split, write_records

pytestmark = pytest.mark.quick

LONG = "In the triangle ABC shown in the figure, AB equals AC and angle A is 40 degrees. What is angle B?"
OTHER = "A ladder of five metres leans on the wall as drawn; its foot stands three metres away. How high is its top?"


def texture(seed, size=(96, 80)):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def scan(seed):
    """A page of a few lines of words: an even ground, little ink."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (120, 160), "white")
    draw = ImageDraw.Draw(image)
    for line in range(6, 150, 12):
        x = 8
        while x < generator.integers(20, 112):
            width = int(generator.integers(4, 20))
            draw.rectangle((x, line, x + width, line + 3), fill="black")
            x += width + 4
    return image


def plot(seed):
    """Axes and a curve."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (120, 120), "white")
    draw = ImageDraw.Draw(image)
    draw.line((0, 60, 120, 60), fill="black")
    draw.line((60, 0, 60, 120), fill="black")
    x = np.linspace(-1, 1, 60)
    waves = [np.sin(generator.uniform(1, 15) * x + generator.uniform(0, 6)) for _ in range(3)]
    y = sum(waves) / 3
    draw.line([(60 + 60 * a, 60 - 55 * b) for a, b in zip(x, y, strict=True)], fill="blue", width=3)
    return image


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def record(name, *images, question="How many?"):
    return Record(name, tuple(images), question, "1", "digit")


def split(folder, name, records, kind=Record):
    write_records(folder / name, {name: records}, kind=kind, name="hand_made", version="1.0.0")
    return open_split(f"{folder}/{name}:{name}")


def found(leak):
    return leak.id, leak.against_id


def test_the_same_picture_is_found_in_other_clothes_and_a_mirror_image_is_not(tmp_path):
    original = texture(0)
    changed = {
        "same": encoded(original, "BMP"),
        "jpeg": encoded(original, "JPEG", quality=50),
        "smaller": encoded(original.resize((86, 72), Image.Resampling.LANCZOS)),
        "larger": encoded(original.resize((106, 88), Image.Resampling.BILINEAR), "JPEG", quality=75),
    }
    others = {"mirrored": encoded(ImageOps.mirror(original)), "other": encoded(texture(1))}
    train = split(tmp_path, "sft", [record(name, image) for name, image in (changed | others).items()])
    test = split(tmp_path, "test", [record("unrelated", encoded(texture(2))), record("planted", encoded(original))])
    result = find_leaks([train], [test])
    assert [found(leak) for leak in result.pictures] == [(name, "planted") for name in changed]
    assert result.pictures[0].reason == "the same picture"
    assert all(leak.reason.startswith("a near picture, ") and leak.measure <= 6 for leak in result.pictures[1:])
    assert {(leak.data, leak.against) for leak in result.pictures} == {(train.location, test.location)}
    assert (result.questions, result.compared) == ((), ((6, 6), (2, 2)))
    assert not find_leaks([split(tmp_path, "clean", [record("b", others["mirrored"])])], [test])


def test_a_pair_of_records_is_named_once_and_every_holder_of_a_picture(tmp_path):
    picture, jpeg, other = encoded(texture(0)), encoded(texture(0), "JPEG"), encoded(texture(1))
    train = [
        split(tmp_path, "sft", [record("both", jpeg, other, picture), record("again", picture)]),
        split(tmp_path, "rl", [record("both", picture)]),
    ]
    test = split(tmp_path, "test", [record("t", picture, picture)])
    result = find_leaks(train, [test])
    assert [(leak.data.rpartition(":")[2], leak.id, leak.reason) for leak in result.pictures] == [
        ("sft", "both", "the same picture"),
        ("sft", "again", "the same picture"),
        ("rl", "both", "the same picture"),
    ]
    assert result.compared == ((3, 3), (1, 1))


@pytest.mark.parametrize("draw", [texture, scan, plot])
def test_different_pictures_are_not_near(draw):
    hashes = [hash_picture(draw(seed)) for seed in range(700)]
    near = [(i, j) for i, j, _ in near_pictures(hashes[:350], hashes[350:])]
    assert near == []
    again = [hash_picture(Image.open(io.BytesIO(encoded(draw(seed), "JPEG", quality=60)))) for seed in range(100)]
    assert {(i, i) for i in range(100)} <= {(i, j) for i, j, _ in near_pictures(again, hashes)}


def test_an_even_picture_is_only_like_itself(tmp_path):
    even = {name: encoded(Image.new("RGB", (8, 6), name)) for name in ("red", "blue", "white")}
    train = split(tmp_path, "sft", [record(name, image) for name, image in even.items()])
    test = split(tmp_path, "test", [record("t", even["blue"])])
    assert [found(leak) for leak in find_leaks([train], [test]).pictures] == [("blue", "t")]


HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=12)
FLIPS = st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=9)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(HASHES, FLIPS, HASHES, st.integers(0, 16), st.integers(1, 20))
def test_banded_search_finds_what_comparing_all_with_all_finds(left, flips, right, distance, chunk):
    right = right + [left[i] ^ sum(1 << bit for bit in bits) for i, bits in flips if i < len(left)]
    expected = {
        (i, j, (a ^ b).bit_count())
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if (a ^ b).bit_count() <= distance
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_hashes, "_HASHES", chunk)
        parts = list(near_bits(np.array(left, np.uint64), np.array(right, np.uint64), distance))
    pairs = [pair for part in parts for pair in zip(*(column.tolist() for column in part), strict=True)]
    assert len(pairs) == len(set(pairs)) and set(pairs) == expected


def test_words_are_what_remains_without_punctuation():
    assert words("<image>\nWhat's the VALUE of x_1, in ½-cm²?") == "what s the value of x 1 in 1 2 cm2".split()
    assert words("图中∠A=40°吗") == ["图", "中", "a", "40", "吗"]
    assert grams("a b c d", 3) == {"a b c", "b c d"} and grams("A, b!", 3) == {"a b"} and grams("?!", 3) == set()


def test_a_question_copied_with_other_punctuation_is_found(tmp_path):
    copied = LONG.upper().replace(",", " --").replace("?", " ?!")
    train = split(
        tmp_path,
        "sft",
        [record("other", encoded(texture(0)), question=OTHER), record("copy", encoded(texture(1)), question=copied)],
    )
    test = split(tmp_path, "test", [record("t", encoded(texture(2)), question=f"<image>{LONG}")])
    (leak,) = find_leaks([train], [test]).questions
    assert (found(leak), leak.measure) == (("copy", "t"), 1.0)
    assert leak.reason == "the same question, 100% of its 13-grams"
    assert not find_leaks([train], [test], words=30).questions  # then it is a short one, with a picture


def test_the_share_of_common_grams_decides():
    target = [Question(" ".join(f"w{i}" for i in range(22)))]  # ten 13-grams
    half = [Question(" ".join(f"w{i}" for i in range(17)))]  # five of them
    assert list(overlaps(half, target)) == [(0, 0, 0.5)]
    assert list(overlaps(half, target, share=0.51)) == []
    longer = [Question(" ".join(f"w{i}" for i in range(-30, 40)))]
    assert list(overlaps(longer, target)) == [(0, 0, 1.0)]


def test_short_questions_count_where_there_is_no_picture():
    asked, bare = Question("How many balls?", (b"1",)), Question("how many balls")
    assert list(overlaps([asked], [Question("How many balls?", (b"2",))])) == []
    assert list(overlaps([asked, bare], [bare])) == [(0, 0, 1.0), (1, 0, 1.0)]
    assert list(overlaps([Question("How many red balls?")], [bare])) == []


def test_what_is_asked_of_many_pictures_is_boilerplate():
    template = [Question(LONG, (bytes([number]),)) for number in range(9)]
    target = [Question(LONG, (b"t",))]
    assert [place for place, _, _ in overlaps(template, target)] == list(range(9))
    assert list(overlaps([*template, Question(LONG, (b"ten",))], target)) == []
    assert list(overlaps(template, [*target, Question(LONG, (b"other",))])) == []
    # One picture with many records, such as the steps of a solution, is one.
    assert len(list(overlaps(template[:1] * 40, target))) == 40
    # A question of its own beside an instruction that all share.
    ends = [Question(f"{OTHER} {LONG}", (bytes([number]),)) for number in range(20)]
    own = " ".join(f"w{i}" for i in range(20))
    assert list(overlaps([*ends, Question(f"{own} {LONG}", (b"x",))], [Question(f"{own} {LONG}", (b"y",))])) == [
        (20, 0, 1.0)
    ]


def test_judged_solutions_are_compared_too(tmp_path):
    picture = encoded(texture(0))
    train = split(tmp_path, "train", [ProcessRecord("q/0", (picture,), LONG, "Step 1", 0.5)], ProcessRecord)
    result = find_leaks([train], [split(tmp_path, "test", [record("t", picture, question=LONG)])])
    assert [found(leak) for leak in result.pictures + result.questions] == [("q/0", "t")] * 2


def test_what_cannot_be_compared_is_named(tmp_path):
    bad = split(tmp_path, "sft", [record("good", encoded(texture(0))), record("bad", b"no picture")])
    with pytest.raises(InputError, match="sft:sft, record 'bad': undecodable image"):
        find_leaks([bad], [bad])
    for setting in ({"distance": 17}, {"words": 0}, {"share": 0.0}):
        with pytest.raises(InputError, match="expected 0 to 16 bits"):
            find_leaks([], [], **setting)


def test_command(tmp_path, capsys):
    pictures = [encoded(texture(seed)) for seed in range(25)]
    split(tmp_path, "sft", [record(f"s{number}", picture) for number, picture in enumerate(pictures)])
    split(tmp_path, "test", [record(f"t{number}", picture) for number, picture in enumerate(pictures[:22])])
    split(tmp_path, "clean", [record("c", encoded(texture(99)))])

    def run(against, *more):
        parser = argparse.ArgumentParser()
        leaks.add_command(parser.add_subparsers())
        arguments = parser.parse_args(
            ["leaks", f"--data={tmp_path}/sft:sft", f"--against={tmp_path}/{against}:{against}", *more]
        )
        return arguments.run(arguments), capsys.readouterr().out.splitlines()

    code, lines = run("test", f"--json={tmp_path}/leaks.json")
    assert code == 1 and len(lines) == 22
    assert lines[0] == f"{tmp_path}/sft:sft s0 | {tmp_path}/test:test t0 | the same picture"
    assert lines[20] == "... and 2 more"
    assert lines[21] == (
        "22 pairs of records leak by picture, 0 by question: 25 records with 25 different pictures, against 22 with 22"
    )
    stored = json.loads((tmp_path / "leaks.json").read_text())
    assert [leak["against_id"] for leak in stored["pictures"]] == [f"t{number}" for number in range(22)]
    code, lines = run("clean")
    assert code == 0 and len(lines) == 1
    with pytest.raises(InputError, match="--json: no folder"):
        run("test", f"--json={tmp_path}/nowhere/leaks.json")
