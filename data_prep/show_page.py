"""The page of `show`: records with their pictures, texts and where they came from."""

import html
import io
import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.page import Box, html_legend, html_page, html_picture
from vlaa_jax.processing.images import read_size
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.rewards import box, iou

_LARGEST_SIDE = 640  # pixels; larger pictures are stored smaller
_OPEN = 800  # characters; longer texts are folded
_LONGEST = 50_000  # characters of one text on the page
_CELL = 100  # characters; longer metadata are texts that fold, not rows
# Texts that a build or an import leaves in the metadata, in the order in which they came about.
_STEPS = ("text_question", "caption", "distilled", "rewritten", "final")

# Control characters, marks that turn the direction of text or have no width, half surrogate pairs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_STEP = re.compile(r"(?=\bStep \d+\s*[:.])")

STYLE = """
article { grid-template-columns: minmax(0, 420px) minmax(0, 1fr); }
article.plain { grid-template-columns: minmax(0, 1fr); }
.pictures > svg { max-height: 640px; background: var(--tint); }
.pictures .note { margin: 0 0 12px; }
.pictures > :last-child { margin-bottom: 0; }
.id { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 6px; }
.id b { margin: 0; }
.choices { list-style: none; margin: 0 0 8px; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 20px; }
.choices li { overflow-wrap: anywhere; white-space: pre-wrap; }
.choices b { color: var(--quiet); font-weight: 500; margin-right: 6px; }
.choices .right { font-weight: 600; }
.choices .right b { color: var(--gold); font-weight: 700; }
.words details { background: var(--tint); border-radius: 8px; padding: 8px 12px; margin: 0 0 8px; }
.words details .text { margin-top: 6px; }
summary small { color: var(--quiet); margin-left: 6px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 14px; margin: 12px 0 0;
  font-size: .8125rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.wrong { color: var(--before); font-size: .875rem; }
.steps { margin: 8px 0 0; padding: 0; list-style: none; }
.steps li { background: var(--tint); border-radius: 8px; padding: 8px 12px; margin: 0 0 8px; }
.value { display: flex; align-items: center; gap: 10px; color: var(--quiet); font-size: .8125rem; margin-top: 6px;
  font-variant-numeric: tabular-nums; }
.value span { flex: 1; max-width: 240px; height: 8px; border-radius: 4px; background: var(--rule); overflow: hidden; }
.value i { display: block; height: 100%; background: var(--after); }
.judged .value b { color: var(--ink); }
@media (max-width: 760px) {
  article { grid-template-columns: minmax(0, 1fr); }
  .pictures { display: block; }
  .pictures > svg { width: 100%; max-height: 420px; }
}
"""


def visible(text: str) -> str:
    """The text with every character that hides, or turns what stands behind it, as its code: `[U+202E]`."""
    return _HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def steps(process: str) -> list[str]:
    """A solution cut before every `Step 2:`; joined they are the solution again."""
    return [part for part in _STEP.split(process) if part.strip()] or [process]


def page(
    title: str,
    summary_lines: Sequence[str],
    records: Sequence[Record | ProcessRecord],
    values: Sequence[Mapping[str, float]] = (),
) -> str:
    """The whole page; equal input gives equal bytes.

    Args:
      title: of the page.
      summary_lines: which records these are.
      records: in order.
      values: for every process record, values of its question's solutions by their stripped text.
    """
    if values:
        articles = [_article(record, _process(record, known)) for record, known in zip(records, values, strict=True)]
    else:
        articles = [_article(record, _record(record), _gold_boxes(record)) for record in records]
    return html_page(
        visible(title), [visible(line) for line in summary_lines], {"Records": "\n".join(articles)}, style=STYLE
    )


def _article(record: Record | ProcessRecord, words: str, boxes: Sequence[Box] = ()) -> str:
    pictures = "".join(
        _picture(encoded, [box for box in boxes if box.image == number], f"{record.id}, picture {number + 1}")
        for number, encoded in enumerate(record.images)
    )
    pictures = f"<div class='pictures'>{pictures}{html_legend(boxes)}</div>" if record.images else ""
    return f"<article{'' if record.images else ' class=plain'}>{pictures}<div class='words'>{words}</div></article>"


