"""The 1,797 handwritten digits of the UCI data set, cut by position into training and two test ranges.

The order is scikit-learn's, in which neighbours often share a writer: the ranges are contiguous and never shuffled, so
that test glyphs are not only new but mostly by other hands.
"""

import functools
import pathlib

import numpy as np

SIDE = 8
INK_LEVELS = 16
RANGES = {"train": range(0, 1200), "heldout": range(1200, 1497), "harder": range(1497, 1797)}

_FILE = pathlib.Path(__file__).with_name("glyphs.npz")


@functools.cache
def load_glyphs() -> tuple[np.ndarray, np.ndarray]:
    """Images `[1797, 8, 8]` uint8 with ink from 0 to 16, and labels `[1797]` uint8, both read-only."""
    with np.load(_FILE) as file:
        images, labels = file["images"], file["labels"]
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


@functools.cache
def glyphs_by_value(name: str) -> tuple[tuple[int, ...], ...]:
    """Positions of the glyphs of each value 0 to 9 inside the range `name` of `RANGES`."""
    _, labels = load_glyphs()
    return tuple(tuple(index for index in RANGES[name] if labels[index] == value) for value in range(10))
