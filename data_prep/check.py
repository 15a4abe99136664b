"""`python -m data_prep check`: whether a directory of shards is whole and every record of it can be used.

Shards agree with the manifest (sha256, records) and with TFDS's metadata; every record parses, its fields have allowed
values, its verifier reads its gold, its pictures decode, a gold box lies on its picture, its id is the only one of its
kind in the split.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import io
import os
import pathlib
import warnings
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from data_prep.pictures import MAX_PIXELS
from data_prep.progress import progress
from vlaa_jax import storage
from vlaa_jax.errors import InputError
from vlaa_jax.processing.images import read_size
from vlaa_jax.processing.records import ProcessRecord, Record, Schema, check_record
from vlaa_jax.processing.shards import MANIFEST, RecordSource, damages, open_split, read_splits
from vlaa_jax.rewards import check_gold
from vlaa_jax.rewards.iou import box_image, read_gold

_LISTED = 20


@dataclasses.dataclass
class Findings:
    """What a check found.

    Attributes:
      records: read, by split.
      pictures: looked at.
      problems: a sentence for each.
      warnings: of what may be meant so.
    """

    records: dict[str, int] = dataclasses.field(default_factory=dict)
    pictures: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser("check", help="validate shards: every file, record, picture and gold answer")
    parser.add_argument("--data", required=True, help="directory of shards, all splits")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="no sha256 of the shards, of pictures only the header, no math golds (each is parsed by math-verify)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    findings = check(arguments.data, fast=arguments.fast)
    for warning in findings.warnings:
        print(f"warning: {warning}")
    for problem in findings.problems[:_LISTED]:
        print(problem)
    if len(findings.problems) > _LISTED:
        print(f"... and {len(findings.problems) - _LISTED:,} more")
    records = ", ".join(f"{count:,} records of {split}" for split, count in findings.records.items())
    result = f"{len(findings.problems):,} problems" if findings.problems else "no problems"
    print(f"{arguments.data}: {result} in {records or 'no records'}, {findings.pictures:,} pictures")
    return int(bool(findings.problems))


def check(directory: str | os.PathLike[str], *, fast: bool = False) -> Findings:
    """Reads everything, past problems too.

    Args:
      directory: of shards; one in a bucket is fetched whole.
      fast: leaves out the sha256 of the shards, the math golds, and all of a picture but its header.

    Raises:
      InputError: no such directory or manifest.
    """
    directory = os.fspath(directory)
    if storage.is_remote(directory):
        directory = storage.fetch_folder(directory, lambda name: True, expected="shards written by data_prep")
    folder = pathlib.Path(directory)
    splits = read_splits(folder)
    findings = Findings()
    if not fast:
        shards = sum(map(len, splits.values()))
        findings.problems += filter(None, progress(damages(folder), "comparing shards with their sha256", shards))
    sources = []
    for split in splits:
        try:
            sources.append(open_split(f"{folder}:{split}"))
        except InputError as error:
            findings.problems.append(str(error))
    findings.problems = list(dict.fromkeys(findings.problems))  # a missing shard is found twice
    findings.problems += _metadata(folder, splits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is lower
        for source in sources:
            _check_split(source, fast, findings)
    return findings


def _metadata(folder: pathlib.Path, splits: dict[str, list[int]]) -> Iterator[str]:
    """Whether TFDS would read the same splits and fields."""
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(folder).info
        stored = {name: list(split.shard_lengths) for name, split in info.splits.items()}
        features = info.features.to_json()
    except Exception as error:  # whatever TFDS meets in files that others wrote
        yield f"{folder}: TFDS cannot read its metadata ({type(error).__name__}: {error})"
        return
    for split in sorted(stored.keys() | splits.keys()):
        if stored.get(split) != splits.get(split):
            yield (
                f"{folder}/dataset_info.json: split {split} has shards of {stored.get(split, 'no')} records, "
                f"{MANIFEST} says {splits.get(split, 'no')}"
            )
    if features not in [Schema(kind).features().to_json() for kind in (Record, ProcessRecord)]:
        yield f"{folder}/features.json: the features are neither a Record's nor a ProcessRecord's"


def _check_split(source: RecordSource, fast: bool, findings: Findings) -> None:
    """Adds what is found in a split."""
    seen: collections.Counter[str] = collections.Counter()
    traceless = []
    look = functools.partial(_check_position, source, fast)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        rows = threads.map(look, range(len(source)))
        for record, problems in progress(rows, f"checking {len(source):,} records of {source.split}", len(source)):
            findings.problems += (f"{source.split}, {problem}" for problem in problems)
            if record is None:
                continue
            seen[record.id] += 1
            if seen[record.id] == 2:
                findings.problems.append(f"{source.split}, record {record.id!r}: the id occurs more than once")
            findings.pictures += record.pictures
            if not record.trace:
                traceless.append(record.id)
    findings.records[source.split] = sum(seen.values())
    if source.split.startswith("sft") and traceless:
        findings.warnings.append(
            f"{source.split}: {len(traceless):,} records have no trace to imitate, the first is {traceless[0]!r}"
        )


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What is kept of a record: not its pictures."""

    id: str
    pictures: int
    trace: bool


