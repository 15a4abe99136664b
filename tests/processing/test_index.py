"""The index: what it records, when it is built anew, what it may not hide."""

import concurrent.futures
import dataclasses
import json
import shutil
import threading
import time

import numpy as np
import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.processing.conversation import completion_text, load_prompt
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.processing.index import build_index, count_by_verifier, usable
from vlaa_jax.processing.records import VERIFIERS, Record
from vlaa_jax.processing.shards import RecordSource, write_records
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.processing.vision_plan import WindowGeometry

pytestmark = pytest.mark.quick


class Source:
    """Records in memory; counts its reads."""

    def __init__(self, records, fingerprint="one"):
        self.records = records
        self.fingerprint = fingerprint
        self.reads = 0

    def __len__(self):
        return len(self.records)

    def __getitem__(self, position):
        self.reads += 1
        return self.records[position]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def records(png):
    return [
        Record("a", (png(84, 56),), "How many 3s?", "2", "digit", trace="Step 1: 3 top"),
        Record("b", (png(56, 56), png(112, 112)), "<image> or <image>?", "B", "mcq", ("1", "2")),
        Record("c", (), "1 + 1?", "2", "math"),
        Record("d", (png(56, 112),), "Where?", "[0, 0, 1, 1]", "iou", box_space="normalised"),
        Record("e", (png(60, 60),), "Describe it.", "Three.", "open_ended"),
        Record("f", (), "2 + 2?", "4", "digit"),
    ]


def fine(record):
    """A check that every gold passes."""


def same(first, second):
    return all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))


def test_sizes_are_those_of_the_encoded_records(encoder, records):
    index = build_index(Source(records), encoder, fine)
    assert len(index) == 6
    for place, record in enumerate(records):
        encoded = encoder.encode(record)
        completion = encoder.completion(completion_text(record.trace, record.answer))
        assert index.prompt[place] == len(encoded.tokens)
        assert index.windows[place] == len(encoded.vision.frames)
        assert index.completion[place] == len(completion)
        assert VERIFIERS[index.verifier[place]] == record.verifier
    assert index.windows.tolist() == [2, 5, 0, 2, 1, 0]
    assert index.ids.tolist() == ["a", "b", "c", "d", "e", "f"]
    assert index.good.tolist() == [0, 1, 2, 3, 4, 5] and index.report() == ""
    assert count_by_verifier(index) == {"digit": 2, "mcq": 1, "math": 1, "iou": 1, "open_ended": 1}


def test_the_second_load_reads_no_record(encoder, records, cache):
    built = build_index(Source(records), encoder, fine)
    again = Source(records)
    assert same(build_index(again, encoder, fine), built)
    assert again.reads == 0
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


