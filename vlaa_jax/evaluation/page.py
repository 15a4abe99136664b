"""The frame of a page that opens offline, and pictures with boxes on them."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vlaa_jax.evaluation.report_style import STYLE
from vlaa_jax.processing.images import decode

BOXES = ("gold", "before", "after")  # in drawing order; each has its colour and line in the style
_LOSSLESS_SIDE = 320


class Box(NamedTuple):
    """A box to draw: `label` is gold, before or after; left, top, right, bottom in pixels of image number `image`."""

    label: str
    corners: Sequence[float]
    image: int = 0


def html_page(title: str, summary_lines: Sequence[str], sections: Mapping[str, str], *, style: str = "") -> str:
    """The whole page.

    Args:
      title: of the page, as text.
      summary_lines: below the title, as text.
      sections: title and HTML of each part that is not empty; one word each.
      style: rules beside those of all pages.
    """
    links = "".join(f"<a href='#{name.lower()}'>{name}</a>" for name in sections)
    links = f"<nav>{links}</nav>" if len(sections) > 1 else ""
    bodies = "".join(
        f"<section id='{name.lower()}'><h2>{name}</h2>\n{body}\n</section>\n" for name, body in sections.items()
    )
    summary = "".join(f"<p>{html.escape(line)}</p>" for line in summary_lines)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><header><h1>{html.escape(title)}</h1>{summary}{links}</header>\n<main>{bodies}</main></body></html>\n"
    )


def html_picture(encoded: bytes, boxes: Sequence[Box], name: str, *, largest_side: int) -> str:
    """The picture with its boxes, in coordinates of the picture's own pixels whatever size it is stored or shown in.

    Args:
      encoded: image file.
      boxes: on this picture; reversed corners are drawn all the same.
      name: of the picture, for those who do not see it.
      largest_side: in pixels; larger pictures are stored smaller.

    Raises:
      InputError: an image that cannot be decoded.
    """
    image = decode(encoded)
    width, height = image.size
    lossless = max(width, height) <= _LOSSLESS_SIDE
    image.thumbnail((largest_side, largest_side))
    # From the decoded pixels, without EXIF data: a browser must not turn what the policy saw.
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if lossless else {"format": "JPEG", "quality": 88}))
    data = base64.b64encode(buffer.getvalue()).decode()
    parts = [
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{html.escape(name)}'>"
        f"<image href='data:image/{'png' if lossless else 'jpeg'};base64,{data}' width='{width}' height='{height}'/>"
    ]
    for label, corners, _ in sorted(boxes, key=lambda box: BOXES.index(box.label)):
        left, top, right, bottom = (round(float(value), 2) for value in corners)
        x, y, w, h = min(left, right), min(top, bottom), abs(right - left), abs(bottom - top)
        place = f"x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}'"
        parts.append(f"<rect class='halo' {place}/><rect class='{label} edge' {place}><title>{label}</title></rect>")
    return "".join([*parts, "</svg>"])


def html_legend(boxes: Sequence[Box]) -> str:
    """What the boxes' lines mean; nothing where there is no box."""
    key = "<svg viewBox='0 0 18 10' aria-hidden='true'><path class='edge' d='M1 5H17'/></svg>"
    present = [label for label in BOXES if any(box.label == label for box in boxes)]
    legend = "".join(f"<li class='{label}'>{key}{label}</li>" for label in present)
    return f"<ul class='legend'>{legend}</ul>" if legend else ""
