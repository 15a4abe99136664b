"""The cache of answers, on disk and in a bucket: keys, whole entries, damage."""

import dataclasses
import json

import pytest

from data_prep.answers.cache import Cache, cache_key
from data_prep.answers.model import Answer, Request

pytestmark = pytest.mark.quick

REQUEST = Request("How many?", b"picture", "You are kind.", 100, 0.5, 1)
ANSWER = Answer("Three — drei", 10, 5, cost=0.25, truncated=True, model="served")
FROM_CACHE = dataclasses.replace(ANSWER, cost=0.0, cached=True)
KEY = cache_key("m", REQUEST)


class Disk:
    """What a test sees of a folder, as `Bucket` of a bucket."""

    def __init__(self, folder):
        self.folder = folder

    def address(self, name):
        return str(self.folder / name)

    def write(self, name, content):
        (self.folder / name).write_bytes(content)

    def files(self, name):
        folder = self.folder / name
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    return Disk(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")


def test_key_is_stable():
    assert KEY == "178a4ab7d741bf631face244fa8d75fe45d6611c9ea67313046c85b2fcca928f"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "How many"},
        {"image": b"other"},
        {"image": None},
        {"system": ""},
        {"max_tokens": 101},
        {"temperature": 0.0},
        {"attempt": 0},
    ],
)
def test_everything_that_an_answer_depends_on_is_in_the_key(change):
    assert cache_key("m", dataclasses.replace(REQUEST, **change)) != KEY


def test_another_model_has_another_key():
    assert cache_key("n", REQUEST) != KEY


def test_a_whole_temperature_is_the_same_as_a_float():
    assert cache_key("m", Request("x", temperature=1)) == cache_key("m", Request("x", temperature=1.0))


def test_an_answer_comes_back_as_one_from_the_cache(place):
    Cache(place.address("cache")).store(KEY, ANSWER)
    other = cache_key("n", REQUEST)
    assert Cache(place.address("cache")).find([other, KEY]) == {KEY: FROM_CACHE}


def test_an_entry_is_the_answer_and_nothing_else(place):
    cache = Cache(place.address("cache"))
    cache.store(KEY, ANSWER)
    cache.store(KEY, dataclasses.replace(ANSWER))
    ((name, content),) = place.files("cache").items()
    assert name == f"{KEY[:2]}/{KEY}.json"
    assert json.loads(content) == {
        "text": ANSWER.text,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost": 0.25,
        "truncated": True,
        "model": "served",
    }


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"text": "Th', b"[]", b"null", b"\xff", b'{"text": 3, "prompt_tokens": 1, "completion_tokens": 1,'
     b' "truncated": false, "model": ""}', b"[" * 5000],
)  # fmt: skip
def test_damage_counts_as_absent_and_is_mended(place, damage):
    cache = Cache(place.address("cache"))
    cache.store(KEY, ANSWER)
    place.write(f"cache/{KEY[:2]}/{KEY}.json", damage)
    assert cache.find([KEY]) == {}
    cache.store(KEY, ANSWER)
    assert cache.find([KEY]) == {KEY: FROM_CACHE}
    assert len(place.files("cache")) == 1


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    cache = Cache(str(tmp_path / "cache"))

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        cache.store(KEY, ANSWER)
    assert Disk(tmp_path).files("cache") == {}
