"""Publishers' files read record by record, and what hostile records and files of another form cost."""

import json
import shutil

import hypothesis
import pyarrow
import pytest
import source_fixtures
from hypothesis import strategies as st
from pyarrow import parquet

from data_prep.drafts import Draft, SetAside, to_line
from data_prep.sources import entries
from data_prep.sources.entries import read_json, read_tables
from data_prep.sources.readers import read_source
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick

# Where a source's questions stand, and the key of their list.
FILES = {
    "synthesis": ("Synthesis/synthesis.jsonl", ""),
    "arxivqa": ("arxivqa.jsonl", ""),
    "docvqa": ("spdocvqa_qas/train_v1.0_withQT.json", "data"),
    "vizwiz": ("Annotations/train.json", ""),
    "allava_laion": ("allava_laion/ALLaVA-Instruct-LAION-4V.json", ""),
    "coco": ("train.jsonl", ""),
    "vg": ("train.jsonl", ""),
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.text(max_size=3)
JSON = (
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=2), max_size=2)
)
OBJECTS = st.lists(st.dictionaries(KEYS, JSON, max_size=3), max_size=4)
SHARED_FOLDER = hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)


@pytest.fixture
def small_pieces(monkeypatch):
    """So that values end in other pieces than they begin in."""
    monkeypatch.setattr(entries, "_CHUNK", 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return source_fixtures.write_all(tmp_path_factory.mktemp("sources"))


def records(folder, source):
    name, key = FILES[source]
    content = (folder / name).read_text()
    if name.endswith(".jsonl"):
        return list(map(json.loads, content.splitlines()))
    return json.loads(content)[key] if key else json.loads(content)


def rewritten(folders, source, changed, target):
    """A source's folder with other records."""
    if not target.exists():
        shutil.copytree(folders[source], target)
    name, key = FILES[source]
    if name.endswith(".jsonl"):
        content = "".join(json.dumps(record) + "\n" for record in changed)
    else:
        content = json.dumps({key: changed} if key else changed)
    (target / name).write_text(content)
    return target


@SHARED_FOLDER
@hypothesis.given(values=OBJECTS, key=st.sampled_from(["", "data"]), indent=st.sampled_from([None, 1]))
def test_an_array_is_read_as_the_json_module_reads_it(tmp_path, small_pieces, values, key, indent):
    content = json.dumps({"version": [1.5, {}], key: values, "end": 1} if key else values, indent=indent)
    path = tmp_path / "array.json"
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert repr([entry.fields for entry in read_json(path, key)]) == repr(json.loads(content)[key] if key else values)
    assert [entry.place for entry in read_json(path, key)] == [f"array.json:{key}[{n}]" for n in range(len(values))]


def test_a_number_may_end_in_another_piece(tmp_path, small_pieces):
    """Whatever stands before it."""
    path = tmp_path / "array.json"
    for length in range(1, 30):
        path.write_text(json.dumps({"v" * length: 123456, "data": [{"a": 1}]}))
        assert [entry.fields for entry in read_json(path, "data")] == [{"a": 1}]


@SHARED_FOLDER
@hypothesis.given(values=OBJECTS)
def test_lines_are_read_whatever_the_name(tmp_path, values):
    path = tmp_path / "lines.json"
    path.write_text("\n\n".join(map(json.dumps, values)))
    assert repr([entry.fields for entry in read_json(path)]) == repr(values)


@SHARED_FOLDER
@hypothesis.given(
    values=OBJECTS, place=st.integers(0, 200), junk=st.binary(max_size=4), key=st.sampled_from(["", "data"])
)
def test_damaged_files_give_entries_with_a_problem_or_one_error(tmp_path, small_pieces, values, place, junk, key):
    for content in (json.dumps({key: values} if key else values), "\n".join(map(json.dumps, values))):
        damaged = content.encode()
        path = tmp_path / "damaged.json"
        path.write_bytes(damaged[:place] + junk + damaged[place + 1 :])
        try:
            assert all(isinstance(entry.fields, dict) for entry in read_json(path, key))
        except InputError as error:
            assert str(error).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ('{"questions": [], "info": {}}', "data", "no key 'data', found 'questions', 'info'"),
        ("[]", "data", "'{' expected, found '\\['"),
        ('{"data": {}}', "data", "'\\[' expected, found '{'"),
        ('[{"a": 1} {"b": 2}]', "", "',' expected, found '{'"),
        ('[{"a": 1},', "", "not JSON"),
        ('[{"a": 1', "", "not JSON"),
        ("[" + "[" * 100_000, "", "not JSON"),
        ('[{"a": "\xff"}]', "", "not UTF-8"),
    ],
)
def test_an_array_of_another_form_ends_with_what_was_expected(tmp_path, content, key, message):
    path = tmp_path / "array.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        list(read_json(path, key))


