"""Data sets as directories of ArrayRecord shards, with random access to their records.

TFDS metadata (`features.json`, `dataset_info.json`) stands beside the shards, so `tfds.builder_from_directory` reads
them. TensorFlow is needed neither to write nor to read. `manifest.json` adds what TFDS lacks: the number of records,
the bytes and the sha256 of every shard, because ArrayRecord opens a truncated file as an empty one.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Generic, SupportsIndex

import numpy as np

from vlaa_jax import storage
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Kind, ProcessRecord, Record, Schema, check_record, load_tfds

MANIFEST = "manifest.json"
FEATURES = "features.json"  # of TFDS
RECORDS_PER_SHARD = 4096


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard that is written but not yet part of a data set.

    Attributes:
      split: its split.
      number: its place in the split, from 0.
      records: how many it holds.
      bytes: of the file.
      sha256: of the file.
    """

    split: str
    number: int
    records: int
    bytes: int
    sha256: str

    @property
    def part(self) -> str:
        """File name until the data set is finished."""
        return f"part-{self.split}-{self.number}"


def write_records(
    directory: str | os.PathLike[str],
    splits: dict[str, Iterable[Kind]],
    *,
    kind: type[Kind] = Record,
    name: str,
    version: str,
    description: str = "",
    citation: str = "",
    records_per_shard: int = RECORDS_PER_SHARD,
) -> None:
    """Writes splits as a TFDS data set; the directory appears when all is written, or not at all.

    The same records give the same bytes.

    Args:
      directory: made by this call; must not exist yet.
      splits: records of each split, consumed one by one.
      kind: of the records, `Record` or `ProcessRecord`.
      name: name of the data set, snake case: the shards are `name-split.array_record-00000-of-00003`.
      version: `major.minor.patch`.
      description: one sentence for `dataset_info.json`.
      citation: BibTeX for `dataset_info.json`.
      records_per_shard: most records of one shard.

    Raises:
      InputError: the directory exists, a split has no record, an id occurs twice, or a field has a wrong value.
    """
    directory = pathlib.Path(directory)
    if not splits:
        raise InputError(f"{directory}: no split to write")
    with appearing(directory) as folder:
        shards = []
        for split, records in splits.items():
            shards += write_split(folder, split, records, kind=kind, records_per_shard=records_per_shard)
        finish(folder, shards, kind=kind, name=name, version=version, description=description, citation=citation)


