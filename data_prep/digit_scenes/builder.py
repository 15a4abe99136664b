"""Builds the splits of the digit scenes as shards of records."""

import dataclasses
import itertools
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_prep.digit_scenes import glyphs, questions, scenes, traces
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import write_records

VERSION = "1.5.0"

# Each verifier gets at least two of the thirteen parts.
_PARTS = {kind: 2.0 if kind == "describe" else 1.0 for kind in questions.KINDS}
# Coordinates and "is it among them" are what is learnt last.
_HARD = ("box_only", "box_largest", "which_appear")
_MORE_OF_WHAT_IS_HARD = {kind: 3.0 if kind in _HARD else 1.0 for kind in questions.KINDS}
_UNIFORM = dict.fromkeys(questions.KINDS, 1.0)


@dataclasses.dataclass(frozen=True)
class Split:
    """What a split holds.

    Attributes:
      records: number of records.
      glyphs: name of the glyph range, a key of `glyphs.RANGES`.
      digits: least and greatest number of digits of a scene; the two pictures of a comparison share them.
      look: sizes and grounds of the pictures.
      kinds: relative weight of each kind of question; a kind left out does not occur.
      enumerate_share: share of records whose trace lists the digits before it answers, the others answer at once. None:
        no traces, only questions and answers.
      locate_share: share of such lists, in questions on boxes, that give every digit's box.
    """

    records: int
    glyphs: str
    digits: tuple[int, int]
    look: scenes.Look
    kinds: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(_UNIFORM))
    enumerate_share: float | None = None
    locate_share: float = 0.0


SPLITS = {
    # A policy first learns to list what it sees and to conclude from the list, then that one can also answer at once.
    "see": Split(60_000, "train", (2, 6), scenes.PLAIN, _MORE_OF_WHAT_IS_HARD, enumerate_share=1.0, locate_share=0.5),
    "sft": Split(20_000, "train", (2, 6), scenes.PLAIN, enumerate_share=0.3),
    "rl": Split(8_192, "train", (3, 7), scenes.PLAIN),
    "heldout": Split(1_300, "heldout", (3, 7), scenes.PLAIN, _PARTS),
    "harder": Split(1_300, "harder", (8, 9), scenes.STRANGE, _PARTS),
}


def build(
    directory: str | os.PathLike[str], *, seed: int = 0, splits: Mapping[str, Split] = SPLITS, progress: bool = True
) -> None:
    """Writes the splits to `directory`, all or nothing; the same seed and splits give the same bytes.

    Args:
      directory: made by this call; must not exist yet.
      seed: of everything that is drawn. A record depends on (seed, split name, its number, kinds), not on other splits.
      splits: what to build, by name.
      progress: print a line to stderr now and then.

    Raises:
      InputError: the directory exists, or a split names an unknown kind.
    """
    records = {
        name: _with_progress(name, split.records, draw_split(name, split, seed), progress)
        for name, split in splits.items()
    }
    description = f"Handwritten digits on coloured grounds with questions (seed {seed})."
    write_records(directory, records, name="digit_scenes", version=VERSION, description=description)


def draw_split(name: str, split: Split, seed: int) -> Iterator[Record]:
    """The records of one split in order."""
    stream = zlib.crc32(name.encode())
    for index, (kind, turn) in enumerate(_plan(split, np.random.default_rng([seed, stream]))):
        generator = np.random.default_rng([seed, stream, index])
        yield _draw_record(f"{name}-{index:06d}", split, kind, turn, generator, seed)


def _plan(split: Split, generator: np.random.Generator) -> list[tuple[str, int]]:
    """For every record its kind, and how many records of this kind stand before it."""
    unknown = sorted(set(split.kinds) - set(questions.KINDS))
    weights = np.array(list(split.kinds.values()), np.float64)
    if unknown or not weights.sum() > 0 or weights.min() < 0:
        raise InputError(
            f"kinds of a split must be weights >= 0, not all 0, of {', '.join(questions.KINDS)}; "
            f"got {dict(split.kinds)}"
        )
    # Largest remainders: the numbers of records add up and none is off by one or more.
    quotas = split.records * weights / weights.sum()
    counts = np.floor(quotas).astype(int)
    counts[np.argsort(counts - quotas, kind="stable")[: split.records - counts.sum()]] += 1
    kinds = generator.permutation(np.repeat(list(split.kinds), counts)).tolist()
    turns = dict.fromkeys(split.kinds, -1)
    plan = []
    for kind in kinds:
        turns[kind] += 1
        plan.append((kind, turns[kind]))
    return plan


def _draw_record(name: str, split: Split, kind: str, turn: int, generator: np.random.Generator, seed: int) -> Record:
    digits = int(generator.integers(split.digits[0], split.digits[1] + 1))
    draft = questions.KINDS[kind].draft(generator, digits, turn)
    picked = iter(_pick(generator, list(itertools.chain(*draft.values)), split.glyphs))
    images, pictures = [], []
    for values in draft.values:
        image, picture = scenes.compose(generator, list(itertools.islice(picked, len(values))), split.look)
        images.append(image)
        pictures.append(picture)
    question = questions.ask(kind, generator, draft, pictures, turn)
    metadata: dict[str, Any] = {
        "seed": seed,
        "kind": kind,
        "value": question.value,
        "glyphs": [[glyph.to_json() for glyph in picture] for picture in pictures],
    }
    trace = ""
    if split.enumerate_share is not None:
        style = "enumerate" if generator.uniform() < split.enumerate_share else "direct"
        if style == "enumerate" and question.box_space and generator.uniform() < split.locate_share:
            style = "locate"
        metadata["style"] = style
        trace = traces.write_trace(style, kind, question, pictures)
    return Record(
        id=name,
        images=tuple(images),
        question=question.text,
        answer=question.answer,
        verifier=questions.KINDS[kind].verifier,
        choices=question.choices,
        box_space=question.box_space,
        trace=trace,
        source="digit_scenes",
        metadata=metadata,
    )


def _pick(generator: np.random.Generator, values: list[int], name: str) -> list[int]:
    """A glyph of each value, none twice."""
    pools = glyphs.glyphs_by_value(name)
    picked: list[int] = []
    for value in values:
        while (index := pools[value][generator.integers(len(pools[value]))]) in picked:
            pass
        picked.append(index)
    return picked


def _with_progress(name: str, total: int, records: Iterator[Record], progress: bool) -> Iterator[Record]:
    for number, record in enumerate(records, 1):
        yield record
        if progress and (number % 2000 == 0 or number == total):
            print(f"digit scenes, {name}: {number} of {total}", file=sys.stderr, flush=True)
