"""The record: one question with its images, gold answer and verifier, as every shard stores it.

A data set is a directory of ArrayRecord shards as TensorFlow Datasets (TFDS) 4.9 writes them: one `tf.train.Example` a
record, `features.json` and `dataset_info.json` beside the shards, so `tfds.builder_from_directory` reads it. TensorFlow
is needed neither to write nor to read. `manifest.json` adds what TFDS lacks: the number of records, the bytes and the
sha256 of every shard, because ArrayRecord opens a truncated file as an empty one.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Container, Iterable, Iterator
from typing import Any, SupportsIndex

import numpy as np

from vlaa_jax import storage
from vlaa_jax.errors import InputError

VERIFIERS = ("digit", "mcq", "math", "iou", "open_ended")
BOX_SPACES = ("", "normalised", "pixels", "thousand")

MANIFEST = "manifest.json"

_LISTS = ("images", "choices")


@dataclasses.dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
      id: unique name inside its split.
      images: encoded image files (PNG, JPEG, ...), in the order in which the question shows them.
      question: text; `<image>` marks where each image stands, none means all images first.
      answer: the gold answer, read by `verifier`.
      verifier: one of `VERIFIERS`.
      choices: texts of the options of a multiple-choice question, in letter order.
      box_space: coordinate space of gold and predicted boxes, one of `BOX_SPACES`. `pixels`: the gold is in pixels of
        the stored image, the prediction in pixels of the resized image that the policy sees (what Qwen2.5-VL emits).
      trace: a reference completion's reasoning (text between the think tags), may be empty.
      source: name of the data set it came from.
      metadata: anything else, JSON-serialisable.
    """

    id: str
    images: tuple[bytes, ...]
    question: str
    answer: str
    verifier: str
    choices: tuple[str, ...] = ()
    box_space: str = ""
    trace: str = ""
    source: str = ""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def check_record(record: Record) -> None:
    """Raises `InputError` if a field of `record` lies outside its list of values."""
    if record.verifier not in VERIFIERS:
        raise InputError(f"record {record.id}: verifier {record.verifier!r} is none of {', '.join(VERIFIERS)}")
    if record.box_space not in BOX_SPACES:
        raise InputError(
            f"record {record.id}: box_space {record.box_space!r} is none of {', '.join(map(repr, BOX_SPACES))}"
        )
    if record.verifier == "iou" and not record.box_space:
        raise InputError(f"record {record.id}: verifier iou needs a box_space, one of {', '.join(BOX_SPACES[1:])}")


