"""`python -m data_prep vilbench import`: the 600 released questions (UCSC-VLAA/ViLBench) as shards.

The names of the file's columns are not stated in the paper and could not be looked up, so `COLUMNS` is a guess: where
the file has others, they are to be named, and nothing more is guessed.
"""

import collections
import dataclasses
import json
import pathlib
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep import citations, golds, pictures
from data_prep.released import choices
from data_prep.sources.entries import read_json
from data_prep.vilbench.quotas import check_counts
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record, check_record
from vlaa_jax.processing.shards import appearing, finish, write_split

VERSION = "1.0.0"
SPLIT = "test"
COLUMNS = {
    "id": "index",
    "image": "image",
    "question": "question",
    "answer": "answer",
    "source": "source",
    "choices": "choices",
}
_OPTIONAL = ("choices",)  # they may stand in the question
_LETTERS = string.ascii_uppercase
_MOST_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the file.

    Attributes:
      place: file and line or row, for people.
      fields: by column.
    """

    place: str
    fields: dict[str, Any]


def import_released(
    file: pathlib.Path, images: pathlib.Path, out: str, *, columns: Mapping[str, str], quotas: Mapping[str, int]
) -> dict[str, int]:
    """Writes the file's questions as shards, whole or not at all.

    Args:
      file: JSON, JSON Lines or parquet.
      images: folder that names of pictures are relative to; unused for pictures in the table.
      out: directory to make.
      columns: those that differ from `COLUMNS`, by our name.
      quotas: questions that each source must have.

    Returns:
      Questions of each source.

    Raises:
      InputError: `out` exists, a column is missing, rows are bad (names the first ones), or the counts differ.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise InputError(f"--column: {unknown[0]!r} is none of {', '.join(COLUMNS)}")
    if not file.is_file():
        raise InputError(f"--file: {file} is not a file")
    with appearing(pathlib.Path(out)) as folder:
        rows = list(_rows(file))
        used = _columns(file, rows, columns)
        records, errors = [], []
        for row in rows:
            try:
                records.append(_record(row, used, images))
            except InputError as error:
                errors.append(f"{row.place}: {error}")
        if errors:
            shown = errors[:_MOST_SHOWN]
            raise InputError("\n".join([f"{file}: {len(errors)} bad rows, nothing was written", *shown]))
        counts = collections.Counter(record.source for record in records)
        check_counts(counts, quotas)
        shards = write_split(folder, SPLIT, records)
        finish(
            folder,
            shards,
            name="vilbench",
            version=VERSION,
            description=f"Imported from {file.name}.",
            citation=citations.VILBENCH,
        )
    return dict(counts)


def _rows(file: pathlib.Path) -> Iterator[Row]:
    if file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            table = parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{file} is damaged or no parquet file ({error})") from None
        for number, fields in enumerate(table):
            yield Row(f"{file.name}, row {number}", fields)
        return
    for entry in read_json(file):
        if entry.problem:
            raise InputError(f"{entry.place}: {entry.problem}")
        yield Row(entry.place, entry.fields)


def _columns(file: pathlib.Path, rows: Sequence[Row], given: Mapping[str, str]) -> dict[str, str]:
    """The file's column for each of ours, and prints them."""
    found = dict.fromkeys(name for row in rows for name in row.fields)
    listed = ", ".join(map(str, found)) or "none"
    print(f"columns of {file}: {listed}", flush=True)
    used = COLUMNS | given
    missing = [name for name in used if used[name] not in found and (name not in _OPTIONAL or name in given)]
    if missing:
        flags = " ".join(f"--column={name}=NAME" for name in missing)
        raise InputError(
            f"{file} has no column {', '.join(repr(used[name]) for name in missing)}; found {listed}. Say which "
            f"columns hold {', '.join(missing)}: {flags}"
        )
    used = {name: column for name, column in used.items() if column in found}
    print(f"read as {', '.join(f'{name}: {column}' for name, column in used.items())}", flush=True)
    return used


def _record(row: Row, columns: Mapping[str, str], folder: pathlib.Path) -> Record:
    from vlaa_jax.rewards import check_gold

    value = {name: row.fields.get(column) for name, column in columns.items()}
    question, source = _text(value["question"], "question"), _text(value["source"], "source")
    listed = choices.parse(question)
    options = _options(value.get("choices")) or listed
    if options and not listed:
        lettered = (f"{letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False))
        question = "\n".join([question, *lettered])
    gold = golds.repair_letters(_text(value["answer"], "answer")) if options else None
    record = Record(
        id=_text(value["id"], "id"),
        images=_pictures(value["image"], folder),
        question=question,
        answer=gold.text if gold else _text(value["answer"], "answer"),
        verifier="mcq" if options else "math",
        choices=options,
        source=source,
    )
    marks = record.question.count("<image>")
    if marks not in (0, len(record.images)):
        raise InputError(f"question has {marks} <image> marks for {len(record.images)} pictures")
    check_record(record)
    check_gold(record)
    return record


def _text(value: Any, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = json.dumps(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} must be a text that is not blank, found {value!r:.60}")
    return value.strip()


def _options(value: Any) -> tuple[str, ...]:
    if value is None or value == [] or value == "":
        return ()
    if not isinstance(value, list):
        raise InputError(f"choices must be a list of texts, found {value!r:.60}")
    return tuple(_text(item, "a choice") for item in value)


def _pictures(value: Any, folder: pathlib.Path) -> tuple[bytes, ...]:
    """Encoded pictures of a name, of a struct of `bytes` and `path`, or of a list of these."""
    from vlaa_jax.processing.images import decode

    out = []
    for item in value if isinstance(value, list) else [value]:
        content = item.get("bytes") if isinstance(item, dict) else item
        if isinstance(content, str) and content:
            content = pictures.read(folder, content)
        if not isinstance(content, bytes):
            raise InputError(f"image must be a file's name or a picture, found {item!r:.60}")
        decode(content)
        out.append(content)
    return tuple(out)
