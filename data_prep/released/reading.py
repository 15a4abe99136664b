"""Entries of a released file, one at a time: JSON Lines, whatever the file's name says, or one JSON array.

In JSON Lines a damaged line costs itself. In an array nothing behind a damaged element can be found again, so it ends
the reading.
"""

import codecs
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

from vlaa_jax.errors import InputError

LONGEST_ENTRY = 1 << 26  # bytes, in an array characters
_CHUNK = 1 << 20
_SAMPLE = 100  # entries whose columns say what kind of file it is

FileKind = Literal["sft", "rl", "reward"]

# Columns that every file of the kind has; the first kind that fits is it.
_COLUMNS: dict[FileKind, tuple[str, ...]] = {
    "reward": ("image_path", "question", "process", "value"),
    "sft": ("image", "question", "answer"),
    "rl": ("image", "question", "gt"),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One element of the file.

    Attributes:
      number: of its line, or its place in the array, from 1.
      fields: of the object; empty for what is none.
      problem: why it is none, '' for a good one.
    """

    number: int
    fields: dict[str, Any]
    problem: str = ""


def recognise(path: pathlib.Path) -> FileKind:
    """What kind of released file it is, by its columns.

    Raises:
      InputError: none of them; says which columns were expected and which were found.
    """
    found = dict.fromkeys(name for entry in itertools.islice(entries(path), _SAMPLE) for name in entry.fields)
    for kind, columns in _COLUMNS.items():
        if found.keys() >= set(columns):
            return kind
    expected = "; or ".join(", ".join(columns) for columns in _COLUMNS.values())
    raise InputError(f"{path}: expected the columns {expected}; found {', '.join(map(str, found)) or 'no entry'}")


def entries(path: pathlib.Path) -> Iterator[Entry]:
    """The elements of the file in order.

    Raises:
      InputError: an array is damaged; names the element.
    """
    with path.open("rb") as file:
        start = file.read(len(codecs.BOM_UTF8))
        skipped = len(start) if start == codecs.BOM_UTF8 else 0
        file.seek(skipped)
        while (character := file.read(1)).isspace():
            skipped += 1
        if character == b"[":
            yield from _array(path, skipped + 1)
        else:
            file.seek(skipped)
            yield from _lines(file)


def _lines(file: BinaryIO) -> Iterator[Entry]:
    for number in itertools.count(1):
        line = file.readline(LONGEST_ENTRY)
        if not line:
            return
        if len(line) == LONGEST_ENTRY and not line.endswith(b"\n"):
            while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield Entry(number, {}, f"the line is longer than {LONGEST_ENTRY} bytes")
        elif line.strip():
            try:
                yield _entry(number, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield Entry(number, {}, f"not JSON ({error})")


def _array(path: pathlib.Path, start: int) -> Iterator[Entry]:
    decode = json.JSONDecoder().raw_decode
    # Bytes that are no UTF-8 become surrogates, which cost their record later, not the file now.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.seek(start)
        text, position = "", 0
        for number in itertools.count(1):
            while True:
                position = _next_element(text, position)
                if text.startswith("]", position):
                    return
                try:
                    value, position = decode(text, position)
                    break
                except (ValueError, RecursionError) as error:  # damaged, or not all of it is here yet
                    text, position = text[position:], 0
                    more = file.read(max(_CHUNK, len(text))) if len(text) < LONGEST_ENTRY else ""
                    if not more:
                        raise InputError(
                            f"{path}: element {number} of the array is damaged, nothing behind it can be read ({error})"
                        ) from None
                    text += more
            yield _entry(number, value)


def _next_element(text: str, position: int) -> int:
    """Skips white space and the comma between elements."""
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position


def _entry(number: int, value: Any) -> Entry:
    if isinstance(value, dict):
        return Entry(number, value)
    return Entry(number, {}, f"expected a JSON object, found {type(value).__name__}")
