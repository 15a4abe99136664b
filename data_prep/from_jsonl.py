"""`python -m data_prep from-jsonl`: your own questions and pictures as shards of records.

A line is an object with `image` (a file name) or `images` (a list), `question` and `answer`, and as it may need them
`id`, `verifier`, `choices`, `box_space` and `trace`; other fields are refused, since a mistyped name would be lost.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import VERIFIERS, Record, check_record
from vlaa_jax.processing.shards import RecordSource, write_records

VERSION = "1.0.0"

_REQUIRED = ("question", "answer")
_OPTIONAL = ("id", "verifier", "choices", "box_space", "trace")


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser("from-jsonl", help="your own questions and pictures, one JSON object a line")
    parser.add_argument("--jsonl", required=True, help="file of questions")
    parser.add_argument("--images", required=True, help="folder that the image names are relative to")
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--split", default="train")
    parser.add_argument("--verifier", choices=VERIFIERS, help="for lines without a verifier")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    import_jsonl(arguments.jsonl, arguments.images, arguments.out, split=arguments.split, verifier=arguments.verifier)
    print(f"{len(RecordSource(f'{arguments.out}:{arguments.split}'))} records in {arguments.out}:{arguments.split}")


def import_jsonl(jsonl: str, images: str, out: str, *, split: str = "train", verifier: str | None = None) -> None:
    """Writes every line of a JSONL file as a record; nothing is written unless all lines are good.

    Args:
      jsonl: file of questions, see the head of this file.
      images: folder that the image names are relative to.
      out: directory to make.
      split: name of the split.
      verifier: for lines without one.

    Raises:
      InputError: `out` exists, or lines are bad: names each one as file:line, and what was expected.
    """
    path, folder = pathlib.Path(jsonl), pathlib.Path(images)
    if not path.is_file():
        raise InputError(f"--jsonl: {path} is not a file")
    if not folder.is_dir():
        raise InputError(f"--images: {folder} is not a folder")
    if not split.isidentifier():
        raise InputError(f"--split: {split!r} is no name, expected letters, digits and underscores")
    write_records(
        out,
        {split: _read_lines(path, folder, verifier)},
        name="from_jsonl",
        version=VERSION,
        description=f"Imported from {path.name}.",
    )


def _read_lines(path: pathlib.Path, folder: pathlib.Path, verifier: str | None) -> Iterator[Record]:
    """The records up to the first bad line; reads on to find all bad lines, then raises."""
    errors: list[str] = []
    line_of: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = _read_line(line, f"{path.stem}-{number:06d}", folder, verifier)
                if record.id in line_of:
                    raise InputError(f"the id {record.id!r} is that of line {line_of[record.id]}")
                line_of[record.id] = number
            except InputError as error:
                errors.append(f"{path}:{number}: {error}")
            if not errors:
                yield record
    if errors:
        raise InputError("\n".join([f"bad lines: {len(errors)}, nothing was written", *errors]))


def _read_line(line: bytes, default_id: str, folder: pathlib.Path, verifier: str | None) -> Record:
    """One line as a checked record."""
    from vlaa_jax.rewards import check_gold

    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise InputError(f"expected a JSON object, found {type(entry).__name__}")
    unknown = sorted(set(entry) - {"image", "images", *_REQUIRED, *_OPTIONAL})
    if unknown:
        raise InputError(f"unknown field {unknown[0]!r}, expected image or images, {', '.join(_REQUIRED + _OPTIONAL)}")
    text = {name: _text(entry, name) for name in _REQUIRED}
    text["verifier"] = _text(entry, "verifier", verifier)
    text.update({name: _text(entry, name, "") for name in ("box_space", "trace")})
    record = Record(
        id=_text(entry, "id", default_id),
        images=tuple(_read_image(folder, name) for name in _image_names(entry)),
        choices=tuple(_texts(entry, "choices")) if "choices" in entry else (),
        source="from_jsonl",
        **text,
    )
    check_record(record)
    check_gold(record)
    marks = record.question.count("<image>")
    if marks not in (0, len(record.images)):
        raise InputError(
            f"question has {marks} <image> marks for {len(record.images)} images; expected one each, or none"
        )
    return record


def _text(entry: dict[str, Any], name: str, default: str | None = None) -> str:
    """A text field; one without a default must be there and not blank."""
    value = entry.get(name, default)
    if value is None:
        raise InputError(f"{name} is missing" + (", and --verifier was not given" if name == "verifier" else ""))
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, found {json.dumps(value)[:60]}")
    if default is None and not value.strip():
        raise InputError(f"{name} is blank")
    if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{name} holds half a surrogate pair, which is no Unicode text")
    return value


def _texts(entry: dict[str, Any], name: str) -> list[str]:
    value = entry[name]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise InputError(f"{name} must be a list of texts, found {json.dumps(value)[:60]}")
    return value


def _image_names(entry: dict[str, Any]) -> list[str]:
    if ("image" in entry) == ("images" in entry):
        raise InputError("expected either image or images")
    return _texts(entry, "images") if "images" in entry else [_text(entry, "image")]


def _read_image(folder: pathlib.Path, name: str) -> bytes:
    """The bytes of an image file that decodes to its end."""
    from vlaa_jax.processing.images import decode

    path = folder / name
    if not path.is_file():
        raise InputError(f"image {path} does not exist")
    content = path.read_bytes()
    try:
        decode(content)
    except InputError as error:
        raise InputError(f"image {path}: {error}") from error
    return content
