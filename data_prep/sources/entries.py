"""Records of publishers' files, one at a time: JSON Lines, JSON arrays and parquet tables, none of them held whole.

A record that cannot be read costs one entry with its problem. What ends a file (a JSON array cannot be picked up again
after a slip) is an `InputError`.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data_prep import pictures
from vlaa_jax.errors import InputError

_LONGEST = 1 << 26  # bytes or characters of one record
_CHUNK = 1 << 20  # characters
_ROWS = 64  # of a table that are held at once


@dataclasses.dataclass(frozen=True)
class Entry:
    """One record of a file.

    Attributes:
      place: file and line, place in the array or row, for people.
      fields: as they stand in the file.
      problem: why there are none; '' for a good record.
      picture: what tells its picture from others, where the address does not; '' for the address.
      group: what it shares with the other questions about its picture that are kept beside it; '' for nothing.
    """

    place: str
    fields: dict[str, Any]
    problem: str = ""
    picture: str = ""
    group: str = ""


def find_file(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """The first of `names` that is a file of the folder.

    Raises:
      InputError: none is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} has none of {', '.join(names)}")


def read_json(path: pathlib.Path, key: str = "") -> Iterator[Entry]:
    """Objects of a JSON file: of JSON Lines, or of an array that is the whole file or stands under a key of it.

    Names do not tell: publishers call JSON Lines `.json`.

    Args:
      path: UTF-8.
      key: of the array in the file's object; '' where there is none.

    Raises:
      InputError: neither; names what was expected and found.
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if key or start == b"[":
        yield from _read_array(path, key)
    else:
        yield from _read_lines(path)


def _read_lines(path: pathlib.Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            place = f"{path.name}:{number}"
            if len(line) == _LONGEST and not line.endswith(b"\n"):
                while (rest := file.readline(_LONGEST)) and not rest.endswith(b"\n"):
                    pass
                yield Entry(place, {}, f"too long: a line of more than {_LONGEST:,} bytes")
            elif line.strip():
                try:
                    yield _entry(place, json.loads(line.removeprefix(b"\xef\xbb\xbf")))
                except (ValueError, RecursionError) as error:
                    yield Entry(place, {}, f"not JSON: {error}")


def _entry(place: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        return Entry(place, {}, f"not an object: found {type(value).__name__}")
    return Entry(place, value)


def _read_array(path: pathlib.Path, key: str) -> Iterator[Entry]:
    with path.open(encoding="utf-8-sig") as file:
        text = _Text(file, path)
        if key:
            _enter(text, key)
        text.expect("[")
        number = 0
        while text.peek() != "]":
            if number:
                text.expect(",")
            yield _entry(f"{path.name}:{key}[{number}]", text.value())
            number += 1


def _enter(text: "_Text", key: str) -> None:
    """Goes to the value of a key of an object."""
    found = []
    text.expect("{")
    while text.peek() != "}":
        if found:
            text.expect(",")
        found.append(text.value())
        text.expect(":")
        if found[-1] == key:
            return
        text.value()
    raise InputError(f"{text.path}: no key {key!r}, found {', '.join(map(repr, found)) or 'none'}")


class _Text:
    """JSON that is read piece by piece."""

    def __init__(self, file: io.TextIOWrapper, path: pathlib.Path):
        self.path = path
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is no space; '' at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._grow(_CHUNK):
                return ""

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise InputError(f"{self.path}: not JSON of the expected form: {character!r} expected, found {found!r}")
        self._at += 1

    def value(self) -> Any:
        """The next value whole. One that does not end within the bound is no JSON."""
        self.peek()
        step = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or len(self._text) > _LONGEST or not self._grow(step):
                    raise InputError(f"{self.path}: not JSON ({str(error)[:200]})") from None
                step *= 2
                continue
            if end < len(self._text) or not self._grow(step):  # a number at the end of a piece may go on
                self._at = end
                return value

    def _grow(self, count: int) -> bool:
        """Forgets what was read and adds the next piece; False at the end."""
        try:
            piece = self._file.read(count)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: not UTF-8 ({error})") from None
        self._text = self._text[self._at :] + piece
        self._at = 0
        return bool(piece)


def read_tables(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> Iterator[Entry]:
    """Rows of parquet tables whose column `image` holds encoded pictures.

    The field `image` becomes the picture's address, and `image_name` its name in the table, '' for none. Pictures are
    told apart by their bytes, since addresses are those of rows.

    Args:
      folder: that addresses are relative to.
      paths: of the tables, below it.

    Raises:
      InputError: a file is no table.
    """
    import pyarrow
    from pyarrow import parquet

    for path in paths:
        table = path.relative_to(folder).as_posix()
        number = 0
        try:
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=_ROWS):
                for fields in batch.to_pylist():
                    yield _row_entry(table, number, fields)
                    number += 1
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{path} is damaged or no parquet file ({error})") from None


def _row_entry(table: str, number: int, fields: dict[str, Any]) -> Entry:
    place = f"{table}, row {number}"
    value = fields.get(pictures.IMAGE_COLUMN)
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if pictures.IMAGE_COLUMN in fields and not isinstance(content, bytes):
        return Entry(place, fields, "no picture in the table's row")
    if isinstance(content, bytes):
        fields = fields | {pictures.IMAGE_COLUMN: pictures.row(table, number), "image_name": name or ""}
    return Entry(place, fields, picture=hashlib.sha256(content or b"").hexdigest())
