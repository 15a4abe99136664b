"""Coordinates of the released boxes, decided by measuring.

VLAA-Thinking does not say what the numbers count; its figure 4 shows fractions, left, top, right, bottom. LLaVA's own
files, where the COCO and Visual Genome questions come from, have fractions of the picture *padded to a square*, which
its users found out. The two are told apart on oblong pictures: a box inside the picture never touches the padding, a
box in fractions of the picture does so all the time.
"""

import dataclasses
import re
from collections.abc import Sequence

from vlaa_jax.rewards import iou

Numbers = tuple[float, float, float, float]
Size = tuple[int, int]

_FITTING = 0.98  # of the boxes must lie in a space for it to be the file's
_OBLONG = 1.1  # long side over short side
_FEWEST_OBLONG = 50
_ROUNDING = 0.01  # of a padded square's side

_FRACTION = r"\s*(?:0?\.\d+|[01](?:\.\d*)?)\s*"
_BOX = re.compile(rf"\[({_FRACTION}(?:,{_FRACTION}){{3}})\]")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a source's boxes are read.

    Attributes:
      space: the records' `box_space`.
      padded: whether they are fractions of the padded square; they are converted to fractions of the picture.
      boxes: measured.
      oblong: of these on pictures that are no square.
      outside: of these oblong ones outside of the picture if it were padded.
    """

    space: str = "normalised"
    padded: bool = False
    boxes: int = 0
    oblong: int = 0
    outside: int = 0


def numbers(text: str) -> Numbers | None:
    """The four numbers of a gold that is one box, else None."""
    box = iou.read(text, "pixels")
    return (box.x1, box.y1, box.x2, box.y2) if box else None


def written(box: Numbers) -> str:
    """A box as the golds have it."""
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def measure(samples: Sequence[tuple[Numbers, Size]]) -> Reading:
    """Reads a source's boxes.

    Args:
      samples: boxes with the width and height of their pictures in pixels.
    """
    extents = {"normalised": lambda size: (1, 1), "pixels": lambda size: size, "thousand": lambda size: (1000, 1000)}

    def fitting(space: str) -> int:
        return sum(_within(box, (0, 0, *extents[space](size)), 0.0) for box, size in samples)

    space = next((name for name in extents if fitting(name) >= _FITTING * len(samples)), "normalised")
    oblong = [(box, size) for box, size in samples if max(size) >= _OBLONG * min(size)]
    outside = sum(not _within(box, _picture_in_square(size), _ROUNDING) for box, size in oblong)
    padded = space == "normalised" and len(oblong) >= _FEWEST_OBLONG and outside <= (1 - _FITTING) * len(oblong)
    return Reading(space, padded, len(samples), len(oblong), outside)


def unpadded(text: str, size: Size) -> str:
    """The text with each `[x1, y1, x2, y2]` of the padded square in fractions of the picture.

    Args:
      text: any.
      size: width and height of the picture in pixels.
    """
    left, top, right, bottom = _picture_in_square(size)

    def fraction(value: float, start: float, end: float) -> str:
        return f"{min(max((value - start) / (end - start), 0.0), 1.0):.3f}".rstrip("0").rstrip(".")

    def converted(match: re.Match[str]) -> str:
        x1, y1, x2, y2 = map(float, match[1].split(","))
        xs = [fraction(x, left, right) for x in (x1, x2)]
        ys = [fraction(y, top, bottom) for y in (y1, y2)]
        return f"[{xs[0]}, {ys[0]}, {xs[1]}, {ys[1]}]"

    return _BOX.sub(converted, text)


def _picture_in_square(size: Size) -> Numbers:
    """The picture as a box in fractions of the square that it is padded to, in the middle."""
    x, y = ((1 - side / max(size)) / 2 for side in size)
    return x, y, 1 - x, 1 - y


def _within(box: Numbers, outer: tuple[float, ...], tolerance: float) -> bool:
    return (
        min(box[0], box[2]) >= outer[0] - tolerance
        and min(box[1], box[3]) >= outer[1] - tolerance
        and max(box[0], box[2]) <= outer[2] + tolerance
        and max(box[1], box[3]) <= outer[3] + tolerance
    )