def _check_position(source: RecordSource, fast: bool, position: int) -> tuple[_Seen | None, list[str]]:
    try:
        record = source[position]
    except Exception as error:  # damaged bytes make protobuf, UTF-8 and JSON raise errors of their own
        return None, [f"record {position} cannot be read ({type(error).__name__}: {error})"]
    found = [f"record {record.id!r}: {problem}" for problem in _problems(record, fast)]
    return _Seen(record.id, len(record.images), isinstance(record, ProcessRecord) or bool(record.trace)), found


def _problems(record: Record | ProcessRecord, fast: bool) -> Iterator[str]:
    """A sentence for each."""
    if not record.id:
        yield "the id is empty"
    if not record.question.strip():
        yield "the question is blank"
    marks = record.question.count("<image>")
    if marks not in (0, len(record.images)):
        yield f"{marks} <image> marks for {len(record.images)} pictures; expected one each, or none"
    if isinstance(record, ProcessRecord) and not record.process.strip():
        yield "the process is blank"
    try:
        check_record(record)
        if isinstance(record, Record) and not (fast and record.verifier == "math"):
            check_gold(record)
    except InputError as error:
        yield str(error).removeprefix(f"record {record.id}: ").removeprefix(f"record {record.id!r}: ")
    for number, encoded in enumerate(record.images):
        try:
            size = _look(encoded, whole=not fast)
        except InputError as error:
            yield f"picture {number + 1} of {len(record.images)}: {error}"
            continue
        if not fast and isinstance(record, Record) and _leaves_picture(record, number, size):
            yield f"the gold box {record.answer} leaves its picture of {size[0]} x {size[1]} pixels"


def _look(encoded: bytes, *, whole: bool) -> tuple[int, int]:
    """Width and height of a picture, of the upright one where it is decoded as a whole.

    Raises:
      InputError: it is none, or too large; a damaged one where it is decoded.
    """
    try:
        width, height = Image.open(io.BytesIO(encoded)).size
    except UnidentifiedImageError:  # whose message names an address in memory
        raise InputError("of no known format") from None
    except Exception as error:  # as in `images.decode`
        raise InputError(f"undecodable: {error}") from None
    if width * height > MAX_PIXELS:
        raise InputError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    return read_size(encoded) if whole else (width, height)


def _leaves_picture(record: Record, number: int, size: tuple[int, int]) -> bool:
    """Whether the gold box lies partly outside this, its picture; in the other spaces `check_gold` looks at it."""
    if record.verifier != "iou" or record.box_space != "pixels":
        return False
    try:
        gold = read_gold(record.answer, record.box_space)
        return box_image(record.metadata, len(record.images)) == number and not gold.within(size)
    except InputError:  # said by `check_gold`
        return False
