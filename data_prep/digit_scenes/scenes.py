"""Composes a scene: handwritten digits at random places of a coloured ground, with their boxes and place words."""

import dataclasses
import functools
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from data_prep.digit_scenes import glyphs
from vlaa_jax.errors import InputError

# The picture in 3 x 3 equal cells, in reading order: one word each, so one token.
PLACES = ("northwest", "north", "northeast", "west", "centre", "east", "southwest", "south", "southeast")

_MINIMUM_SIDE = 32
_MAXIMUM_SIDE = 40
_JPEG_QUALITY = 90
_GREY_PER_LEVEL = 15
_TINT = 30  # grey levels that red and blue gain from the middle to the border


@dataclasses.dataclass(frozen=True)
class Glyph:
    """One digit of a scene.

    Attributes:
      index: position in the UCI file.
      value: the digit.
      box: its square tile `(x1, y1, x2, y2)`, pixels of the picture; ink touches the upper and lower side.
      place: one of `PLACES`, the cell that holds the tile's centre.
    """

    index: int
    value: int
    box: tuple[int, int, int, int]
    place: str

    @property
    def centre(self) -> tuple[float, float]:
        """Pixels `(x, y)`."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "value": self.value, "box": list(self.box), "place": self.place}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Glyph":
        return cls(entry["index"], entry["value"], tuple(entry["box"]), entry["place"])


@dataclasses.dataclass(frozen=True)
class Look:
    """What distinguishes the pictures of one split.

    Attributes:
      sizes: allowed `(width, height)` in pixels.
      grounds: names of the ground patterns, drawn uniformly.
    """

    sizes: tuple[tuple[int, int], ...]
    grounds: tuple[str, ...]


# 6 x 6 merged tokens: a cell is 2 x 2 of them, and no side is a multiple of the published window of 112.
PLAIN = Look(((168, 168),), ("smooth",))
STRANGE = Look(((168, 168),), ("stripes", "rings"))


def place_of(centre: tuple[float, float], size: tuple[int, int]) -> str:
    """Place word of a point `(x, y)` in a picture of `(width, height)` pixels."""
    column, row = (min(2, int(3 * c / s)) for c, s in zip(centre, size, strict=True))
    return PLACES[3 * row + column]


def reading_order(scene: list[Glyph]) -> list[Glyph]:
    """By row of cells, then from left to right."""
    return sorted(scene, key=lambda glyph: (PLACES.index(glyph.place) // 3, glyph.centre, glyph.index))


def compose(generator: np.random.Generator, indices: list[int], look: Look) -> tuple[bytes, list[Glyph]]:
    """Draws one picture that shows the glyphs `indices`.

    Returns:
      The JPEG file, and the glyphs in reading order.

    Raises:
      InputError: no size of `look` has room for so many glyphs.
    """
    sizes = [size for size in look.sizes if _largest_side(size) >= _MINIMUM_SIDE]
    if not sizes or len(indices) > len(PLACES):
        raise InputError(f"a scene of {len(indices)} digits: {len(PLACES)} at most, and no more than {look.sizes} hold")
    size = sizes[generator.integers(len(sizes))]
    _, labels = glyphs.load_glyphs()
    boxes = _place(generator, len(indices), size)
    scene = [
        Glyph(index, int(labels[index]), box, place_of(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), size))
        for index, box in zip(indices, boxes, strict=True)
    ]
    pixels = _ground(generator, look.grounds[generator.integers(len(look.grounds))], size)
    # Dark ink on a light ground, as on paper: a small policy learns digits, not polarity.
    ink = (generator.uniform(10, 60) + generator.uniform(-15, 15, 3)).clip(0, 255).astype(np.float32)
    for glyph in scene:
        x1, y1, x2, y2 = glyph.box
        coverage = _upscale(generator, glyph.index, x2 - x1)[..., None]
        coverage *= generator.uniform(0.75, 1.0)
        tile = pixels[y1:y2, x1:x2]
        tile += coverage * (ink + generator.uniform(-8, 8, 3).astype(np.float32) - tile)
    pixels += _noise(generator, size)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue(), reading_order(scene)


def _place(generator: np.random.Generator, count: int, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Square tiles, each inside a cell of its own."""
    cell = np.asarray(size) / 3
    boxes = []
    for place in generator.permutation(len(PLACES))[:count].tolist():
        side = int(generator.integers(_MINIMUM_SIDE, _largest_side(size) + 1))
        column_and_row = np.array([place % 3, place // 3])
        first, last = np.ceil(column_and_row * cell), np.floor((column_and_row + 1) * cell) - side
        x, y = generator.integers(first.astype(int), last.astype(int) + 1).tolist()
        boxes.append((x, y, x + side, y + side))
    return boxes


def _largest_side(size: tuple[int, int]) -> int:
    return min(_MAXIMUM_SIDE, min(size) // 3 - 1)  # a cell need not begin on a pixel


def _upscale(generator: np.random.Generator, index: int, side: int) -> np.ndarray:
    """Ink coverage `[side, side]` in [0, 1] of a glyph, slightly slanted, thinner or thicker."""
    slant = generator.uniform(-0.12, 0.12)
    scale = glyphs.SIDE / side
    # Output pixel (x, y) reads the input at (scale * x + shear * (y - middle), scale * y).
    coefficients = (scale, slant * scale, -slant * glyphs.SIDE / 2, 0, scale, 0)
    large = _grey(index).transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    coverage = np.asarray(large, np.float32) / (_GREY_PER_LEVEL * glyphs.INK_LEVELS)
    return np.minimum(coverage, 1) ** generator.uniform(0.7, 1.3)


@functools.cache
def _grey(index: int) -> Image.Image:
    """A glyph as a grey image; the factor lets 16 levels of ink fill a byte."""
    images, _ = glyphs.load_glyphs()
    return Image.fromarray(images[index] * np.uint8(_GREY_PER_LEVEL))


def _ground(generator: np.random.Generator, name: str, size: tuple[int, int]) -> np.ndarray:
    """The picture without digits, float32 `[height, width, 3]`: a grey pattern, redder to the right, bluer downwards.

    The tint says where one is: at the published rotary base of 1e6 the width axis of M-RoPE turns by 0.001 radians over
    such a picture, which a small policy cannot read.
    """
    width, height = size
    level = generator.uniform(170, 205)
    x, y = _coordinates(width, height)
    if name == "smooth":
        coarse = (level + generator.uniform(-20, 20, (3, 3))).astype(np.uint8)
        grey = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32)
    else:
        if name == "stripes":
            angle, period = generator.uniform(0, math.pi), generator.uniform(12, 40)
            phase = (math.cos(angle) * x + math.sin(angle) * y) * np.float32(2 * math.pi / period)
        else:  # rings
            centre, period = generator.uniform((0, 0), size), generator.uniform(14, 44)
            phase = np.hypot(x - np.float32(centre[0]), y - np.float32(centre[1])) * np.float32(2 * math.pi / period)
        grey = np.float32(level) + np.sin(phase) * np.float32(generator.uniform(10, 25))
    pixels = np.repeat(grey[..., None], 3, axis=2)
    pixels[..., 0] += _TINT * (2 * x / width - 1)
    pixels[..., 2] += _TINT * (2 * y / height - 1)
    return pixels


@functools.cache
def _coordinates(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates x `[1, width]` and y `[height, 1]`, float32."""
    return np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]


def _noise(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Grey noise of a few levels, `[height, width, 1]`."""
    return generator.integers(-4, 5, (size[1], size[0], 1), dtype=np.int8)