def _picture(encoded: bytes, boxes: Sequence[Box], name: str) -> str:
    """A picture with what it is; one that cannot be decoded is named, since this page is where one looks for such."""
    try:
        shown = html_picture(encoded, boxes, visible(name), largest_side=_LARGEST_SIDE)
    except InputError as error:
        return f"<p class='wrong'>{_text(f'{name}: {error}')}</p>"
    image = Image.open(io.BytesIO(encoded))
    return f"{shown}<p class='note'>{image.width} × {image.height} {image.format}, {len(encoded) / 1000:,.0f} kB</p>"


def _gold_boxes(record: Record) -> list[Box]:
    """The gold box of an `iou` record in pixels of the stored picture; none where it cannot be read."""
    if record.verifier != "iou":
        return []
    try:
        gold = iou.read_gold(record.answer, record.box_space)
        number = iou.box_image(record.metadata, len(record.images))
        size = read_size(record.images[number])
    except InputError:
        return []
    gold = box.convert(gold, "pixels", size=size, new_size=size)
    return [Box("gold", (gold.x1, gold.y1, gold.x2, gold.y2), number)]


def _record(record: Record) -> str:
    choices = "".join(
        _choice(string.ascii_uppercase[number : number + 1] or str(number + 1), text, record.answer.strip())
        for number, text in enumerate(record.choices)
    )
    texts = {"trace": record.trace} if record.trace else {}
    rows = {"source": record.source}
    if record.box_space:
        rows["box space"] = record.box_space
    for name in sorted(record.metadata, key=lambda name: (_STEPS.index(name) if name in _STEPS else len(_STEPS), name)):
        value = record.metadata[name]
        text = _flat(value)
        long = name in _STEPS or len(text) > _CELL or "\n" in text
        (texts if long else rows)[name] = text
    return (
        _head(record.verifier, record)
        + (f"<ul class='choices'>{choices}</ul>" if choices else "")
        + f"<p class='gold' dir='auto'><span>gold</span> {_text(record.answer)}</p>"
        + "".join(_fold(name, text, unfolded=name == "trace") for name, text in texts.items())
        + _rows(rows)
    )


def _process(record: ProcessRecord, values: Mapping[str, float]) -> str:
    """The steps of a solution, each with its value: the last has the record's, others their own record's."""
    parts = steps(record.process)
    items = []
    for number, part in enumerate(parts, 1):
        last = number == len(parts)
        value = record.value if last else values.get("".join(parts[:number]).strip())
        items.append(
            f"<li{' class=judged' if last else ''}><div class='text' dir='auto'>{_text(part.strip())}</div>"
            f"{'' if value is None else _value(value)}</li>"
        )
    return _head("process", record) + f"<ol class='steps'>{''.join(items)}</ol>"


def _head(kind: str, record: Record | ProcessRecord) -> str:
    return (
        f"<p class='id'><b>{_text(kind)}</b> {_text(record.id)}</p>"
        f"<p class='question' dir='auto'>{_text(record.question)}</p>"
    )


def _choice(letter: str, text: str, gold: str) -> str:
    return f"<li{' class=right' if letter == gold else ''} dir='auto'><b>{letter}</b>{_text(text)}</li>"


def _value(value: float) -> str:
    width = 100 * min(max(value, 0), 1)
    return f"<div class='value'><span><i style='width:{width:.1f}%'></i></span><b>{value:.2f}</b></div>"


def _fold(name: str, text: str, *, unfolded: bool) -> str:
    is_open = " open" if unfolded and len(text) <= _OPEN else ""
    return (
        f"<details{is_open}><summary>{_text(name)} <small>{len(text):,} characters</small></summary>"
        f"<div class='text' dir='auto'>{_text(text)}</div></details>"
    )


def _flat(value: Any) -> str:
    """A text as it is, names and their texts or several texts in one line, anything else as JSON."""
    if isinstance(value, str):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [None]
    if not all(isinstance(part, str) for part in parts):
        return json.dumps(value, ensure_ascii=False)
    return ", ".join(f"{name}: {text}" for name, text in value.items()) if isinstance(value, dict) else ", ".join(value)


def _rows(rows: Mapping[str, Any]) -> str:
    cells = "".join(f"<dt>{_text(name)}</dt><dd dir='auto'>{_text(text) or '–'}</dd>" for name, text in rows.items())
    return f"<dl>{cells}</dl>"


def _text(text: str) -> str:
    rest = len(text) - _LONGEST
    end = f" <i>… {rest:,} more characters are not on this page</i>" if rest > 0 else ""
    return html.escape(visible(text[:_LONGEST])) + end
