"""The box verifier: the raw intersection over union, as in VLAA-Thinking (section 4.1), no threshold.

Gold and answer are read in the record's `box_space`, which is never guessed:

* `normalised` 0 to 1 and `thousand` 0 to 1000: the same numbers on the stored and on the resized image.
* `pixels`: the gold in pixels of the stored image, the answer in pixels of the resized image that the policy saw (what
  Qwen2.5-VL emits). The gold is converted by the `Resize` of that image: the first one, unless the record's metadata
  names another by its index (`box_image`, counted from 0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlaa_jax.errors import InputError
from vlaa_jax.rewards.box import SPACES, Box, convert, intersection_over_union
from vlaa_jax.rewards.extract import normalise
from vlaa_jax.rewards.verdict import Verdict, invalid

if TYPE_CHECKING:
    from vlaa_jax.processing.images import Resize

# A number by itself: not the 2 of `bbox_2d`, not parts of 1.2.3, 1/2, 50% or 10-20.
_NUMBER = re.compile(r"(?<![\w.+\-/*^])[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w|\.\d|\s*[/%*^])")
_NOT_FINITE = re.compile(r"(?<![A-Za-z])(?:nan|inf|infinity)(?![A-Za-z])|∞", re.IGNORECASE)
# A box that overlaps the gold by less than this, but by more than that when read in another space, is suspect.
_SUSPECT_BELOW, _SUSPECT_ABOVE = 0.1, 0.3
_UNIT_IMAGE = (1, 1)


def read(text: str, space: str) -> Box | None:
    """The box of a text with exactly four finite numbers, left, top, right, bottom, in any brackets; else None."""
    text = normalise(text)
    numbers = [float(number) for number in _NUMBER.findall(text)]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)) or _NOT_FINITE.search(text):
        return None
    return Box(*numbers, space)


def read_gold(gold: str, space: str) -> Box:
    """As `read`; raises InputError unless it is one box with area inside the range of a known space."""
    if space not in SPACES:
        raise InputError(f"box_space is {space!r}, the iou verifier expects one of {', '.join(SPACES)}")
    box = read(gold, space)
    if box is None:
        raise InputError(f"gold answer {gold!r} is not one box of four finite numbers")
    if not box.proper:
        raise InputError(f"gold answer {gold!r} is reversed or has no area; expected left, top, right, bottom")
    largest = math.inf if space == "pixels" else 1000 if space == "thousand" else 1
    if min(box.x1, box.y1) < 0 or max(box.x2, box.y2) > largest * (1 + 1e-6):
        raise InputError(f"gold answer {gold!r} lies outside the range of box_space {space!r}")
    return box


def box_image(metadata: Mapping[str, Any], images: int) -> int:
    """Index of the image that the box belongs to; raises InputError when the record has no such image."""
    index = metadata.get("box_image", 0)
    if type(index) is not int or not 0 <= index < images:
        raise InputError(f"metadata `box_image` is {index!r}, expected the index of one of {images} images")
    return index


def judge(
    answer: str, gold: str, space: str, resizes: Sequence[Resize] = (), metadata: Mapping[str, Any] | None = None
) -> Verdict:
    """The intersection over union of answer and gold; 0 for a reversed or zero-area answer.

    Args:
      answer: text between the tags.
      gold: four numbers.
      space: the record's `box_space`.
      resizes: how each image of the record was scaled, in order; needed for `pixels`.
      metadata: the record's.
    """
    target = read_gold(gold, space)
    resize = resizes[box_image(metadata or {}, len(resizes))] if resizes else None
    if space == "pixels":
        if resize is None:
            raise InputError("box_space 'pixels' needs the sizes of the images (`resizes`)")
        target = convert(target, "pixels", size=resize.original, new_size=resize.resized)
    box = read(answer, space)
    if box is None:
        return invalid("not_four_numbers")
    overlap = intersection_over_union(box, target)
    size = resize.resized if resize else _UNIT_IMAGE
    suspect = (overlap < _SUSPECT_BELOW or not box.within(size)) and _fits_elsewhere(box, target, resize)
    form = f"[{box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g}]"
    return Verdict(
        valid=True,
        normal_form=form,
        rule="iou" if box.proper else "degenerate",
        score=overlap,
        box_space_suspect=suspect,
    )


def _fits_elsewhere(box: Box, target: Box, resize: Resize | None) -> bool:
    """Whether the same four numbers overlap the target well in a space or image size other than the record's."""
    own_size = resize.resized if resize else _UNIT_IMAGE
    target = convert(target, "normalised", size=own_size, new_size=own_size)
    readings = [("normalised", own_size), ("thousand", own_size)]
    if resize:
        readings += [("pixels", resize.resized), ("pixels", resize.original)]
    for space, size in readings:
        if space == box.space and size == own_size:
            continue
        other = Box(box.x1, box.y1, box.x2, box.y2, space)
        other = convert(other, "normalised", size=size, new_size=size)
        if intersection_over_union(other, target) > _SUSPECT_ABOVE:
            return True
    return False
