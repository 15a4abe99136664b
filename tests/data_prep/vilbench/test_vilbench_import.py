"""The released questions, in the guessed layout (ORIGIN.md) and with other columns."""

import io
import json
import pathlib
import re

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from data_prep.vilbench.released import COLUMNS, import_released
from vlaa_jax.errors import InputError
from vlaa_jax.processing.shards import RecordSource

pytestmark = pytest.mark.quick

RELEASED = pathlib.Path(__file__).parent / "released.jsonl"
QUOTAS = {"MMStar": 1, "MathVista": 1, "MathVerse": 1, "MMMU-Pro": 1, "RealWorldQA": 1}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 8), "grey").save(tmp_path / "dot.png")
    return tmp_path


def rows():
    return [json.loads(line) for line in RELEASED.read_text().splitlines()]


def run(folder, file=RELEASED, *, quotas=QUOTAS, **columns):
    return import_released(file, folder, str(folder / "out"), columns=columns, quotas=quotas)


def test_the_guessed_layout(folder, capsys):
    counts = run(folder)
    assert counts == {"MMStar": 1, "RealWorldQA": 1, "MathVista": 1, "MathVerse": 1, "MMMU Pro": 1}
    records = list(RecordSource(folder / "out:test"))
    assert [(record.id, record.verifier, record.answer, record.choices) for record in records] == [
        ("0", "mcq", "A", ("the square", "the circle")),
        ("1", "mcq", "B", ("red", "grey")),
        ("2", "math", "1", ()),
        ("3", "math", "8\\sqrt{2}", ()),
        ("4", "mcq", "A", ("yes", "no")),
    ]
    assert records[0].question == "Which is grey?\nA) the square\nB) the circle"
    assert records[1].question == "Which colour has the square?\nA) red\nB) grey"  # the options are shown once
    assert records[4].images == ((folder / "dot.png").read_bytes(),) * 2
    assert [record.source for record in records] == [row["source"] for row in rows()]
    said = capsys.readouterr().out
    assert f"columns of {RELEASED}: index, image, question, answer, source, choices" in said
    assert "read as id: index, image: image" in said


def test_other_columns_are_found_told_and_not_guessed(folder, capsys):
    renamed = [{("qid" if name == "index" else name): value for name, value in row.items()} for row in rows()]
    (folder / "other.json").write_text(json.dumps(renamed))
    message = "has no column 'index'; found qid, image, question, answer, source, choices. Say .*--column=id=NAME"
    with pytest.raises(InputError, match=message):
        run(folder, folder / "other.json")
    assert "columns of" in capsys.readouterr().out
    assert not (folder / "out").exists()
    run(folder, folder / "other.json", id="qid")
    assert len(RecordSource(folder / "out:test")) == 5


def test_a_table_with_its_pictures(folder):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "blue").save(buffer, "PNG")
    fields = [row | {"index": str(row["index"]), "choices": row.get("choices") or []} for row in rows()[:4]]
    fields = [row | {"image": {"bytes": buffer.getvalue(), "path": "1.png"}} for row in fields]
    parquet.write_table(pyarrow.Table.from_pylist(fields), folder / "test.parquet")
    run(folder, folder / "test.parquet", quotas={name: 1 for name in QUOTAS if name != "MMMU-Pro"})
    assert [record.images for record in RecordSource(folder / "out:test")] == [(buffer.getvalue(),)] * 4


def test_the_counts_must_be_those_of_the_quotas(folder):
    with pytest.raises(InputError, match=r"found MMStar 1, MathVista 1.*; expected MMStar 2, MathVista 1"):
        run(folder, quotas=QUOTAS | {"MMStar": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "C"}, "not_an_option|does not name"),
        ({"answer": ""}, "answer must be a text that is not blank"),
        ({"question": None}, "question must be a text that is not blank, found None"),
        ({"image": "none.png"}, "picture 'none.png': no such file"),
        ({"image": "../dot.png"}, "leaves its folder"),
        ({"image": None}, "image must be a file's name or a picture, found None"),
        ({"choices": "red, grey"}, "choices must be a list of texts, found 'red, grey'"),
        ({"choices": ["red", " "]}, "a choice must be a text that is not blank"),
        ({"question": "<image> <image> Same?"}, "question has 2 <image> marks for 1 pictures"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(folder, change, message):
    changed = rows()
    changed[1] |= change
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    with pytest.raises(InputError, match=rf"1 bad rows, nothing was written\nbad.jsonl:2: .*({message})"):
        run(folder, folder / "bad.jsonl")
    assert not (folder / "out").exists()


def test_an_unknown_field_is_refused(folder):
    with pytest.raises(InputError, match=re.escape(f"'picture' is none of {', '.join(COLUMNS)}")):
        run(folder, picture="image")
