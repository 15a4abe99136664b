"""What is wrong with shards is found, each by its own sentence; what is right passes."""

import argparse
import dataclasses
import io
import itertools
import json
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep import check as check_module
from data_prep.__main__ import main
from data_prep.check import check
from data_prep.digit_scenes import builder
from vlaa_jax.errors import InputError, run_command
from vlaa_jax.processing import shards
from vlaa_jax.processing.records import ProcessRecord, Record

pytestmark = pytest.mark.quick


def encoded(size=(80, 60), format="PNG", mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format)
    return buffer.getvalue()


PICTURE = encoded()
NOISE = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(NOISE, "JPEG")
GOOD = Record("good", (PICTURE,), "How many?", "3", "digit", trace="Step 1: 3", source="hand")
BOX = Record("box", (PICTURE,), "Where?", "[0, 0, 80, 60]", "iou", box_space="pixels", trace="there")
STEP = ProcessRecord("q/0", (PICTURE,), "How many?", "Step 1: two", 0.5)


def change(record=GOOD, **fields):
    return dataclasses.replace(record, id="bad", **fields)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Writes splits without asking what the records are worth."""
    folders = (tmp_path / f"data{number}" for number in itertools.count())

    def write(splits, kind=Record):
        monkeypatch.setattr(shards, "check_record", lambda record: None)
        with shards.appearing(next(folders)) as folder:
            made = [shards.write_shard(folder, name, 0, records, kind=kind) for name, records in splits.items()]
            shards.finish(folder, made, kind=kind, name="hand_made", version="1.0.0")
        return folder.with_name(folder.name.split(".")[1])

    return write


def test_good_shards_pass(data):
    splits = {"sft": [GOOD, BOX], "rl": [dataclasses.replace(GOOD, trace="")]}
    findings = check(data(splits))
    assert (findings.problems, findings.warnings) == ([], [])
    assert (findings.records, findings.pictures) == ({"rl": 1, "sft": 2}, 3)
    assert check(data({"train": [STEP]}, ProcessRecord)).problems == []


def test_the_demo_passes(tmp_path):
    sizes = {name: dataclasses.replace(builder.SPLITS[name], records=26) for name in ("sft", "heldout")}
    builder.build(tmp_path / "scenes", splits=sizes, progress=False)
    findings = check(tmp_path / "scenes")
    assert (findings.problems, findings.warnings) == ([], [])
    assert findings.records == {"heldout": 26, "sft": 26}


BAD = [
    (change(verifier="number"), "verifier 'number' is none of digit"),
    (change(question=" "), "the question is blank"),
    (change(answer="three"), "gold answer 'three' is not one integer"),
    (change(answer=""), "the gold answer is empty"),
    (change(verifier="mcq", answer="C", choices=("a", "b")), "does not name options A to B"),
    (change(question="<image> <image>?"), "2 <image> marks for 1 pictures; expected one each, or none"),
    (change(images=(b"no picture",)), "picture 1 of 1: of no known format"),
    (change(images=(PICTURE, NOISE.getvalue()[:2000])), "picture 2 of 2: undecodable image: "),
    (change(BOX, answer="[0, 0, 81, 60]"), "the gold box [0, 0, 81, 60] leaves its picture of 80 x 60 pixels"),
    (change(BOX, answer="[0, 0, 1.5, 1]", box_space="normalised"), "lies outside the range of box_space 'normalised'"),
    (change(BOX, box_space=""), "verifier iou needs a box_space"),
    (
        change(metadata={"box_image": 1}, verifier="iou", box_space="thousand", answer="[1, 2, 3, 4]"),
        "`box_image` is 1",
    ),
    (dataclasses.replace(STEP, id="bad", value=1.5), "value 1.5 does not lie between 0 and 1"),
    (dataclasses.replace(STEP, id="bad", process="\n"), "the process is blank"),
    (dataclasses.replace(STEP, id="bad", images=(b"",)), "picture 1 of 1: of no known format"),
]


@pytest.mark.parametrize(("record", "words"), BAD)
def test_a_bad_record_is_named(data, record, words):
    kind = type(record)
    findings = check(data({"train": [GOOD if kind is Record else STEP, record]}, kind))
    (problem,) = findings.problems
    assert problem.startswith("train, record 'bad': ") and words in problem
    assert findings.records == {"train": 2}


def test_math_golds_are_parsed_unless_it_must_be_fast(data):
    bad = change(verifier="math", answer="\\frac{1}{")
    folder = data(
        {"train": [change(GOOD, verifier="math", answer="\\frac{1}{2}"), dataclasses.replace(bad, id="other")]}
    )
    (problem,) = check(folder).problems
    assert problem.startswith("train, record 'other': gold answer") and "mathematical expression" in problem
    assert check(folder, fast=True).problems == []


def test_a_bomb_is_not_decoded(data, monkeypatch):
    bomb = encoded((10_000, 10_000), mode="1")
    folder = data({"train": [change(images=(bomb,))]})
    monkeypatch.setattr("data_prep.check.read_size", lambda encoded: pytest.fail("decoded"))
    expected = ["train, record 'bad': picture 1 of 1: 10000 x 10000 pixels, more than 50,000,000"]
    assert check(folder).problems == check(folder, fast=True).problems == expected


def test_a_damaged_picture_passes_the_fast_check_only(data):
    folder = data({"train": [change(images=(NOISE.getvalue()[:2000],))]})
    assert len(check(folder).problems) == 1 and check(folder, fast=True).problems == []


def test_ids_are_unique_in_a_split_and_traces_there_where_one_imitates_them(data):
    splits = {"sft": [change(trace=""), GOOD, change(trace="")], "rl": [change(trace="")]}
    findings = check(data(splits))
    assert findings.problems == ["sft, record 'bad': the id occurs more than once"]
    assert findings.warnings == ["sft: 2 records have no trace to imitate, the first is 'bad'"]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def edit(path, *keys, value):
    content = entry = json.loads(path.read_text())
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_damaged_shards_are_all_named_and_the_others_are_read(data):
    folder = data({name: [GOOD, BOX] for name in ("a", "b", "c", "d")})
    names = [f"{folder}/hand_made-{name}.array_record-00000-of-00001" for name in "abc"]
    (folder / names[0]).unlink()
    size = (folder / names[1]).stat().st_size
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-1])
    flip(folder / names[2], size - 1)  # in the footer's padding: the records stay as they were
    findings = check(folder)
    assert findings.problems == [
        f"{names[0]}: the shard is missing",
        f"{names[1]}: the content differs from its sha256 in manifest.json",
        f"{names[2]}: the content differs from its sha256 in manifest.json",
        f"{names[1]}: {size - 1} bytes where manifest.json says {size}",
    ]
    assert findings.records == {"c": 2, "d": 2}
    assert check(folder, fast=True).problems == [findings.problems[0], findings.problems[3]]


def test_a_record_that_cannot_be_read_does_not_hide_the_next(data):
    large = np.random.default_rng(0).bytes(100_000)
    folder = data({"train": [dataclasses.replace(GOOD, images=(large,)), change(answer="three")]})
    (path,) = folder.glob("*array_record*")
    flip(path, path.read_bytes().index(large[-1000:]))
    problems = check(folder, fast=True).problems
    assert problems[0].startswith(f"train, record 0 cannot be read (InputError: {path}: ")
    assert problems[1].startswith("train, record 'bad': gold answer 'three'") and len(problems) == 2


def test_metadata_of_tfds_must_agree(data):
    folder = data({"rl": [GOOD], "sft": [GOOD, BOX]})
    path = folder / "dataset_info.json"
    kept = path.read_text()
    edit(path, "splits", 0, "shardLengths", value=["2"])
    assert check(folder).problems == [
        f"{path}: split rl has shards of [2] records, manifest.json says [1]",
    ]
    path.write_text(kept)
    edit(path, "splits", 1, "name", value="other")
    assert [problem.partition(" has ")[0] for problem in check(folder).problems] == [
        f"{path}: split other",
        f"{path}: split sft",
    ]
    path.write_text("{")
    assert check(folder).problems[0].startswith(f"{folder}: TFDS cannot read its metadata (")
    path.write_text(kept)
    features = folder / "features.json"
    edit(
        features,
        "featuresDict",
        "features",
        "trace",
        "pythonClassName",
        value="tensorflow_datasets.core.features.tensor_feature.Tensor",
    )
    assert check(folder).problems  # of whatever kind
    edit(features, "featuresDict", "features", value={})
    assert any("neither a Record's nor a ProcessRecord's" in problem for problem in check(folder).problems)


def test_a_folder_that_is_none_of_ours_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json: no such file; expected a directory written by data_prep"):
        check(tmp_path)


def test_the_first_problems_are_listed_and_the_others_counted(data, capsys):
    records = [dataclasses.replace(GOOD, id=f"r{number}", answer="three") for number in range(23)]
    folder = data({"sft": [*records, change(trace="")]})
    parser = argparse.ArgumentParser()
    check_module.add_command(parser.add_subparsers())
    arguments = parser.parse_args(["check", f"--data={folder}"])
    assert arguments.run(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "warning: sft: 1 records have no trace to imitate, the first is 'bad'"
    assert [line.partition(":")[0] for line in lines[1:21]] == [f"sft, record 'r{number}'" for number in range(20)]
    assert lines[21:] == ["... and 3 more", f"{folder}: 23 problems in 24 records of sft, 24 pictures"]


@pytest.mark.parametrize(("answer", "code"), [("3", 0), ("three", 1)])
def test_exit_codes(data, monkeypatch, answer, code):
    monkeypatch.setattr(sys, "argv", ["data_prep", "check", f"--data={data({'rl': [change(answer=answer)]})}"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code
