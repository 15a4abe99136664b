"""Shards: what is written is read again, TFDS reads it too, and damage is named."""

import io
import json
import pickle
import subprocess
import sys

import grain
import hypothesis
import pytest
from hypothesis import strategies as st
from PIL import Image

from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import RecordSource, open_split, read_splits, verify, write_records

pytestmark = pytest.mark.quick


def picture(size, colour):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


RECORDS = [
    Record(
        id="first",
        images=(picture((5, 4), "red"), picture((3, 2), "blue")),
        question="<image> or <image>: größer?\nA. 1\nB. 2",
        answer="B",
        verifier="mcq",
        choices=("1", "2"),
        trace="Step 1: 3 top",
        source="hand",
        metadata={"glyphs": [[{"value": 3}]], "ratio": 0.5, "none": None},
    ),
    Record(id="second", images=(), question="1 + 1?", answer="2", verifier="digit"),
    Record("third", (picture((1, 1), "red"),), "Box?", "[0,0,1,1]", "iou", box_space="pixels"),
]


JUDGED = [
    ProcessRecord("q1/0", (picture((5, 4), "red"),), "How many?", "Step 1: größer", 0.25),
    ProcessRecord("q1/1", (picture((5, 4), "red"),), "How many?", "Step 1: größer\nStep 2: 3", 1),
    ProcessRecord("q2/0", (), "1 + 1?", "Step 1: 3", 0),
]


def write(directory, splits=None, **options):
    write_records(directory, splits or {"train": RECORDS}, name="hand_made", version="1.2.3", **options)


def shard(directory, split="train"):
    (path,) = directory.glob(f"hand_made-{split}.array_record-*")
    return path


def test_records_come_back(tmp_path):
    write(tmp_path / "data", {"train": RECORDS, "other_split": RECORDS[:1]})
    source = RecordSource(f"{tmp_path}/data:train")
    assert len(source) == 3
    assert [source[0], source[1], source[2]] == RECORDS
    assert source[-1] == RECORDS[2]
    assert list(RecordSource(f"{tmp_path}/data:other_split")) == RECORDS[:1]
    assert RecordSource(tmp_path / "data").split == "train"
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(IndexError):
        source[-4]


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
records = st.builds(
    Record,
    id=st.uuids().map(str),
    images=st.lists(st.binary(max_size=40), max_size=3).map(tuple),
    question=texts,
    answer=texts,
    verifier=st.sampled_from(["digit", "mcq", "math", "open_ended"]),
    choices=st.lists(texts, max_size=4).map(tuple),
    trace=texts,
    source=texts,
    metadata=st.dictionaries(
        texts, st.none() | st.integers() | texts | st.lists(st.floats(allow_nan=False)), max_size=3
    ),
)


@hypothesis.given(st.lists(records, min_size=1, max_size=5, unique_by=lambda record: record.id))
@hypothesis.settings(max_examples=30, deadline=None)
def test_any_record_comes_back(tmp_path_factory, written):
    directory = tmp_path_factory.mktemp("any") / "data"
    write(directory, {"train": written}, records_per_shard=2)
    assert list(RecordSource(directory)) == written


judged = st.builds(
    ProcessRecord,
    id=st.uuids().map(str),
    images=st.lists(st.binary(max_size=40), max_size=3).map(tuple),
    question=texts,
    process=texts,
    value=st.floats(0, 1, width=32),
)


@hypothesis.given(st.lists(judged, min_size=1, max_size=5, unique_by=lambda record: record.id))
@hypothesis.settings(max_examples=30, deadline=None)
def test_any_process_record_comes_back(tmp_path_factory, written):
    directory = tmp_path_factory.mktemp("any") / "data"
    write(directory, {"train": written}, kind=ProcessRecord, records_per_shard=2)
    assert list(RecordSource(directory, ProcessRecord)) == written


