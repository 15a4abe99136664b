"""Pictures by address: files of a folder, members of its archives, rows of its tables; read safely.

An address is text, so that a draft can be stored and sent to a worker: `train/1.jpg`, `images.tar!train/1.jpg`,
`images.zip!1.jpg` or `train-00000-of-00002.parquet!7`. Names come from downloaded files, so none may lead out of the
folder, and no picture is decoded before its header has been read.
"""

import contextlib
import functools
import io
import os
import pathlib
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vlaa_jax.errors import InputError

MAX_PIXELS = 50_000_000
MAX_BYTES = 200_000_000  # of an encoded picture

# Column of a table: LLaVA-OneVision-Data's, and what the `datasets` library writes: a struct of `bytes` and `path`.
IMAGE_COLUMN = "image"

# Others are no pictures of ours; PIL starts an interpreter for some (EPS).
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_CONTAINER = re.compile(r"(.+?\.(tar|zip|parquet))!(.+)", re.IGNORECASE | re.DOTALL)
_OPEN_ARCHIVES = 64  # per process
_HELD_ROW_GROUPS = 4  # per process; builds read rows in order, so one would do but for threads

Value = TypeVar("Value")


def read(folder: str | os.PathLike[str], address: str) -> bytes:
    """The encoded picture, once it has been decoded to its end.

    A sub-folder may be a link (COCO is often linked in), a single file only to one inside the folder. An archive is
    indexed once per process and change of the file.

    Args:
      folder: of the source.
      address: see the head of this file.

    Raises:
      InputError: the address leaves the folder or names no picture; the picture has more than `MAX_PIXELS` pixels or
        `MAX_BYTES` bytes, is truncated, or is none.
    """
    encoded = _encoded(folder, address)
    try:
        _header(encoded)
        _decode(encoded)
    except InputError as error:
        raise InputError(f"picture {address!r}: {error}") from None
    return encoded


def size(folder: str | os.PathLike[str], address: str) -> tuple[int, int]:
    """Width and height of the upright picture.

    Raises:
      InputError: as `read`, but that damage after the header may pass.
    """
    encoded = _encoded(folder, address)
    try:
        return _header(encoded)
    except InputError as error:
        raise InputError(f"picture {address!r}: {error}") from None


def member(archive: str, name: str) -> str:
    """Address of an archive's member."""
    return f"{archive}!{name}"


def row(table: str, number: int) -> str:
    """Address of the picture in a table's row, counted from 0."""
    return f"{table}!{number}"


def locate(folder: str | os.PathLike[str], names: Sequence[str]) -> str:
    """Address of the first of `names` that is there: as a file, else as a member of an archive in the folder.

    Publishers ship archives; some labs unpack them and some do not. Where none of the names is there, or none is a
    sound one, the first comes back, and `read` says what is wrong with it.

    Args:
      folder: of the source.
      names: as an annotation may mean it, relative to the folder or inside an archive; the likeliest first.
    """
    sound = [name for name in names if _is_sound(name)]
    for name in sound:
        if os.path.isfile(os.path.join(folder, name)):
            return name
    for archive in _archives(os.fspath(folder)):
        members = _open(os.path.join(folder, archive)).members
        for name in sound:
            if name in members:
                return member(archive, name)
    return names[0]