def test_the_cache_is_keyed_by_all_that_sizes_depend_on(encoder, checkpoint, records, cache, tmp_path):
    def make(*, tokenizer=encoder.tokenizer, images=encoder.images, prompt=encoder.prompt, side=2, token=0):
        geometry = WindowGeometry(2, side)
        return Encoder(tokenizer, images, prompt, geometry, image_token=token or encoder.image_token)

    reworded = shutil.copytree(checkpoint, tmp_path / "reworded")
    template = (reworded / "chat_template.jinja").read_text()
    (reworded / "chat_template.jinja").write_text(template.replace("<|im_start|>assistant", "<|im_start|>helper"))
    retrained = shutil.copytree(checkpoint, tmp_path / "retrained")
    content = json.loads((retrained / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (retrained / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "system.txt").write_text("Answer.")
    ways = [
        (Source(records), make()),
        (Source(records[:5], "two"), make()),
        (Source(records), make(tokenizer=Tokenizer(reworded))),
        (Source(records), make(tokenizer=Tokenizer(retrained))),
        (Source(records), make(images=ImageProcessor(checkpoint, max_pixels=112 * 112))),
        (Source(records), make(images=ImageProcessor(checkpoint, min_pixels=28 * 28))),
        (Source(records), make(prompt=load_prompt(str(tmp_path / "system.txt")))),
        (Source(records), make(prompt=load_prompt(instructions={"iou": "A box."}))),
        (Source(records), make(side=1)),
        (Source(records), make(token=encoder.image_token + 1)),
    ]
    for count, (source, changed) in enumerate(ways, start=1):
        build_index(source, changed, fine)
        assert source.reads == len(source)
        assert len(list(cache.iterdir())) == count
    for source, changed in ways:
        build_index(source, changed, fine)
        assert source.reads == len(source)


def test_the_key_follows_the_shards(encoder, records, tmp_path, cache):
    for name, content in (("one", records), ("copy", records), ("other", [*records[:5], records[0]])):
        content = [dataclasses.replace(record, id=f"r{place}") for place, record in enumerate(content)]
        write_records(tmp_path / name, {"train": content}, name="shards", version="1.0.0")
    first = build_index(RecordSource(tmp_path / "one"), encoder, fine)
    assert same(build_index(RecordSource(tmp_path / "copy"), encoder, fine), first)
    assert len(list(cache.iterdir())) == 1
    assert not same(build_index(RecordSource(tmp_path / "other"), encoder, fine), first)
    assert len(list(cache.iterdir())) == 2


def test_problems_are_recorded_by_id(encoder, records, png):
    def check(record):
        if record.answer == "?":
            raise InputError(f"record {record.id!r}: the gold '?' is no number")

    a = records[0]
    bad = [
        dataclasses.replace(a, id="cut", images=(png(56, 56)[:2000],)),
        dataclasses.replace(a, id="strip", images=(png(402, 2),)),
        dataclasses.replace(a, id="gold", answer="?"),
        dataclasses.replace(a, id="kind", verifier="number"),
        dataclasses.replace(a, id="marks", question="<image><image>"),
        dataclasses.replace(a, id="injected", question="<|image_pad|>"),
        dataclasses.replace(a, id="trace", trace="so<|im_end|>"),
    ]
    index = build_index(Source([a, *bad, records[5]]), encoder, check)
    assert index.good.tolist() == [0, 8]
    reasons = dict(zip(index.ids.tolist(), index.problems.tolist(), strict=True))
    assert reasons["cut"].startswith("undecodable image: ")
    assert reasons["strip"].startswith("image of 402x2 pixels: absolute aspect ratio")
    assert reasons["gold"] == "the gold '?' is no number"
    assert reasons["kind"] == "verifier 'number' is none of digit, mcq, math, iou, open_ended"
    assert reasons["marks"] == "the question has 2 <image> marks for 1 images"
    assert reasons["injected"] == "its text holds 2 image placeholders for 1 images"
    assert reasons["trace"].startswith("a completion's text holds the special token")
    assert index.verifier.tolist() == [0, 0, 0, 0, -1, 0, 0, 0, 0]
    assert count_by_verifier(index) == {"digit": 2}
    report = index.report(2)
    assert report.startswith("7 of 9 records cannot be used (cut: undecodable image: ")
    assert "; strip: image of 402x2 pixels" in report and report.endswith("; ...)") and "gold" not in report


def test_problems_come_from_the_cache_too(encoder, records):
    def check(record):
        raise InputError(f"record {record.id}: {'no good ' * 100}")

    built = build_index(Source(records), encoder, check)
    assert {len(problem) for problem in built.problems.tolist()} == {300}  # one long message widens the whole array
    loaded = build_index(Source(records), encoder, fine)
    assert same(loaded, built) and not len(loaded.good)


def test_a_crash_is_no_bad_record(encoder, records, cache):
    def crash(record):
        if record.id == "c":
            raise RuntimeError("a mistake in the code")

    with pytest.raises(RuntimeError, match="a mistake in the code"):
        build_index(Source(records), encoder, crash)
    assert not list(cache.iterdir())

    class Damaged(Source):
        def __getitem__(self, position):
            raise InputError("shard-0: record 3 cannot be read, the file is damaged")

    with pytest.raises(InputError, match="the file is damaged"):
        build_index(Damaged(records), encoder, fine)
    assert not list(cache.iterdir())
    assert len(build_index(Source(records), encoder, fine).good) == 6


def other_arrays(path):
    with np.load(path) as stored:
        return dict(stored)


def without_a_column(path):
    columns = other_arrays(path)
    del columns["windows"]
    np.savez(path, **columns)


def with_fewer_rows(path):
    np.savez(path, **{name: column[:-1] for name, column in other_arrays(path).items()})


def with_a_flipped_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


DAMAGES = [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"no archive"),
    lambda path: path.write_bytes(path.read_bytes()[:-100]),
    with_a_flipped_byte,
    without_a_column,
    with_fewer_rows,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_built_anew(encoder, records, cache, damage):
    built = build_index(Source(records), encoder, fine)
    (path,) = cache.iterdir()
    damage(path)
    source = Source(records)
    assert same(build_index(source, encoder, fine), built) and source.reads == 6
    assert same(build_index(source, encoder, fine), built) and source.reads == 6


def test_two_builders_at_once_leave_one_whole_file(encoder, records, cache):
    together = threading.Barrier(2, timeout=60)

    class Slow(Source):
        def __getitem__(self, position):
            if position == 0:
                together.wait()  # both have found no cached file
            return super().__getitem__(position)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        builds = [pool.submit(build_index, Slow(records), encoder, fine) for _ in range(2)]
        first, second = (build.result() for build in builds)
    assert same(first, second)
    assert len(list(cache.iterdir())) == 1
    again = Source(records)
    assert same(build_index(again, encoder, fine), first) and again.reads == 0


def test_rows_stand_in_the_order_of_the_records(encoder, records):
    class Uneven(Source):
        def __getitem__(self, position):
            time.sleep(0.03 if position % 3 == 0 else 0)
            return dataclasses.replace(self.records[position % 6], id=f"r{position}")

        def __len__(self):
            return 30

    index = build_index(Uneven(records), encoder, fine)
    assert index.ids.tolist() == [f"r{position}" for position in range(30)]
    assert index.windows.tolist() == [2, 5, 0, 2, 1, 0] * 5


def test_too_long_is_skipped_with_a_reason_and_nothing_is_cut(encoder, records):
    index = build_index(Source(records), encoder, fine)
    largest = int(index.prompt[0])
    fitting = usable(index, index.prompt <= largest, f"its prompt is longer than {largest} tokens")
    skipped = set(range(6)) - set(fitting.good.tolist())
    assert skipped == set(np.flatnonzero(index.prompt > largest).tolist()) and {1} <= skipped < set(range(6))
    assert f"b: its prompt is longer than {largest} tokens" in fitting.report()
    np.testing.assert_array_equal(fitting.prompt, index.prompt)
    # The first reason stays; the index that was given is not changed.
    narrower = usable(fitting, index.windows <= 1, "too many windows")
    assert f"b: its prompt is longer than {largest} tokens" in narrower.report()
    assert "a: too many windows" in narrower.report()
    assert len(index.good) == 6