def test_process_records(tmp_path):
    write(tmp_path / "data", {"train": JUDGED, "test": JUDGED[:1]}, kind=ProcessRecord)
    source = RecordSource(tmp_path / "data", ProcessRecord)
    assert list(source) == JUDGED
    assert pickle.loads(pickle.dumps(source))[1] == JUDGED[1]
    assert read_splits(tmp_path / "data") == {"test": [1], "train": [3]}
    assert list(open_split(f"{tmp_path}/data:test")) == JUDGED[:1]
    write(tmp_path / "examples")
    assert list(open_split(tmp_path / "examples")) == RECORDS
    refused(lambda: RecordSource(tmp_path / "data")[0], "a record with the fields id, images, process", "Record has")
    refused(lambda: RecordSource(tmp_path / "examples", ProcessRecord)[0], "where a ProcessRecord has id, images")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_value_out_of_range_is_refused(tmp_path, value):
    bad = ProcessRecord("q1/7", (), "?", "Step 1", value)
    refused(lambda: write(tmp_path / "data", {"train": [bad]}, kind=ProcessRecord), "record q1/7", "between 0 and 1")
    assert list(tmp_path.iterdir()) == []


def test_tfds_reads_process_records(tmp_path):
    write(tmp_path / "data", {"train": JUDGED}, kind=ProcessRecord)
    script = """
import json, sys, tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
rows = [
    [row["id"].decode(), [image.hex() for image in row["images"]], row["question"].decode(), row["process"].decode(),
     float(row["value"])]
    for row in builder.as_data_source("train")
]
print(json.dumps([rows, builder.info.splits["train"].num_examples, sorted(builder.info.features)]))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "data")]
    rows, count, features = json.loads(subprocess.check_output(command))
    assert rows == [[r.id, [i.hex() for i in r.images], r.question, r.process, r.value] for r in JUDGED]
    assert (count, features) == (3, ["id", "images", "process", "question", "value"])


def test_tfds_reads_the_same_without_tensorflow(tmp_path):
    """In a process of its own: other tests may have loaded TensorFlow."""
    write(tmp_path / "data", {"train": RECORDS, "test": RECORDS[1:]}, records_per_shard=2)
    script = """
import json, sys, tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
rows = []
for split in ("train", "test"):
    for row in builder.as_data_source(split):
        as_text = {k: v.decode() for k, v in row.items() if isinstance(v, bytes)}
        rows.append([split, as_text, [c.decode() for c in row["choices"]], [i.hex() for i in row["images"]]])
sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
print(json.dumps([rows, sizes, builder.info.full_name, "tensorflow" in sys.modules]))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "data")]
    rows, sizes, name, tensorflow_loaded = json.loads(subprocess.check_output(command))
    assert (sizes, name, tensorflow_loaded) == ({"train": 3, "test": 2}, "hand_made/1.2.3", False)
    for (split, text, choices, images), record in zip(rows, RECORDS + RECORDS[1:], strict=True):
        assert split in ("train", "test")
        assert json.loads(text.pop("metadata")) == record.metadata
        assert text == {name: getattr(record, name) for name in text}
        assert set(text) == {"id", "question", "answer", "verifier", "box_space", "trace", "source"}
        assert tuple(choices) == record.choices
        assert tuple(bytes.fromhex(image) for image in images) == record.images


def test_reading_needs_no_tensorflow(tmp_path):
    write(tmp_path / "data")
    script = "import sys\nfrom vlaa_jax.processing.shards import RecordSource\n"
    script += "print(RecordSource(sys.argv[1])[0].id, 'tensorflow' in sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", script, str(tmp_path / "data")], text=True)
    assert output == "first False\n"