@contextlib.contextmanager
def appearing(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes `directory` when the block ends without an error.

    Raises:
      InputError: the directory exists.
    """
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


def write_split(
    folder: pathlib.Path,
    split: str,
    records: Iterable[Kind],
    *,
    kind: type[Kind] = Record,
    records_per_shard: int = RECORDS_PER_SHARD,
) -> list[Shard]:
    """Writes the shards of one split, for those who put more into the directory than `write_records` does.

    Args:
      folder: that `finish` will make a data set of.
      split: its name.
      records: consumed one by one.
      kind, records_per_shard: as in `write_records`.

    Raises:
      InputError: no record, an id that occurs twice, or a field with a wrong value.
    """
    load_tfds()  # threads may make the records
    shards: list[Shard] = []
    unique = _unique(split, records)
    while first := list(itertools.islice(unique, 1)):
        rest = itertools.islice(unique, records_per_shard - 1)
        shards.append(write_shard(folder, split, len(shards), itertools.chain(first, rest), kind=kind))
    if not shards:
        raise InputError(f"split {split} has no records")
    return shards


def write_shard(
    folder: pathlib.Path, split: str, number: int, records: Iterable[Kind], *, kind: type[Kind] = Record
) -> Shard:
    """Writes one shard; processes may write those of a data set side by side.

    Args:
      folder: that `finish` will make a data set of.
      split: its split.
      number: its place in the split, from 0.
      records: its records in order.
      kind: of the records.

    Raises:
      InputError: a field of a record has a wrong value.
    """
    from array_record.python import array_record_module

    serialize = Schema(kind).serializer()
    shard = Shard(split, number, 0, 0, "")
    path = folder / shard.part
    # One record a group: random access reads no neighbours (grain refuses anything else).
    with contextlib.closing(array_record_module.ArrayRecordWriter(str(path), "group_size:1")) as writer:
        for count, record in enumerate(records, 1):
            check_record(record)
            writer.write(serialize(record))
            shard = dataclasses.replace(shard, records=count)
    return dataclasses.replace(shard, bytes=path.stat().st_size, sha256=_sha256(path))


def shard_name(name: str, shard: Shard, count: int) -> str:
    """File name of a shard in a finished data set, as TFDS expects it.

    Args:
      name: of the data set.
      shard: one of its split's `count`.
    """
    return f"{name}-{shard.split}.array_record-{shard.number:05d}-of-{count:05d}"


def finish(
    folder: pathlib.Path,
    shards: Sequence[Shard],
    *,
    kind: type[Kind] = Record,
    name: str,
    version: str,
    description: str = "",
    citation: str = "",
) -> None:
    """Makes a data set of written shards: names the files and adds TFDS metadata and the manifest.

    Args:
      folder: of the shards.
      shards: all of them, in the order of their splits; the order of a split's own does not matter.
      kind, name, version, description, citation: as in `write_records`.
    """
    import tensorflow_datasets as tfds

    manifest, infos = {}, []
    for split in dict.fromkeys(shard.split for shard in shards):
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        own = sorted((shard for shard in shards if shard.split == split), key=lambda shard: shard.number)
        for shard in own:
            entry = dataclasses.asdict(shard)
            del entry["number"]
            file = shard_name(name, shard, len(own))
            (folder / shard.part).rename(folder / file)
            manifest[file] = entry
        lengths, size = [shard.records for shard in own], sum(shard.bytes for shard in own)
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=Schema(kind).features(),
        split_infos=infos,
        version=version,
        description=description,
        citation=citation,
        check_data=False,
    )
    content = {"name": name, "version": version, "shards": manifest}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _unique(split: str, records: Iterable[Kind]) -> Iterator[Kind]:
    ids: set[str] = set()
    for record in records:
        if record.id in ids:
            raise InputError(f"split {split}: the id {record.id!r} occurs twice")
        ids.add(record.id)
        yield record


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RecordSource(Generic[Kind]):
    """Random access to the records of one split: `source[5]`, `len(source)`; may be pickled (grain workers).

    Attributes:
      location: as given.
      directory: local folder of the shards; those of a bucket are fetched into the cache.
      split: name of the split.
      fingerprint: sha256 of the split's part of the manifest: the same for the same records.
    """

    def __init__(self, location: str | os.PathLike[str], kind: type[Kind] = Record):
        """Opens `DIRECTORY:SPLIT`, or `DIRECTORY` for the split `train`; `gs://bucket/folder` is a directory too.

        Args:
          location: of the split.
          kind: of its records, `Record` or `ProcessRecord`.

        Raises:
          InputError: no such bucket, directory, manifest or split; a shard is missing, has another size or another
            number of records than the manifest says.
        """
        self.location = os.fspath(location)
        self._schema = Schema(kind)
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
        return {key: value for key, value in self.__dict__.items() if key != "_readers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        return f"RecordSource({self.location!r})"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: SupportsIndex) -> Kind:
        """Record number `index`, from 0.

        Raises:
          IndexError: beyond the end (negative indices count from the end).
          InputError: the stored bytes are damaged, or hold a record of another kind.
        """
        position = index.__index__()
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        try:
            (serialized,) = self._readers[shard].read([position - int(self._starts[shard])])
            return self._schema.parse(serialized)
        except RuntimeError as error:
            raise self._error(shard, f"record {position} cannot be read, the file is damaged") from error
        except InputError as error:
            raise self._error(shard, str(error)) from None

    def _error(self, shard: int, what: str) -> InputError:
        return InputError(f"{self._address}/{list(self._shards)[shard]}: {what}")


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


def open_split(location: str | os.PathLike[str]) -> RecordSource[Record] | RecordSource[ProcessRecord]:
    """Opens a split of either kind; the features beside the shards say which.

    Raises:
      InputError: as `RecordSource`, or the features are missing or those of no kind.
    """
    directory, _ = _parse_location(os.fspath(location))
    path = _local(directory, {FEATURES}) / FEATURES
    try:
        names = json.loads(path.read_bytes())["featuresDict"]["features"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no description of features by TFDS ({error!r})") from None
    for kind in (Record, ProcessRecord):
        if names == {field.name for field in dataclasses.fields(kind)}:
            return RecordSource(location, kind)
    raise InputError(f"{path}: the fields {', '.join(sorted(names))} are neither a Record's nor a ProcessRecord's")


def read_splits(directory: str | os.PathLike[str]) -> dict[str, list[int]]:
    """Records of every shard, by split, as the manifest says.

    Raises:
      InputError: no such directory or manifest.
    """
    splits: dict[str, list[int]] = {}
    for entry in _read_manifest(_local(os.fspath(directory), {MANIFEST})).values():
        splits.setdefault(entry["split"], []).append(entry["records"])
    return splits


def damages(directory: str | os.PathLike[str]) -> Iterator[str]:
    """Compares every shard of a directory with its sha256 in the manifest: what is wrong with it, '' for nothing."""
    directory = pathlib.Path(directory)
    for name, entry in _read_manifest(directory).items():
        if not (directory / name).exists():
            yield f"{directory / name}: the shard is missing"
        elif _sha256(directory / name) != entry["sha256"]:
            yield f"{directory / name}: the content differs from its sha256 in {MANIFEST}"
        else:
            yield ""


def verify(directory: str | os.PathLike[str]) -> None:
    """As `damages`, for a directory that must be whole.

    Raises:
      InputError: a shard is missing or differs; names the first.
    """
    for damage in filter(None, damages(directory)):
        raise InputError(damage)
