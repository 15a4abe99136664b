"""Which pictures are the same: by their pixels, or nearly, by a perceptual hash.

The hash is dHash: the grey picture shrunk to 9 x 8 cells, one of 64 bits for each two neighbours in a row, set where
brightness rises from left to right. Another encoding or size changes few bits, a mirror image or a crop many. It must
rise by `_RISE`, since on an even ground the noise of JPEG would decide otherwise.

Plots, scans and drawings on an empty ground share most of their bits though they differ. So two pictures are near only
if their small grey copies correlate as well. Measured on drawn plots, pages, shapes, textures and digit scenes: at JPEG
quality 50, or at 0.9, 1.1 or half of its size, a picture correlates with itself by 0.96 and more, and lies within
`DISTANCE` (of the digit scenes 98 % do). Different pictures within 10 bits correlate by 0.91 at most, save curves that
an eye hardly tells apart.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

DISTANCE = 6  # bits; the default of what is near

_COPY = (36, 32)  # width, height of the small copy in cells
_RISE = 2.0  # of 255
_CORRELATION = 0.95  # of two small copies, at least
_EVEN = 1.0  # of 255, standard deviation: below it a picture has nothing that could correlate
_SPREAD = 24  # standard deviation of a stored copy: int8 then holds 5 of them
_HASHES = 1 << 20  # pairs compared at once
_COPIES = 256  # pairs compared at once; they fit a processor's cache


class PictureHash(NamedTuple):
    """What is kept of a picture.

    Attributes:
      digest: sha256 of size and pixels, upright and in RGB.
      bits: the perceptual hash.
      copy: `[32 x 36]` int8, grey, of mean 0 and one standard deviation for all; zeros for an even picture.
    """

    digest: bytes
    bits: int
    copy: np.ndarray


def hash_picture(image: Image.Image) -> PictureHash:
    """Of a picture as `images.decode` returns it."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    grey = np.asarray(image.convert("L").resize(_COPY, Image.Resampling.BOX), np.float32)
    cells = grey.reshape(8, 4, 9, 4).mean(axis=(1, 3))
    rises = np.diff(cells, axis=1) >= _RISE
    centred, spread = grey.ravel() - grey.mean(), grey.std()
    scale = _SPREAD / spread if spread >= _EVEN else 0
    copy = np.clip(np.round(centred * scale), -127, 127).astype(np.int8)
    return PictureHash(digest.digest(), int.from_bytes(np.packbits(rises).tobytes()), copy)


def near_bits(
    left: np.ndarray, right: np.ndarray, distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs of hashes that differ by at most `distance` bits, each once, without comparing all with all.

    Cut into `distance` + 1 bands, two such hashes are equal in at least one band (by the pigeonhole principle), so only
    pairs that share a band are looked at.

    Args:
      left, right: `[N]` and `[M]` uint64.
      distance: 0 to 63 bits.

    Yields:
      Places in `left`, places in `right`, and distances, of some of the pairs.
    """
    edges = np.linspace(0, 64, distance + 2).astype(int).tolist()
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in itertools.pairwise(edges)]
    for band, mask in enumerate(masks):
        order = np.argsort(right & mask, kind="stable")
        candidates, keys = right[order], (right & mask)[order]
        first = np.searchsorted(keys, left & mask, "left")
        counts = np.searchsorted(keys, left & mask, "right") - first
        before = np.concatenate([[0], np.cumsum(counts)])  # pairs of the rows before
        begin = 0
        while begin < len(left):
            # As many rows as make a chunk of pairs, one at least.
            end = max(int(np.searchsorted(before, before[begin] + _HASHES, "right")) - 1, begin + 1)
            own = counts[begin:end]
            places = np.repeat(first[begin:end] - before[begin:end], own) + np.arange(before[begin], before[end])
            differing = np.repeat(left[begin:end], own) ^ candidates[places]
            near = np.flatnonzero(np.bitwise_count(differing) <= distance)
            for earlier in masks[:band]:  # found there
                near = near[(differing[near] & earlier) != 0]
            rows = np.searchsorted(before, before[begin] + near, "right") - 1
            yield rows, order[places[near]], np.bitwise_count(differing[near])
            begin = end


def near_pictures(
    left: Sequence[PictureHash], right: Sequence[PictureHash], distance: int = DISTANCE
) -> Iterator[tuple[int, int, int]]:
    """Places of all near pairs, with the number of bits that differ. An even picture is near to none."""
    if not left or not right:
        return
    bits = [np.array([picture.bits for picture in side], np.uint64) for side in (left, right)]
    copies = [np.stack([picture.copy for picture in side]) for side in (left, right)]
    norms = [np.array([np.linalg.norm(picture.copy.astype(np.float32)) for picture in side]) for side in (left, right)]
    for rows, columns, distances in near_bits(*bits, distance):
        for start in range(0, len(rows), _COPIES):
            part = slice(start, start + _COPIES)
            i, j = rows[part], columns[part]
            products = np.vecdot(copies[0][i].astype(np.float32), copies[1][j].astype(np.float32))
            alike = products > _CORRELATION * norms[0][i] * norms[1][j]
            yield from zip(i[alike].tolist(), j[alike].tolist(), distances[part][alike].tolist(), strict=True)