def test_reading_imports_nothing(tmp_path):
    """Many threads read; TFDS imports parts of itself when they are used, and two threads there wait for each other."""
    write(tmp_path / "data")
    code = f"""
import sys
from vlaa_jax.processing.shards import RecordSource

source = RecordSource({str(tmp_path / "data")!r})
before = set(sys.modules)
source[0]
imported = set(sys.modules) - before
assert not imported, min(imported)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_builds_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, {"train": RECORDS, "test": iter(RECORDS)})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [
        "dataset_info.json",
        "features.json",
        "hand_made-test.array_record-00000-of-00001",
        "hand_made-train.array_record-00000-of-00001",
        "manifest.json",
    ]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_fingerprint_follows_the_records_of_its_split(tmp_path):
    write(tmp_path / "a", {"train": RECORDS, "test": RECORDS[:2]})
    write(tmp_path / "b", {"train": RECORDS[:2], "test": RECORDS[:2]})
    fingerprints = {key: RecordSource(f"{tmp_path}/{key[0]}:{key[1:]}").fingerprint for key in ("atrain", "btrain")}
    assert fingerprints["atrain"] != fingerprints["btrain"]
    test_a, test_b = (RecordSource(f"{tmp_path}/{name}:test").fingerprint for name in "ab")
    assert test_a == test_b


def test_pickled_source_reads_on_and_grain_takes_it(tmp_path):
    write(tmp_path / "data", records_per_shard=1)
    source = RecordSource(tmp_path / "data")
    again = pickle.loads(pickle.dumps(source))
    assert again[2] == RECORDS[2]
    assert again.fingerprint == source.fingerprint
    loaded = grain.MapDataset.source(source).shuffle(seed=1).to_iter_dataset()
    assert sorted(record.id for record in loaded) == ["first", "second", "third"]


def test_location_with_colons(tmp_path):
    directory = tmp_path / "a:b"
    write(directory / "c")
    assert RecordSource(str(directory / "c")).split == "train"
    assert RecordSource(f"{directory}/c:train").directory == directory / "c"


def test_a_data_set_in_a_bucket(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "local")
    address = bucket.put_folder(tmp_path / "local", "data/set")
    local = RecordSource(tmp_path / "local")
    for location in (address, f"{address}:train", f"{address}/:train"):
        source = RecordSource(location)
        assert (source.location, source.split, source.fingerprint) == (location, "train", local.fingerprint)
        assert [source[i] for i in range(len(source))] == [local[i] for i in range(len(local))]
    assert pickle.loads(pickle.dumps(source))[0] == local[0]


def refused(call, *words):
    with pytest.raises(InputError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_damage_is_named(tmp_path):
    def fresh(name):
        write(tmp_path / name)
        return tmp_path / name

    path = shard(fresh("truncated"))
    path.write_bytes(path.read_bytes()[:-1000])
    refused(lambda: RecordSource(tmp_path / "truncated"), str(path), "bytes where manifest.json says")

    path = shard(fresh("missing"))
    path.unlink()
    refused(lambda: RecordSource(tmp_path / "missing"), str(path), "missing")
    refused(lambda: verify(tmp_path / "missing"), str(path), "missing")

    # The right number of bytes, but no ArrayRecord: the reader itself would say that there are no records.
    path = shard(fresh("zeroed"))
    path.write_bytes(bytes(path.stat().st_size))
    refused(lambda: RecordSource(tmp_path / "zeroed"), str(path), "records where manifest.json says 3")

    path = shard(fresh("flipped"))
    content = bytearray(path.read_bytes())
    content[100] ^= 255  # inside the first record
    path.write_bytes(content)
    refused(lambda: verify(tmp_path / "flipped"), str(path), "sha256")
    refused(lambda: list(RecordSource(tmp_path / "flipped")), str(path), "record 0", "damaged")

    verify(fresh("sound"))


def test_absent_things_are_named(tmp_path):
    refused(lambda: RecordSource(tmp_path / "nowhere"), "nowhere/manifest.json", "no such file")
    write(tmp_path / "data", {"train": RECORDS, "test": RECORDS})
    refused(lambda: RecordSource(f"{tmp_path}/data:dev"), "'dev'", "test, train")
    (tmp_path / "data" / "manifest.json").write_text("[]")
    refused(lambda: RecordSource(tmp_path / "data"), "manifest.json", "not a manifest")


def test_wrong_records_leave_nothing_behind(tmp_path):
    def attempt(*records):
        return lambda: write(tmp_path / "data", {"train": RECORDS[:1], "test": records})

    refused(attempt(RECORDS[0], RECORDS[0]), "'first'", "twice")
    refused(attempt(Record("x", (), "?", "1", "number")), "record x", "'number'", "digit")
    refused(attempt(Record("x", (), "?", "[0,0,1,1]", "iou")), "record x", "box_space", "pixels")
    refused(attempt(Record("x", (), "?", "1", "iou", box_space="cm")), "record x", "'cm'")
    refused(attempt(), "test", "no records")
    refused(lambda: write_records(tmp_path / "data", {}, name="n", version="1.0.0"), "no split")
    assert list(tmp_path.iterdir()) == []

    write(tmp_path / "data")
    refused(lambda: write(tmp_path / "data"), str(tmp_path / "data"), "exists already")
    assert len(RecordSource(tmp_path / "data")) == 3