def test_bad_lines_cost_one_entry_each(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "_LONGEST", 50)
    path = tmp_path / "lines.jsonl"
    lines = ['{"a": 1}', "{", "[]", "\xff", "[" * 49, '{"a": "' + "x" * 200 + '"}', '{"a": 2}']
    path.write_bytes("\n".join(lines).encode("latin-1"))
    found = list(read_json(path))
    assert [(entry.place[-2:], entry.problem.partition(":")[0]) for entry in found] == [
        (":1", ""), (":2", "not JSON"), (":3", "not an object"), (":4", "not JSON"), (":5", "not JSON"),
        (":6", "too long"), (":7", ""),
    ]  # fmt: skip


def test_a_table_without_pictures_in_its_rows(tmp_path):
    rows = [{"id": "1", "image": None}, {"id": "2", "image": {"bytes": None, "path": "2.png"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows[1:] + rows[:1]), tmp_path / "a.parquet")
    assert [entry.problem for entry in read_tables(tmp_path, [tmp_path / "a.parquet"])] == [
        "no picture in the table's row"
    ] * 2
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-7])
    with pytest.raises(InputError, match=r"b\.parquet is damaged or no parquet file"):
        list(read_tables(tmp_path, [tmp_path / "b.parquet"]))


HOSTILE = {
    "too long": "x" * 10_000_000,
    "control characters": "How many?\0",
    "blank text": " \n",
    "wrong type": ["How many?"],
}
QUESTION = {
    "synthesis": ("instruction_2",),
    "arxivqa": ("question",),
    "docvqa": ("question",),
    "vizwiz": ("question",),
    "allava_laion": ("conversations", 0, "value"),
    "coco": ("conversations", 0, "value"),
    "vg": ("conversations", 0, "value"),
}


def put(record, path, value):
    for step in path[:-1]:
        record = record[step]
    record[path[-1]] = value


@pytest.mark.parametrize("source", FILES)
def test_a_hostile_question_costs_itself(folders, source, tmp_path):
    """Each kind in a record of its own, before the good ones."""
    good = list(read_source(source, folders[source]))
    bad = []
    for value in (*HOSTILE.values(), "\x1b[2J", "\ud800"):
        first = next(record for record in records(folders[source], source) if record.get("image", source)[:4] != "sqa/")
        record = json.loads(json.dumps(first))
        put(record, QUESTION[source], value)
        if source in ("coco", "vg"):
            record["image"] = f"{source}/1.jpg"
            record["conversations"] = record["conversations"][:2]
        bad.append(record)
    changed = rewritten(folders, source, bad + records(folders[source], source), tmp_path / source)
    results = list(read_source(source, changed))
    kinds = [entry.reason.partition(":")[0] for entry in results[: len(bad)] if isinstance(entry, SetAside)]
    assert kinds == [*HOSTILE, "control characters", "control characters"]
    drafts = [entry for entry in results if isinstance(entry, Draft)]
    assert [draft.question for draft in drafts] == [entry.question for entry in good if isinstance(entry, Draft)]
    assert all(len(entry.reason) < 500 for entry in results[: len(bad)])


@pytest.mark.parametrize(("source", "table"), [("clevr_math", "CLEVR-Math(MathV360K)"), ("geoqa170k", "geo170k(qa)")])
def test_a_hostile_row_costs_itself(source, table, tmp_path):
    rows = source_fixtures.rows(source)[:5]
    values = ["x" * 10_000_000, "How many?\0", " ", None]
    for row, value in zip(rows, values, strict=False):
        row["conversations"][0]["value"] = value
    encoded = [source_fixtures.picture(str(number), "PNG") for number in range(5)]
    source_fixtures.write_table(tmp_path / table / "train-00000-of-00001.parquet", rows, encoded)
    results = list(read_source(source, tmp_path))
    assert [entry.reason.partition(":")[0] for entry in results[:4]] == list(HOSTILE)
    assert isinstance(results[4], Draft)


