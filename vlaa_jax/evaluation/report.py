"""`report.html`: what a run has learned, in one file that opens offline, on a phone and on a desk, light or dark."""

import dataclasses
import html
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from vlaa_jax.evaluation.chart import Curve, html_curve
from vlaa_jax.evaluation.page import BOXES, Box, html_legend, html_page, html_picture
from vlaa_jax.evaluation.tables import Table, html_table

_LARGEST_SIDE = 800  # pixels; larger pictures are stored smaller
_FOLDED = 1200  # characters of reasoning above which its end is folded away
_SHOWN = 700


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
            if box.label not in BOXES or len(box.corners) != 4 or not 0 <= box.image < len(self.images):
                raise ValueError(
                    f"transcript {self.id}: {box} needs a label of {BOXES}, 4 corners and one of the images"
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
    page = html_page(title, summary_lines, {name: body for name, body in sections.items() if body})
    pathlib.Path(path).write_text(page, encoding="utf-8", errors="replace")


def _transcripts(transcripts: Sequence[Transcript], note: str) -> str:
    note = f"<p class='note'>{html.escape(note)}</p>" if note else ""
    return note + "\n".join(map(_transcript, transcripts))


def _transcript(transcript: Transcript) -> str:
    boxes = transcript.drawn()
    pictures = "".join(
        html_picture(
            image,
            [box for box in boxes if box.image == index],
            f"{transcript.id}, image {index + 1}",
            largest_side=_LARGEST_SIDE,
        )
        for index, image in enumerate(transcript.images)
    )
    return (
        f"<article><div class='pictures'>{pictures}{html_legend(boxes)}</div><div class='words'>"
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
