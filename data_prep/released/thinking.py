"""Entries of VLAA-Thinking's two released files as records.

The SFT file has `image`, `question`, `answer` (`<think>...</think><answer>...</answer>`) and sometimes `gt`; the RL
file `id`, `image`, `question`, `gt`, `verifier_type`, `caption` and `meta`, where `meta.ds_answer` is the trace.
"""

import dataclasses
import pathlib
import re
import string
from collections.abc import Mapping
from typing import Any

from data_prep import golds
from data_prep.released import boxes, choices, fields, folders
from data_prep.released.reading import Entry, FileKind
from data_prep.released.report import DAMAGED, FIELD, GOLD, SOURCE, UNKNOWN, Outcome, Skip
from data_prep.released.routing import Route, route
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record, check_record
from vlaa_jax.rewards import MathPool, check_gold

# Repairs that are none of a gold's text.
META_AS_TEXT = "meta kept as text"
NO_TRACE = "no think tags"
IMAGE_MARKS = "image marks taken out"
OPTIONS_UNKNOWN = "options not in the question, letters in their place"
UNPADDED = "box of the padded square"
# SFT reads no verifier, so such a record is worth keeping; it can never be scored wrongly as what it is not.
OPEN_ENDED = "open-ended, since its verifier cannot read the gold"

