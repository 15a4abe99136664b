"""Which pictures are the same: by their pixels, or nearly, by a perceptual hash.

The hash is dHash: the grey picture shrunk to 9 x 8 cells, one of 64 bits for each two neighbours in a row, set where
brightness rises from left to right. Another encoding or size changes few bits, a mirror image or a crop many. It must
rise by `_RISE`, since on an even ground the noise of JPEG would decide otherwise.

Plots, scans and drawings on an empty ground share most of their bits though they differ. So near are two pictures only
if their small grey copies correlate as well. Measured: the same picture at JPEG quality 50, at 0.9 and 1.1 of its size
or at half of it correlates by 0.97 and more; different plots, pages, shapes and digit scenes within 10 bits by 0.91 at
most.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

DISTANCE = 8  # bits; the default of what is near

_COPY = (36, 32)  # width, height of the small copy in cells
_RISE = 2.0  # of 255
_CORRELATION = 0.95  # of two small copies, at least
_EVEN = 1.0  # of 255, standard deviation: below it a picture has nothing that could correlate
_CHUNK = 1 << 22  # hashes compared at once
_COPIES = 1 << 12  # copies compared at once


class PictureHash(NamedTuple):
    """What is kept of a picture.

    Attributes:
      digest: sha256 of size and pixels, upright and in RGB.
      bits: the perceptual hash.
      copy: `[32, 36]` uint8, grey.
    """

    digest: bytes
    bits: int
    copy: np.ndarray


def hash_picture(image: Image.Image) -> PictureHash:
    """Of a picture as `images.decode` returns it."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    copy = np.asarray(image.convert("L").resize(_COPY, Image.Resampling.BOX))
    cells = copy.reshape(8, 4, 9, 4).mean(axis=(1, 3))
    rises = np.diff(cells, axis=1) >= _RISE
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
    edges = np.linspace(0, 64, distance + 2).astype(np.uint64)
    masks = [np.uint64((1 << int(high)) - (1 << int(low))) for low, high in itertools.pairwise(edges)]
    for band, mask in enumerate(masks):
        order = np.argsort(right & mask, kind="stable")
        keys = (right & mask)[order]
        first = np.searchsorted(keys, left & mask, "left")
        counts = np.searchsorted(keys, left & mask, "right") - first
        totals = np.concatenate([[0], np.cumsum(counts)])
        begin = 0
        while begin < len(left):
            # As many rows as make a chunk of pairs, one at least.
            end = max(int(np.searchsorted(totals, totals[begin] + _CHUNK, "right")) - 1, begin + 1)
            rows = np.arange(begin, end)
            pair_rows = np.repeat(rows, counts[rows])
            within = np.arange(len(pair_rows)) - np.repeat(totals[rows] - totals[begin], counts[rows])
            columns = order[first[pair_rows] + within]
            differing = left[pair_rows] ^ right[columns]
            distances = np.bitwise_count(differing)
            kept = distances <= distance
            for earlier in masks[:band]:  # found there
                kept &= (differing & earlier) != 0
            yield pair_rows[kept], columns[kept], distances[kept]
            begin = end


def near_pictures(
    left: Sequence[PictureHash], right: Sequence[PictureHash], distance: int = DISTANCE
) -> Iterator[tuple[int, int, int]]:
    """Places of all near pairs, with the number of bits that differ. A picture of one colour is near to none."""
    if not left or not right:
        return
    bits = [np.array([picture.bits for picture in side], np.uint64) for side in (left, right)]
    copies = [np.stack([picture.copy.ravel() for picture in side]) for side in (left, right)]
    for rows, columns, distances in near_bits(*bits, distance):
        for start in range(0, len(rows), _COPIES):
            part = slice(start, start + _COPIES)
            alike = _correlate(copies[0][rows[part]], copies[1][columns[part]]) >= _CORRELATION
            found = (rows[part][alike], columns[part][alike], distances[part][alike])
            yield from zip(*(column.tolist() for column in found), strict=True)


def _correlate(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`[K]` correlation of each two of `[K, cells]` copies; 0 for an even one."""
    centred = [side - side.mean(axis=1, keepdims=True, dtype=np.float32) for side in (left, right)]
    spreads = [np.sqrt(np.square(side).mean(axis=1)) for side in centred]
    product = np.einsum("kc,kc->k", *centred) / left.shape[1]
    even = np.minimum(*spreads) < _EVEN
    return np.where(even, 0, product / np.maximum(spreads[0] * spreads[1], _EVEN**2))