def write_records(
    directory: str | os.PathLike[str],
    splits: dict[str, Iterable[Record]],
    *,
    name: str,
    version: str,
    description: str = "",
    records_per_shard: int = 4096,
) -> None:
    """Writes splits as a TFDS data set; the directory appears when all is written, or not at all.

    The same records give the same bytes.

    Args:
      directory: made by this call; must not exist yet.
      splits: records of each split, consumed one by one.
      name: name of the data set, snake case: the shards are `name-split.array_record-00000-of-00003`.
      version: `major.minor.patch`.
      description: one sentence for `dataset_info.json`.
      records_per_shard: most records of one shard.

    Raises:
      InputError: the directory exists, a split has no record, an id occurs twice, or a field has a wrong value.
    """
    import tensorflow_datasets as tfds

    directory = pathlib.Path(directory)
    if not splits:
        raise InputError(f"{directory}: no split to write")
    with _appearing(directory) as folder:
        shards, infos = {}, []
        for split, records in splits.items():
            template = tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
            )
            written = _write_split(folder, template, split, records, records_per_shard)
            shards.update(written)
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[entry["records"] for entry in written.values()],
                    num_bytes=sum(entry["bytes"] for entry in written.values()),
                    filename_template=template,
                )
            )
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=_features(),
            split_infos=infos,
            version=version,
            description=description,
            check_data=False,
        )
        manifest = {"name": name, "version": version, "shards": shards}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def _appearing(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes `directory` when the block ends without an error."""
    if directory.exists():
        raise InputError(f"{directory} exists already: name a new directory, or remove it first")
    directory.parent.mkdir(parents=True, exist_ok=True)
    folder = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
        folder.rename(directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _features() -> Any:
    """The TFDS features of a record. `Sequence(Image)` cannot skip decoding, hence plain bytes for the images."""
    from tensorflow_datasets import features

    text = {field.name: features.Text() for field in dataclasses.fields(Record) if field.name not in _LISTS}
    images = features.Sequence(features.Tensor(shape=(), dtype=np.object_))
    return features.FeaturesDict({**text, "images": images, "choices": features.Sequence(features.Text())})


def _write_split(
    folder: pathlib.Path, template: Any, split: str, records: Iterable[Record], records_per_shard: int
) -> dict[str, dict[str, Any]]:
    """Writes the shards of one split; returns their manifest entries in order."""
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    features = _features()
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    counts: list[int] = []
    ids: set[str] = set()
    with contextlib.ExitStack() as open_files:
        for record in records:
            check_record(record)
            if record.id in ids:
                raise InputError(f"split {split}: the id {record.id!r} occurs twice")
            ids.add(record.id)
            if not counts or counts[-1] == records_per_shard:
                open_files.pop_all().close()
                # One record a group: random access reads no neighbours (grain refuses anything else).
                writer = array_record_module.ArrayRecordWriter(str(folder / f"part-{len(counts)}"), "group_size:1")
                open_files.callback(writer.close)
                counts.append(0)
            fields = vars(record) | {"metadata": json.dumps(record.metadata, sort_keys=True)}
            example = serializer.get_tf_example(features.encode_example(fields))
            writer.write(example.SerializeToString(deterministic=True))
            counts[-1] += 1
    if not counts:
        raise InputError(f"split {split} has no records")
    entries = {}
    for shard, count in enumerate(counts):
        path = pathlib.Path(template.sharded_filepath(shard_index=shard, num_shards=len(counts)))
        (folder / f"part-{shard}").rename(path)
        entries[path.name] = {
            "split": split,
            "records": count,
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
    return entries


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RecordSource:
    """Random access to the records of one split: `source[5]`, `len(source)`; may be pickled (grain workers).

    Attributes:
      location: as given.
      directory: local folder of the shards; those of a bucket are fetched into the cache.
      split: name of the split.
      fingerprint: sha256 of the split's part of the manifest: the same for the same records.
    """

    def __init__(self, location: str | os.PathLike[str]):
        """Opens `DIRECTORY:SPLIT`, or `DIRECTORY` for the split `train`; `gs://bucket/folder` is a directory too.

        Raises:
          InputError: no such bucket, directory, manifest or split; a shard is missing, has another size or another
            number of records than the manifest says.
        """
        self.location = os.fspath(location)
        self._address, self.split = _parse_location(self.location)
        shards = _read_manifest(_local(self._address, {MANIFEST}))
        self._shards = {name: entry for name, entry in shards.items() if entry["split"] == self.split}
        if not self._shards:
            known = ", ".join(sorted({entry["split"] for entry in shards.values()}))
            raise InputError(f"{self._address} has no split {self.split!r}; it has {known}")
        self.directory = _local(self._address, self._shards)
        self.fingerprint = hashlib.sha256(json.dumps(self._shards, sort_keys=True).encode()).hexdigest()
        self._open()

    def _open(self) -> None:
        from array_record.python import array_record_module
        from tensorflow_datasets.proto import tf_example_pb2

        # Looked up here: parts of TFDS are imported when they are used, and threads that do so wait for each other.
        self._example = tf_example_pb2.Example
        self._readers = []
        for name, entry in self._shards.items():
            path, named = self.directory / name, f"{self._address}/{name}"
            if not path.exists():
                raise InputError(f"{named}: the shard is missing")
            if path.stat().st_size != entry["bytes"]:
                raise InputError(f"{named}: {path.stat().st_size} bytes where {MANIFEST} says {entry['bytes']}")
            reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
            if not reader.ok() or reader.num_records() != entry["records"]:
                raise InputError(f"{named}: {reader.num_records()} records where {MANIFEST} says {entry['records']}")
            self._readers.append(reader)
        self._starts = np.cumsum([0, *(entry["records"] for entry in self._shards.values())])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_example")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        return f"RecordSource({self.location!r})"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Record number `index`, from 0.

        Raises:
          IndexError: beyond the end (negative indices count from the end).
          InputError: the stored bytes are damaged.
        """
        position = index.__index__()
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        try:
            (serialized,) = self._readers[shard].read([position - int(self._starts[shard])])
        except RuntimeError as error:
            named = f"{self._address}/{list(self._shards)[shard]}"
            raise InputError(f"{named}: record {position} cannot be read, the file is damaged") from error
        return _parse(self._example.FromString(serialized))


def _parse_location(location: str) -> tuple[str, str]:
    """`DIRECTORY:SPLIT`; a last colon before a slash belongs to the directory."""
    directory, colon, split = location.rpartition(":")
    return (directory, split) if colon and "/" not in split else (location, "train")


def _local(directory: str, names: Container[str]) -> pathlib.Path:
    """The directory, or a copy of the files named where it lies in a bucket."""
    if storage.is_remote(directory):
        return storage.fetch_folder(directory, lambda name: name in names, expected="shards written by data_prep")
    return pathlib.Path(directory)


def _read_manifest(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Manifest entries by shard name, in the order of the names."""
    path = directory / MANIFEST
    if not path.exists():
        raise InputError(f"{path}: no such file; expected a directory written by data_prep")
    try:
        return dict(sorted(json.loads(path.read_bytes())["shards"].items()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a manifest of shards ({error!r})") from error


def _parse(example: Any) -> Record:
    """Reads the protocol buffer `tf.train.Example` itself: six times as fast as TFDS's parser by way of numpy."""
    features = example.features.feature
    values = {field.name: features[field.name].bytes_list.value for field in dataclasses.fields(Record)}
    text = {name: value[0].decode() for name, value in values.items() if name not in _LISTS}
    text["metadata"] = json.loads(text["metadata"])
    return Record(**text, images=tuple(values["images"]), choices=tuple(v.decode() for v in values["choices"]))


def verify(directory: str | os.PathLike[str]) -> None:
    """Compares every shard of a directory with its sha256 in the manifest.

    Raises:
      InputError: a shard is missing or differs; names it.
    """
    directory = pathlib.Path(directory)
    for name, entry in _read_manifest(directory).items():
        if not (directory / name).exists():
            raise InputError(f"{directory / name}: the shard is missing")
        if _sha256(directory / name) != entry["sha256"]:
            raise InputError(f"{directory / name}: the content differs from its sha256 in {MANIFEST}")
