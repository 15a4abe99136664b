"""Bounding boxes and the coordinate spaces they are written in.

Coordinates are continuous: a box from 0 to 1 is 1 wide. (The pixel convention that adds 1 to each side gives two equal
normalised boxes an overlap of 0.)
"""

import dataclasses

SPACES = ("normalised", "pixels", "thousand")


@dataclasses.dataclass(frozen=True)
class Box:
    """An axis-parallel box: left, top, right, bottom.

    Attributes:
      space: `normalised` (0 to 1 over the image), `thousand` (0 to 1000 over the image) or `pixels` (of one image).
    """

    x1: float
    y1: float
    x2: float
    y2: float
    space: str

    @property
    def proper(self) -> bool:
        """Whether right lies beyond left and bottom beyond top."""
        return self.x2 > self.x1 and self.y2 > self.y1

    @property
    def area(self) -> float:
        return (self.x2 - self.x1) * (self.y2 - self.y1) if self.proper else 0.0

    def within(self, size: tuple[int, int]) -> bool:
        """Whether the box lies inside an image of that (width, height) in pixels."""
        width, height = extent(self.space, size)
        return (
            0 <= min(self.x1, self.x2)
            and max(self.x1, self.x2) <= width
            and (0 <= min(self.y1, self.y2) and max(self.y1, self.y2) <= height)
        )


def extent(space: str, size: tuple[int, int]) -> tuple[float, float]:
    """Width and height, in units of `space`, of an image of `size` (width, height) pixels."""
    if space == "normalised":
        return 1.0, 1.0
    return (1000.0, 1000.0) if space == "thousand" else size


def convert(box: Box, space: str, *, size: tuple[int, int], new_size: tuple[int, int]) -> Box:
    """The same part of the picture in another space, on the same picture at another size.

    Args:
      box: a box on the picture at `size` (width, height) pixels.
      space: one of `SPACES`.
      size: what pixels of `box` count.
      new_size: what pixels of the result count.
    """
    width, height = extent(box.space, size)
    new_width, new_height = extent(space, new_size)
    xs = (x * new_width / width for x in (box.x1, box.x2))
    ys = (y * new_height / height for y in (box.y1, box.y2))
    x1, x2, y1, y2 = *xs, *ys
    return Box(x1, y1, x2, y2, space)


def intersection_over_union(a: Box, b: Box) -> float:
    """Area of the intersection over area of the union, in [0, 1]; 0 when a box is reversed or has no area.

    Raises:
      ValueError: the boxes are in different spaces.
    """
    if a.space != b.space:
        raise ValueError(f"boxes in different spaces: {a.space} and {b.space}")
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if not (a.proper and b.proper and width > 0 and height > 0):
        return 0.0
    intersection = width * height
    union = a.area + b.area - intersection
    # Areas of absurdly small or large boxes leave the range of floats: no overlap worth a reward.
    return min(intersection / union, 1.0) if 0 < union < float("inf") else 0.0