_LONGEST_NAME = 4096
_TRACE = re.compile(r"(?:<think>)?(?P<trace>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FEWEST_LETTERS = 4


@dataclasses.dataclass(frozen=True)
class Converter:
    """Makes a record of an entry; safe between threads.

    Attributes:
      kind: of the file, `sft` or `rl`.
      folder: of the pictures.
      readings: how the boxes of a source are read.
      pool: math workers.
    """

    kind: FileKind
    folder: pathlib.Path
    readings: Mapping[str, boxes.Reading]
    pool: MathPool | None = None

    def route(self, entry: Entry) -> tuple[str, str, Route]:
        """Id, '' for none, address of the picture, and source and verifier.

        Raises:
          Skip: they cannot be told.
        """
        if entry.problem:
            raise Skip(DAMAGED, entry.problem)
        image = folders.address(self.folder, fields.text(entry.fields, "image", _LONGEST_NAME))
        identity = entry.fields.get("id")
        identity = fields.checked(str(identity), "id", _LONGEST_NAME) if isinstance(identity, str | int) else ""
        verifier_type = entry.fields.get("verifier_type")
        if isinstance(verifier_type, str):
            fields.checked(verifier_type, "verifier_type", _LONGEST_NAME)
        return identity, image, route(identity, image, verifier_type)

    def picture(self, entry: Entry) -> str:
        """Address of the entry's picture.

        Raises:
          Skip: it names none.
        """
        return self.route(entry)[1]

    def box(self, entry: Entry) -> tuple[str, boxes.Numbers] | None:
        """Source and numbers of an entry whose gold is a box that the box verifier will read.

        Raises:
          Skip: its fields are damaged.
        """
        way = self.route(entry)[2]
        if way.verifier != "iou":
            return None
        numbers = boxes.numbers(self._gold(entry.fields, split(_optional(entry.fields.get("answer")))[1]))
        return (way.source, numbers) if numbers else None

    def __call__(self, entry: Entry) -> Outcome:
        """The record, or why there is none."""
        identity, source, remarks = f"line {entry.number}", UNKNOWN, ()
        try:
            given, image, way = self.route(entry)
            source, remarks = way.source or UNKNOWN, way.remarks
            identity = given or f"{source}-{entry.number:06d}"
            if not way.verifier:
                raise Skip(SOURCE, f"neither the id nor the folder of {image} names a source, nor is there a verifier")
            record, repairs = self._record(entry.fields, identity, image, source, way.verifier)
            return Outcome(identity, source, record, None, repairs, remarks)
        except Skip as skip:
            return Outcome(identity, source, None, skip.reason, (), remarks)

    def _record(
        self, entry: dict[str, Any], identity: str, image: str, source: str, verifier: str
    ) -> tuple[Record, tuple[str, ...]]:
        repairs: list[str] = []
        question = fields.text(entry, "question", fields.LONGEST_QUESTION).strip()
        if question.count("<image>") > 1:
            question = question.replace("<image>", "").strip()
            repairs.append(IMAGE_MARKS)
        meta, readable = fields.meta(entry.get("meta"))
        if not readable:
            repairs.append(META_AS_TEXT)
        distilled = meta.pop("ds_answer", "")
        solution = fields.text(entry, "answer") if self.kind == "sft" else _optional(distilled)
        trace, final = split(solution)
        if solution and not trace:
            repairs.append(NO_TRACE)
        original = self._gold(entry, final)
        if not original:
            raise Skip(GOLD, "there is no gt, and no answer to take one from")

        reading, gold = self.readings.get(source, boxes.Reading()), original
        if reading.padded:
            if verifier == "iou" and (box := boxes.numbers(gold)):
                gold = boxes.written(box)
            size, before = folders.picture_size(self.folder, image), (question, trace, gold)
            question, trace, gold = (boxes.unpadded(text, size) for text in before)
            if (question, trace, gold) != before:
                repairs.append(UNPADDED)
        repaired = _repaired(verifier, gold, f"{question}\n{_optional(meta.get('text_question'))}")
        repairs += repaired.repairs
        options = choices.parse(question) if verifier == "mcq" else ()
        if verifier == "mcq" and not options:
            options = _letters(repaired.text)
            repairs.append(OPTIONS_UNKNOWN)
        if any(tag in text for tag in _TAGS for text in (trace, repaired.text)):
            raise Skip(FIELD, "the trace or the gold holds tags of the format")
        record = Record(
            id=identity,
            images=(),
            question=question,
            answer=repaired.text,
            verifier=verifier,
            choices=options,
            box_space=reading.space if verifier == "iou" else "",
            trace=trace,
            source=source,
        )
        record = self._readable(record, repairs)
        metadata = {
            "image": image,
            "caption": _optional(entry.get("caption")),
            "meta": meta,
            "final": answer_text(final),
            "gold": original,
            "repairs": repairs,
        }
        metadata = {name: value for name, value in metadata.items() if value and value != record.answer}
        picture = folders.read_picture(self.folder, image)
        return dataclasses.replace(record, images=(picture,), metadata=metadata), tuple(repairs)

    def _gold(self, entry: dict[str, Any], final: str) -> str:
        """`gt`, else the final text's first box (one in the trace may be any step's), else the SFT file's answer."""
        return fields.gold(entry) or golds.first_box(final) or (answer_text(final) if self.kind == "sft" else "")

    def _readable(self, record: Record, repairs: list[str]) -> Record:
        """The record, whose verifier reads its gold."""
        try:
            check_record(record)
            # A box belongs to the one picture, which is read last.
            check_gold(dataclasses.replace(record, images=(b"",)), pool=self.pool)
            return record
        except InputError as error:
            if self.kind == "rl":
                raise Skip(GOLD, str(error).removeprefix(f"record {record.id!r}: ")) from None
        repairs.append(OPEN_ENDED)
        return dataclasses.replace(record, verifier="open_ended", choices=(), box_space="")


def split(solution: str) -> tuple[str, str]:
    """Trace, '' for none, and what follows it."""
    match = _TRACE.fullmatch(solution.strip())
    return (match["trace"].strip(), match["rest"].strip()) if match else ("", solution.strip())


def answer_text(final: str) -> str:
    """What stands between the answer tags, or all of it where there are none."""
    match = _ANSWER.search(final)
    return (match[1] if match else final).strip()


def _repaired(verifier: str, gold: str, question: str) -> golds.Repaired:
    match verifier:
        case "digit":
            return golds.repair_digit(gold)
        case "mcq":
            return golds.repair_letters(gold)
        case "math":
            return golds.repair_math(gold, question)
        case _:
            return golds.Repaired(gold.strip())


def _letters(gold: str) -> tuple[str, ...]:
    """Letters as options of a question whose options are in its picture: A to D, or to the gold."""
    last = string.ascii_uppercase.find(gold) if len(gold) == 1 else 0
    return tuple(string.ascii_uppercase[: max(last + 1, _FEWEST_LETTERS)])


def _optional(value: Any) -> str:
    """A text that need not be there."""
    return fields.checked(value, "a text of the entry") if isinstance(value, str) else ""
