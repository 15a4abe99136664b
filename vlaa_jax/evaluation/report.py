"""`report.html`: what a run has learned, in one file that opens offline, on a phone and on a desk, light or dark."""

import base64
import dataclasses
import html
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vlaa_jax.evaluation.chart import Curve, html_curve
from vlaa_jax.evaluation.report_style import STYLE
from vlaa_jax.evaluation.tables import Table, html_table

_BOXES = ("gold", "before", "after")  # in drawing order; each has its colour and line in the style
_LARGEST_SIDE = 800  # pixels; larger pictures are stored smaller
_LOSSLESS_SIDE = 320
_FOLDED = 1200  # characters of reasoning above which its end is folded away
_SHOWN = 700


class Box(NamedTuple):
    """A box to draw: `label` is gold, before or after; left, top, right, bottom in pixels of image number `image`."""

    label: str
    corners: Sequence[float]
    image: int = 0


@dataclasses.dataclass(frozen=True)
class Transcript:
    """One held-out question with the policy's completions before and after training.

    Attributes:
      id: of the record.
      kind: of the question.
      question, gold: texts.
      images: encoded image files.
      before, after: completions, tags included.
      reward_before, reward_after: in [0, 1].
      boxes: gold and predicted ones.
    """

    id: str
    kind: str
    question: str
    gold: str
    images: Sequence[bytes]
    before: str
    after: str
    reward_before: float
    reward_after: float
    boxes: Sequence[Box] = ()

    def __post_init__(self) -> None:
        for box in self.drawn():
            if box.label not in _BOXES or len(box.corners) != 4 or not 0 <= box.image < len(self.images):
                raise ValueError(
                    f"transcript {self.id}: {box} needs a label of {_BOXES}, 4 corners and one of the images"
                )

    def drawn(self) -> list[Box]:
        """The boxes, those of a plain tuple too."""
        return [Box(*box) for box in self.boxes]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary_lines: Sequence[str],
    tables: Sequence[Table] = (),
    curves: Sequence[Curve] = (),
    transcripts: Sequence[Transcript] = (),
    transcripts_note: str = "",
    details: Mapping[str, str] | None = None,
) -> None:
    """Writes the page. Equal input gives equal bytes.

    Args:
      title: of the run.
      summary_lines: the result in a few sentences.
      tables: in order; the first is the one to read.
      curves: in order.
      transcripts: in order.
      transcripts_note: how they were drawn.
      details: title and text of parts that are folded away at the end: config, command, hashes.

    Raises:
      InputError: an image that cannot be decoded.
    """
    sections = {
        "Results": "".join(map(html_table, tables)),
        "Curves": f"<div class='curves'>{''.join(map(html_curve, curves))}</div>" if curves else "",
        "Transcripts": _transcripts(transcripts, transcripts_note) if transcripts else "",
        "Details": "".join(
            f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>"
            for name, text in (details or {}).items()
        ),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f"<a href='#{name.lower()}'>{name}</a>" for name in sections)
    bodies = "".join(
        f"<section id='{name.lower()}'><h2>{name}</h2>\n{body}\n</section>\n" for name, body in sections.items()
    )
    summary = "".join(f"<p>{html.escape(line)}</p>" for line in summary_lines)
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{html.escape(title)}</h1>{summary}<nav>{links}</nav></header>\n<main>{bodies}</main></body></html>\n"
    )
    pathlib.Path(path).write_text(page, encoding="utf-8", errors="replace")


def _transcripts(transcripts: Sequence[Transcript], note: str) -> str:
    note = f"<p class='note'>{html.escape(note)}</p>" if note else ""
    return note + "\n".join(map(_transcript, transcripts))


def _transcript(transcript: Transcript) -> str:
    boxes = transcript.drawn()
    pictures = "".join(
        _picture(image, [box for box in boxes if box.image == index], f"{transcript.id}, image {index + 1}")
        for index, image in enumerate(transcript.images)
    )
    key = "<svg viewBox='0 0 18 10' aria-hidden='true'><path class='edge' d='M1 5H17'/></svg>"
    present = [label for label in _BOXES if any(box.label == label for box in boxes)]
    legend = "".join(f"<li class='{label}'>{key}{label}</li>" for label in present)
    legend = f"<ul class='legend'>{legend}</ul>" if legend else ""
    return (
        f"<article><div class='pictures'>{pictures}{legend}</div><div class='words'>"
        f"<p class='id'><b>{html.escape(transcript.kind)}</b> {html.escape(transcript.id)}</p>"
        f"<p class='question'>{html.escape(transcript.question)}</p>"
        f"<p class='gold'><span>gold</span> {html.escape(transcript.gold)}</p>"
        f"<div class='pair'>{_completion('before', transcript.before, transcript.reward_before)}"
        f"{_completion('after', transcript.after, transcript.reward_after)}</div></div></article>"
    )


def _completion(label: str, text: str, reward: float) -> str:
    """The completion as it is, tags made quiet, the answer made loud, the end of a long reasoning folded away."""
    place = text.find("<answer>")
    reasoning, answer = (text, "") if place < 0 else (text[:place], text[place:])
    if len(reasoning) > _FOLDED:
        cut = reasoning.rfind(" ", 0, _SHOWN) + 1 or _SHOWN
        shown, hidden = reasoning[:cut], reasoning[cut:]
        fold = f"<details><summary>… {len(hidden):,} more characters</summary>{_quiet_tags(hidden)}</details>"
        reasoning = _quiet_tags(shown) + fold
    else:
        reasoning = _quiet_tags(reasoning)
    answer = f"<span class='answer'>{_quiet_tags(answer)}</span>" if answer else ""
    empty = "<i>nothing</i>" if not text else ""
    return (
        f"<div class='completion {label}'><h4>{label} <span class='reward'>reward {reward:.2f}</span></h4>"
        f"<div class='text'>{reasoning}{answer}{empty}</div></div>"
    )


def _quiet_tags(text: str) -> str:
    return re.sub(r"&lt;/?(?:think|answer)&gt;", r"<span class='tag'>\g<0></span>", html.escape(text))


def _picture(encoded: bytes, boxes: Sequence[Box], name: str) -> str:
    """The picture with its boxes, in coordinates of the picture's own pixels whatever size it is stored or shown in."""
    from vlaa_jax.processing.images import decode  # seconds: it loads the image processor

    image = decode(encoded)
    width, height = image.size
    lossless = max(width, height) <= _LOSSLESS_SIDE
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    # From the decoded pixels, without EXIF data: a browser must not turn what the policy saw.
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if lossless else {"format": "JPEG", "quality": 88}))
    data = base64.b64encode(buffer.getvalue()).decode()
    parts = [
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{html.escape(name)}'>"
        f"<image href='data:image/{'png' if lossless else 'jpeg'};base64,{data}' width='{width}' height='{height}'/>"
    ]
    for label, corners, _ in sorted(boxes, key=lambda box: _BOXES.index(box.label)):
        left, top, right, bottom = (round(float(value), 2) for value in corners)
        x, y, w, h = min(left, right), min(top, bottom), abs(right - left), abs(bottom - top)
        place = f"x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}'"
        parts.append(f"<rect class='halo' {place}/><rect class='{label} edge' {place}><title>{label}</title></rect>")
    return "".join([*parts, "</svg>"])