@pytest.mark.parametrize(
    ("question", "solution", "reason"),
    [
        ("How long?\nChoices:\nB: 2\nA: 1", "Answer:A", "options out of order"),
        ("How long?\nChoices:\nA: 1\nC: 2", "Answer:A", "options out of order"),
        ("How long?\nChoices:\nA: 1\nor 2", "Answer:A", "options out of order"),
        ("How long? A: 1, B: 2", "Answer:A", "no options"),
        ("How long?\nChoices:\nA: 1\nB: 2", "Answer:C", "unreadable gold"),
        ("How long?\nChoices:\nA: 1\nB: 2", "It is 1, as Answer: says.", "unreadable gold"),
        ("How long?\n Choices: \n\n A: 1 \n B: 2", "(b)", ""),
    ],
)
def test_what_a_geometry_question_is_set_aside_for(tmp_path, question, solution, reason):
    conversations = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": solution}]
    row = {"id": "1", "image": "1.png", "conversations": conversations}
    source_fixtures.write_table(tmp_path / "a.parquet", [row], [source_fixtures.picture("1", "PNG")])
    (result,) = read_source("geoqa170k", tmp_path)
    assert isinstance(result, SetAside if reason else Draft)
    assert result.reason.startswith(reason) if reason else (result.gold, result.choices) == ("B", ("1", "2"))


