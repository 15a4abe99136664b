"""Math PUMA's second stage, subset `Synthesis`: problems in pairs, more in words and more in the picture.

A record has `image_url`, `instruction`, `output` and the same with `_2`, as the authors' training code reads them, in
JSON or JSON Lines. Functions, solids and plane figures were drawn by program (`gen_func-func_sine_...png`).
"""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from data_prep import pictures
from data_prep.drafts import Draft, SetAside
from data_prep.golds import repair_math
from data_prep.sources.entries import Entry, read_json
from data_prep.sources.reading import name_part, read_entries, text
from vlaa_jax.errors import InputError

_FIELDS = ("instruction", "output", "instruction_2", "output_2")


def read_synthesis(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Problems whose picture holds what the question leaves out; `text_question` is the problem in words.

    Of the two sides, the question is the one with a picture, where both have one the one with fewer words. The gold
    stands after `†Answer:` at the end of its solution.

    Raises:
      InputError: the folder or its files are not of this form.
    """
    numbers = itertools.count()

    def identify(entry: Entry) -> str:
        number = next(numbers)
        return f"synthesis-{name_part(entry.fields.get('id', number), 'id')}"

    def to_draft(entry: Entry, name: str) -> Draft:
        (question, image, solution), in_words = _sides(entry.fields)
        gold = repair_math(solution, f"{question}\n{in_words}")
        return Draft(
            id=name,
            source="synthesis",
            image=pictures.locate(folder, _names(image)),
            question=question,
            gold=gold.text,
            verifier="math",
            text_question=in_words,
            metadata={"origin": entry.place, "repairs": list(gold.repairs)},
        )

    entries = itertools.chain.from_iterable(map(read_json, _files(folder)))
    yield from read_entries("synthesis", entries, _FIELDS, identify, to_draft)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    for home in (folder / "Synthesis", folder):
        if found := sorted(path for path in home.glob("*.json*") if path.suffix in (".json", ".jsonl")):
            return found
    raise InputError(f"{folder} has no *.json or *.jsonl, neither itself nor in Synthesis")


def _sides(fields: dict[str, Any]) -> tuple[tuple[str, str, str], str]:
    """Question, picture and solution of the side that is asked; the problem in words."""
    sides = []
    for end in ("", "_2"):
        image = fields.get(f"image_url{end}") or ""
        instruction = text(fields[f"instruction{end}"], f"instruction{end}").replace("<image>", "").strip()
        sides.append((instruction, text(image, f"image_url{end}") if image else "", fields[f"output{end}"]))
    asked, other = sorted(sides, key=lambda side: (not side[1], len(side[0])))
    if not asked[1]:
        raise InputError("no picture: neither side has one")
    if len(other[0]) <= len(asked[0]):
        raise InputError("no problem in words: the other side says no more than the question")
    return (text(asked[0], "instruction"), asked[1], text(asked[2], "output")), other[0]


def _names(image: str) -> tuple[str, ...]:
    image = image.removeprefix("./")
    last = image.rpartition("/")[2]
    return image, f"Synthesis/{image}", f"images/{last}", f"Synthesis/images/{last}", last
