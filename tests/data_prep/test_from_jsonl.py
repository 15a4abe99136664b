"""Import of a JSONL file: good lines become records, every bad line is named, nothing is written on error."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from data_prep.from_jsonl import import_jsonl
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource

pytestmark = pytest.mark.quick

GOOD = [
    {"image": "red.png", "question": "How many?", "answer": "3", "verifier": "digit"},
    {"id": "pair", "images": ["red.png", "sub/blue.jpg"], "question": "<image> <image> Same?", "answer": "B",
     "verifier": "mcq", "choices": ["yes", "no"], "trace": "Step 1: look"},
    {"image": "red.png", "question": "Where?", "answer": "[0, 0, 4, 3]", "verifier": "iou", "box_space": "pixels"},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(tmp_path / "images" / "red.png")
    Image.new("RGB", (8, 6), "blue").save(tmp_path / "images" / "sub" / "blue.jpg")
    content = (tmp_path / "images" / "red.png").read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(content[: len(content) // 2])
    return tmp_path


def write(folder, lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "questions.jsonl").write_text(text + "\n")


def run(folder, **options):
    import_jsonl(str(folder / "questions.jsonl"), str(folder / "images"), str(folder / "out"), **options)


def test_good_lines_become_records(folder):
    write(folder, [GOOD[0], "", *GOOD[1:]])
    run(folder)
    red = (folder / "images" / "red.png").read_bytes()
    blue = (folder / "images" / "sub" / "blue.jpg").read_bytes()
    assert list(RecordSource(folder / "out")) == [
        Record("questions-000001", (red,), "How many?", "3", "digit", source="from_jsonl"),
        Record(
            "pair", (red, blue), "<image> <image> Same?", "B", "mcq", ("yes", "no"), "", "Step 1: look", "from_jsonl"
        ),
        Record("questions-000004", (red,), "Where?", "[0, 0, 4, 3]", "iou", (), "pixels", "", "from_jsonl"),
    ]


def test_verifier_and_split_from_the_command(folder):
    write(folder, [{"image": "red.png", "question": "How many?", "answer": "3"}, GOOD[2]])
    run(folder, split="dev", verifier="digit")
    assert [record.verifier for record in RecordSource(f"{folder}/out:dev")] == ["digit", "iou"]


BAD = [
    ("{not json", "not JSON"),
    ('["a list"]', "expected a JSON object, found list"),
    ({**GOOD[0], "answr": "3"}, "unknown field 'answr'"),
    ({**GOOD[0], "question": " "}, "question is blank"),
    ({"image": "red.png", "question": "How many?", "verifier": "digit"}, "answer is missing"),
    ({**GOOD[0], "answer": 3}, "answer must be text, found 3"),
    ({"image": "red.png", "question": "How many?", "answer": "3"}, "--verifier was not given"),
    ({**GOOD[0], "verifier": "number"}, "'number' is none of digit"),
    ({**GOOD[0], "images": ["red.png"]}, "either image or images"),
    ({"question": "How many?", "answer": "3", "verifier": "digit"}, "either image or images"),
    ({**GOOD[1], "images": []}, "images must be a list of texts"),
    ({**GOOD[1], "choices": ["yes", 2]}, "choices must be a list of texts"),
    ({**GOOD[0], "image": "green.png"}, "green.png does not exist"),
    ({**GOOD[0], "image": "cut.png"}, "cut.png"),
    ({**GOOD[1], "question": "<image> Same?"}, "1 <image> marks for 2 images"),
    ({**GOOD[2], "box_space": "cm"}, "'cm' is none of"),
    ({**GOOD[0], "answer": "three"}, "'three' is not one integer"),
    ({**GOOD[1], "answer": "C"}, "does not name options A to B"),
    ('{"image": "red.png", "question": "\\ud800", "answer": "3", "verifier": "digit"}', "surrogate"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_bad_line_is_named_and_nothing_is_written(folder, line, words):
    write(folder, [GOOD[0], line, GOOD[2]])
    with pytest.raises(InputError) as error:
        run(folder)
    assert words in str(error.value)
    assert f"{folder}/questions.jsonl:2: " in str(error.value)
    assert "questions.jsonl:1" not in str(error.value) and "questions.jsonl:3" not in str(error.value)
    assert sorted(path.name for path in folder.iterdir()) == ["images", "questions.jsonl"]


def test_every_bad_line_is_named(folder):
    write(folder, [line for line, _ in BAD] + [{**GOOD[1], "answer": "A"}, GOOD[1]])
    with pytest.raises(InputError) as error:
        run(folder)
    message = str(error.value)
    assert message.startswith("bad lines: 20, nothing was written\n")
    assert all(f"questions.jsonl:{number}: " in message for number in [*range(1, 20), 21])
    assert "the id 'pair' is that of line 20" in message


def test_command(folder):
    def command(*more):
        paths = [f"--jsonl={folder}/questions.jsonl", f"--images={folder}/images", f"--out={folder}/out"]
        line = [sys.executable, "-m", "data_prep", "from-jsonl", *paths, *more]
        return subprocess.run(line, capture_output=True, text=True)

    write(folder, GOOD)
    good = command("--split=test")
    assert (good.returncode, good.stdout) == (0, f"3 records in {folder}/out:test\n"), good.stderr
    again = command()
    assert again.returncode == 2 and "exists already" in again.stderr
    bad = command("--images=nowhere")
    assert bad.returncode == 2 and bad.stderr == "error: --images: nowhere is not a folder\n"
