"""Reading entries: JSON Lines and arrays, damage, and which of the released files it is."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from data_prep.released import reading
from data_prep.released.reading import Entry, entries, recognise
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick

OBJECTS = [{"image": "a.png", "question": "größer?"}, {"n": 1.5, "deep": {"list": [1, "]", "}", ","]}}, {}]


def write(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


LINES = "\n".join(map(json.dumps, OBJECTS))
SAME = [
    LINES,
    LINES + "\n",
    "\ufeff" + LINES,
    "\n \n" + LINES.replace("\n", "\r\n\r\n"),
    json.dumps(OBJECTS),
    json.dumps(OBJECTS, ensure_ascii=False, indent=2) + "\n",
    " \n[" + ",\n".join(map(json.dumps, OBJECTS)) + "\n]\n",
    "\ufeff" + json.dumps(OBJECTS),
]


@pytest.mark.parametrize("content", SAME)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_lines_and_arrays_give_the_same(tmp_path, monkeypatch, content, chunk):
    monkeypatch.setattr(reading, "_CHUNK", chunk)
    found = list(entries(write(tmp_path, content)))
    assert [entry.fields for entry in found] == OBJECTS
    assert not any(entry.problem for entry in found)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@hypothesis.given(st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=4), st.integers(1, 40))
@hypothesis.settings(max_examples=30, deadline=None)
def test_any_objects_come_back(tmp_path_factory, objects, chunk):
    folder = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_CHUNK", chunk)
        for content in (json.dumps(objects), "\n".join(json.dumps(o, ensure_ascii=False) for o in objects)):
            assert [entry.fields for entry in entries(write(folder, content.encode(errors="surrogatepass")))] == objects


DAMAGED = [
    (b'{"a": 1', "not JSON"),
    (b'{"a": "\xff"}', "not JSON"),
    (b"[" * 50_000, "not JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    (b'["list"]', "expected a JSON object, found list"),
    (b"null", "expected a JSON object, found NoneType"),
    (b'{"a": "' + b"x" * 200_000 + b'"}', "longer than 100000 bytes"),
]


def test_a_damaged_line_costs_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_ENTRY", 100_000)
    monkeypatch.setattr(reading, "_CHUNK", 1000)
    content = b'{"first": 1}\n' + b"".join(line + b"\n" for line, _ in DAMAGED) + b'{"last": 1}'
    first, *damaged, last = entries(write(tmp_path, content))
    assert (first, last) == (Entry(1, {"first": 1}), Entry(len(DAMAGED) + 2, {"last": 1}))
    for number, (entry, (_, words)) in enumerate(zip(damaged, DAMAGED, strict=True), 2):
        assert (entry.number, entry.fields) == (number, {}) and words in entry.problem


def test_a_damaged_array_ends_the_reading(tmp_path):
    path = write(tmp_path, '[{"a": 1}, {"b": }, {"c": 3}]')
    found = entries(path)
    assert next(found).fields == {"a": 1}
    with pytest.raises(InputError, match=r"file.json: element 2 of the array is damaged"):
        next(found)
    with pytest.raises(InputError, match="element 2"):  # cut in the middle
        list(entries(write(tmp_path, '[{"a": 1}, {"b": 2')))
    assert [entry.problem for entry in entries(write(tmp_path, "[1, {}]"))] == [
        "expected a JSON object, found int",
        "",
    ]


def test_kinds_are_recognised_by_their_columns(tmp_path):
    def kind(*objects):
        return recognise(write(tmp_path, "\n".join(map(json.dumps, objects))))

    assert kind({"image": 1, "question": 1, "answer": 1}) == "sft"
    assert kind({"image": 1, "question": 1, "answer": 1, "gt": 1}) == "sft"
    assert kind({"id": 1, "image": 1, "question": 1, "gt": 1, "verifier_type": 1, "caption": 1, "meta": 1}) == "rl"
    assert kind({"id": 1, "image": 1, "question": 1}, {"gt": 1}) == "rl"  # `gt` may be missing here and there
    assert kind({"index": 1, "image_path": 1, "question": 1, "process": 1, "value": 1}) == "reward"
    with pytest.raises(InputError, match=r"file.json: expected the columns .* found picture, question$"):
        kind({"picture": 1, "question": 1})
    with pytest.raises(InputError, match="found no entry"):
        kind()
