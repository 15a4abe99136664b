"""Where a released file's pictures lie, and where those are to be had that the released archives lack."""

import pathlib
from collections.abc import Mapping

from data_prep.released.report import MISSING, PICTURE, Skip
from vlaa_jax.errors import InputError

# The released archives have neither COCO nor Visual Genome; both publishers offer them.
_PUBLISHERS = {
    "coco/train2017": "http://images.cocodataset.org/zips/train2017.zip",
    "vg/VG_100K": "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
    "vg/VG_100K_2": "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
}


def address(folder: pathlib.Path, image: str) -> str:
    """An entry's image as an address below the folder.

    The files' own spellings differ: `/allava_laion/1.jpeg`, `./vg/1.jpg`, and `images/` before all where the folder
    given is that one.
    """
    name = image.removeprefix("./").removeprefix("/")
    inner = name.removeprefix("images/")
    return inner if inner != name and not (folder / "images").is_dir() else name


def is_missing(folder: pathlib.Path, name: str) -> bool:
    """Whether nothing lies at an address; an address that no file system takes is for `read_picture` to refuse."""
    try:
        return not (folder / name).exists()
    except (OSError, ValueError):
        return False


def read_picture(folder: pathlib.Path, name: str) -> bytes:
    """The encoded picture, decoded once to its end.

    Raises:
      Skip: there is none, or it cannot be taken.
    """
    from data_prep import pictures

    if is_missing(folder, name):
        raise Skip(MISSING, f"no picture {name}")
    try:
        return pictures.read(folder, name)
    except InputError as error:
        raise Skip(PICTURE, str(error)) from None


def check_missing(missing: Mapping[str, int], entries: Mapping[str, int], max_skipped: float) -> None:
    """Raises `InputError` for folders of which more than a share of the pictures is missing.

    Args:
      missing, entries: number of entries without their picture, and of all, by folder.
      max_skipped: the share, 0 to 1.
    """
    folders = [name for name in sorted(missing) if missing[name] > max_skipped * entries[name]]
    if not folders:
        return
    lines = ["pictures are missing; put them there, or leave their records out with --without-missing-images"]
    for name in folders:
        publisher = f", to be had from {_PUBLISHERS[name]}" if name in _PUBLISHERS else ""
        lines.append(f"  {name}: {missing[name]} of {entries[name]} records{publisher}")
    raise InputError("\n".join(lines))


def picture_size(folder: pathlib.Path, name: str) -> tuple[int, int]:
    """Width and height of the upright picture in pixels.

    Raises:
      Skip: as `read_picture`.
    """
    from data_prep import pictures

    if is_missing(folder, name):
        raise Skip(MISSING, f"no picture {name}")
    try:
        return pictures.size(folder, name)
    except InputError as error:
        raise Skip(PICTURE, str(error)) from None