def places(value, path=()):
    """Paths to everything inside a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@SHARED_FOLDER
@hypothesis.given(data=st.data(), source=st.sampled_from(list(FILES)), value=JSON)
def test_any_change_of_a_record_gives_drafts_and_reasons_only(folders, tmp_path, data, source, value):
    changed = records(folders[source], source)
    record = data.draw(st.sampled_from(changed))
    put(record, data.draw(st.sampled_from(list(places(record))[1:])), value)
    for result in read_source(source, rewritten(folders, source, changed, tmp_path / source)):
        assert isinstance(result, Draft | SetAside)
        assert to_line(result).encode()


def test_of_two_sides_with_pictures_the_one_with_fewer_words_asks(folders, tmp_path):
    changed = records(folders["synthesis"], "synthesis")
    changed[0]["image_url"] = "images/gen_solid-cube_3_aaaa.png"
    result = next(read_source("synthesis", rewritten(folders, "synthesis", changed, tmp_path / "s")))
    assert result.question == "What is the function's equation?"
    assert result.image == "Synthesis/images/gen_func-func_sine_20000001_aaaa.png"


def test_a_missing_field_costs_its_record(folders, tmp_path):
    changed = records(folders["arxivqa"], "arxivqa")
    del changed[0]["label"], changed[0]["options"]
    results = list(read_source("arxivqa", rewritten(folders, "arxivqa", changed, tmp_path / "a")))
    assert results[0] == SetAside(
        "arxivqa.jsonl:1", "arxivqa", "read", "missing field: options, label (arxivqa.jsonl:1)"
    )
    assert results[1].id == "arxivqa-cond-mat-16" and isinstance(results[1], Draft)


@pytest.mark.parametrize("count", [1, 99, 100, 5000])
def test_a_file_of_another_form_is_named_with_its_first_record(folders, tmp_path, count):
    """However long it is, nothing comes before."""
    changed = [{"id": str(number), "picture": "a.jpg", "question": "?"} for number in range(count)]
    results = read_source("vizwiz", rewritten(folders, "vizwiz", changed, tmp_path / "v"))
    with pytest.raises(InputError) as raised:
        next(results)
    assert str(raised.value) == (
        "source vizwiz: train.json:[0]: expected the fields image, question, answers, found id, picture, question in "
        "the first record: {'id': '0', 'picture': 'a.jpg', 'question': '?'}"
    )


def test_a_file_has_a_hundred_records_to_show_its_form(folders, tmp_path):
    good = records(folders["vizwiz"], "vizwiz")
    results = list(read_source("vizwiz", rewritten(folders, "vizwiz", [{}] * 99 + good, tmp_path / "v")))
    assert [entry.reason[:13] for entry in results[:99]] == ["missing field"] * 99
    assert isinstance(results[99], Draft) and len(results) == 99 + len(good)
    with pytest.raises(InputError, match="expected the fields image, question, answers, found none"):
        next(read_source("vizwiz", rewritten(folders, "vizwiz", [{}] * 100 + good, tmp_path / "v")))


@pytest.mark.parametrize(("source", "place", "changes", "reason"), [
    ("vizwiz", 0, {"answerable": 0}, "unanswerable"),
    ("vizwiz", 0, {"answers": [{"answer": "Unanswerable", "answer_confidence": "yes"}] * 6}, "unanswerable"),
    ("arxivqa", 0, {"options": ["A) 1", "2"]}, "options out of order"),
    ("arxivqa", 0, {"options": ["B) 1", "A) 2"]}, "options out of order"),
    ("arxivqa", 0, {"options": ["1"] * 27}, "too many options"),
    ("docvqa", 0, {"image": "../aaaa0001_1.png"}, ""),
    ("docvqa", 0, {"questionId": "a" * 201}, "unusable id"),
    ("synthesis", 0, {"instruction": "What is it?"}, "no problem in words"),
    ("coco", 0, {"question": "Is the bounding box [0.1, 0.2, 0.3, 0.4] around a dog?"}, "no box asked for"),
    ("coco", 0, {"answer": "[0.1, 0.2, 0.3, 0.4]"}, "not in stages"),
    ("coco", 0, {"answer": "{} [0.1, 0.2, 0.3, 0.4]"}, "not in stages"),
    ("coco", 0, {"conclusion": "A dog"}, "no single box"),
    ("coco", 0, {"conclusion": "[0.1, 0.3, 0.2, 0.4] or [0.2, 0.3, 0.4, 0.5]"}, "no single box"),
    ("coco", 0, {"conclusion": "[0.4, 0.3, 0.2, 0.4]"}, "unreadable gold"),
    ("coco", 0, {"conclusion": "[0.1, 0.01, 0.2, 0.4]"}, "box outside the picture"),
])  # fmt: skip
def test_what_a_record_is_set_aside_for(folders, tmp_path, source, place, changes, reason):
    changed = records(folders[source], source)
    record = changed[place]
    if source == "coco":
        turns = record["conversations"] = record["conversations"][:2]
        whole = turns[1]["value"]
        turns[0]["value"] = changes.get("question", turns[0]["value"])
        turns[1]["value"] = changes.get("answer", whole).format(whole)
        if "conclusion" in changes:
            turns[1]["value"] = (
                f"{whole.partition('<CONCLUSION>')[0]}<CONCLUSION> {changes['conclusion']} </CONCLUSION>"
            )
    else:
        record |= changes
    result = next(read_source(source, rewritten(folders, source, changed, tmp_path / source)))
    assert isinstance(result, SetAside if reason else Draft)
    assert not reason or result.reason.startswith(reason)


@pytest.mark.parametrize(("content", "message"), [("", "the files hold no record"), ("{", "arxivqa.jsonl:1: not JSON")])
def test_a_file_without_records_is_said(folders, tmp_path, content, message):
    target = rewritten(folders, "arxivqa", [], tmp_path / "a")
    (target / "arxivqa.jsonl").write_text(content)
    with pytest.raises(InputError, match=f"source arxivqa: {message}"):
        list(read_source("arxivqa", target))


def test_a_repeated_id_with_another_picture_is_set_aside(folders, tmp_path):
    changed = records(folders["docvqa"], "docvqa")
    changed[2]["questionId"] = changed[0]["questionId"]
    results = list(read_source("docvqa", rewritten(folders, "docvqa", changed, tmp_path / "d")))
    assert results[2].reason == "repeated id (train_v1.0_withQT.json:data[2])"


def test_the_picture_of_a_failed_question_is_free_for_the_next(folders, tmp_path):
    changed = records(folders["docvqa"], "docvqa")
    changed[0]["answers"] = []
    results = list(read_source("docvqa", rewritten(folders, "docvqa", changed, tmp_path / "d")))
    assert isinstance(results[0], SetAside) and isinstance(results[1], Draft)


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ([{"image_filename": "CLEVR_train_000001.png"}], "not a scene of CLEVR"),
        ([{"image_filename": "a.png", "objects": [{"size": "small"}]}], "not a scene of CLEVR"),
        (["scene"], "found not an object"),
    ],
)
def test_scenes_of_another_form_stop_the_reading(folders, tmp_path, scenes, message):
    shutil.copytree(folders["clevr_math"], tmp_path / "c")
    (tmp_path / "c" / "CLEVR_train_scenes.json").write_text(json.dumps({"scenes": scenes}))
    with pytest.raises(InputError, match=f"source clevr_math: .*{message}"):
        list(read_source("clevr_math", tmp_path / "c"))