def _is_sound(name: str) -> bool:
    """Whether a name stays below where it starts."""
    return bool(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def _encoded(folder: str | os.PathLike[str], address: str) -> bytes:
    container = _CONTAINER.fullmatch(address)
    for name in container.group(1, 3) if container else (address,):
        if not _is_sound(name):
            raise InputError(f"picture {address!r}: the name leaves its folder or is none")
    try:
        if container is None:
            return _read_file(pathlib.Path(folder), address)
        name, kind, inside = container.groups()
        path = os.path.join(folder, name)
        return _read_row(path, inside) if kind.lower() == "parquet" else _open(path).read(inside)
    except InputError as error:
        raise InputError(f"picture {address!r}: {error}") from None
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered, a surrogate in a name
        raise InputError(f"picture {address!r}: cannot be read ({error})") from None


def _read_file(folder: pathlib.Path, name: str) -> bytes:
    path = folder / name
    if path.is_symlink():
        target = path.resolve()
        if not any(target.is_relative_to(home) for home in (path.parent.resolve(), folder.resolve())):
            raise InputError("is a link out of its folder")
    if not path.is_file():
        raise InputError(f"no such file in {folder}" if not path.exists() else "is no file")
    _check_bytes(path.stat().st_size)
    return path.read_bytes()


def _check_bytes(count: int) -> None:
    if count > MAX_BYTES:
        raise InputError(f"has {count:,} bytes, at most {MAX_BYTES:,} are read")


def _header(encoded: bytes) -> tuple[int, int]:
    """Width and height of the upright picture."""
    from PIL import ExifTags, Image

    with _damage_named(), Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(f"has more than {MAX_PIXELS:,} pixels: {width} x {height}")
        # Only now: to find a PNG's orientation Pillow decodes it.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _decode(encoded: bytes) -> None:
    """What `vlaa_jax.processing.images.decode` does with it; that module imports transformers, which takes seconds."""
    from PIL import Image, ImageOps

    with _damage_named(), Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        ImageOps.exif_transpose(image).convert("RGB")


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    from PIL import Image

    try:
        yield
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise InputError(f"has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # damaged bytes make Pillow's readers raise almost anything
        raise InputError(f"undecodable image: {error}") from None


class _Tar:
    """An uncompressed tar; safe between threads.

    Attributes:
      members: place and size in bytes of each file, by name; None for what is no file.
    """

    def __init__(self, path: str):
        self.members: dict[str, tuple[int, int] | None] = {}
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                plain = entry.isreg() and not entry.issparse()
                self.members[entry.name.removeprefix("./")] = (entry.offset_data, entry.size) if plain else None
                archive.members = []  # tarfile keeps every entry otherwise, a kilobyte each
        self._file = open(path, "rb", buffering=0)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def read(self, name: str) -> bytes:
        place = _find(self.members, name)
        if place is None:
            raise InputError("the member is no plain file")
        offset, count = place
        _check_bytes(count)
        content = os.pread(self._file.fileno(), count, offset)
        if len(content) < count:
            raise InputError("the archive ends inside it")
        return content


class _Zip:
    """A zip; safe between threads.

    Attributes:
      members: entries by name.
    """

    def __init__(self, path: str):
        self._archive = zipfile.ZipFile(path)
        self.members = {entry.filename: entry for entry in self._archive.infolist()}

    def __del__(self) -> None:
        if hasattr(self, "_archive"):
            self._archive.close()

    def read(self, name: str) -> bytes:
        entry = _find(self.members, name)
        mode = entry.external_attr >> 16
        if entry.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            raise InputError("the member is no plain file")
        _check_bytes(entry.file_size)
        try:
            return self._archive.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"the member cannot be unpacked ({error})") from None


def _find(members: Mapping[str, Value], name: str) -> Value:
    if name not in members:
        raise InputError(f"the archive has no such member among its {len(members):,}")
    return members[name]


def _open(path: str) -> _Tar | _Zip:
    archive = _open_version(path, _version(path), os.getpid())
    if isinstance(archive, str):
        raise InputError(archive)
    return archive


def _version(path: str) -> tuple[int, int]:
    """Changes with the file."""
    if not os.path.isfile(path):
        raise InputError(f"no such file: {path}")
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=_OPEN_ARCHIVES)
def _open_version(path: str, version: tuple[int, int], process: int) -> _Tar | _Zip | str:
    """The archive, or what is wrong with it: that is kept too, since it may take long to find out.

    Each process has its own: those that forked would move each other's place in the file.
    """
    try:
        return _Zip(path) if path.lower().endswith(".zip") else _Tar(path)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        return f"{path} is no archive that can be read, or a compressed tar ({error})"


@functools.lru_cache(maxsize=64)
def _archives(folder: str) -> tuple[str, ...]:
    """Archives of the folder and of its sub-folders, relative to it."""
    root = pathlib.Path(folder)
    found = [path for depth in ("*", "*/*") for path in root.glob(depth) if path.suffix.lower() in (".tar", ".zip")]
    return tuple(sorted(path.relative_to(root).as_posix() for path in found if path.is_file()))


def _read_row(path: str, number: str) -> bytes:
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        raise InputError("a row is a number from 0")
    group, offset = _place(path, _version(path), int(number))
    value = _row_group(path, _version(path), group)[offset].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise InputError(f"column {IMAGE_COLUMN} holds no encoded picture in this row")
    _check_bytes(len(content))
    return content


def _place(path: str, version: tuple[int, int], number: int) -> tuple[int, int]:
    """Row group and place in it."""
    for group, count in enumerate(_group_sizes(path, version)):
        if number < count:
            return group, number
        number -= count
    raise InputError("the table has no such row")


@functools.lru_cache(maxsize=1024)
def _group_sizes(path: str, version: tuple[int, int]) -> tuple[int, ...]:
    metadata = _parquet(path).metadata
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@functools.lru_cache(maxsize=_HELD_ROW_GROUPS)
def _row_group(path: str, version: tuple[int, int], group: int) -> Any:
    import pyarrow

    file = _parquet(path)
    if IMAGE_COLUMN not in file.schema_arrow.names:
        raise InputError(f"the table has no column {IMAGE_COLUMN}, but {', '.join(file.schema_arrow.names)}")
    try:
        return file.read_row_group(group, columns=[IMAGE_COLUMN]).column(IMAGE_COLUMN)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged ({error})") from None


def _parquet(path: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is no parquet file ({error})") from None
