"""CLEVR-Math and GeoQA170K as LLaVA-OneVision-Data ships them: parquet tables with `id`, `image`, `conversations`.

The folder holds the tables, or the sub-folder of the data set's configuration does:

    CLEVR-Math(MathV360K)/train-00000-of-00002.parquet     geo170k(qa)/train-00000-of-00001.parquet

CLEVR-Math may have CLEVR's own `CLEVR_train_scenes.json` beside it (in `scenes/` or `CLEVR_v1.0/scenes/` too): the
instructions that its pictures were made from, which the paper passes to the captioner (section 2, step 2).
"""

import pathlib
import re
import string
from collections.abc import Iterator

from data_prep.drafts import Draft, SetAside
from data_prep.golds import repair_digit, repair_letters
from data_prep.sources.entries import Entry, read_json, read_tables
from data_prep.sources.reading import name_part, only_turn, read_entries, text
from vlaa_jax.errors import InputError

_FIELDS = ("id", "image", "conversations")
_SCENES = ("CLEVR_train_scenes.json", "scenes/CLEVR_train_scenes.json", "CLEVR_v1.0/scenes/CLEVR_train_scenes.json")
_SCENE_NAME = re.compile(r"CLEVR_[a-z]+_\d{6}")
# What instructs the reader of a question varies ("Hint: ...", "First perform reasoning, ..."); what follows does not.
_QUESTION = re.compile(r"^[ \t]*Question:", re.MULTILINE)
_OPTIONS = re.compile(r"^[ \t]*Choices:[ \t]*$", re.MULTILINE)
_OPTION = re.compile(r"([A-Z])\s*[:.)]\s*(\S.*)")


def read_clevr_math(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Counting questions about CLEVR's scenes; the gold is an integer.

    Raises:
      InputError: the folder or its files are not of this form.
    """
    scenes = _read_scenes(folder)

    def identify(entry: Entry) -> str:
        return f"clevr_math-{_scene_name(entry) or name_part(entry.fields['id'], 'id')}"

    def to_draft(entry: Entry, name: str) -> Draft:
        question, answer = only_turn(entry.fields["conversations"])
        gold = repair_digit(answer)
        return Draft(
            id=name,
            source="clevr_math",
            image=entry.fields["image"],
            question=_bare_question(question),
            gold=gold.text,
            verifier="digit",
            context=scenes.get(_scene_name(entry), ""),
            metadata={"origin": entry.place, "repairs": list(gold.repairs)},
        )

    yield from read_entries("clevr_math", _rows(folder, "CLEVR-Math(MathV360K)"), _FIELDS, identify, to_draft)


def read_geoqa170k(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Geometry questions with options; the gold is the letter after the last `Answer:` of the solution.

    Raises:
      InputError: the folder or its files are not of this form.
    """

    def identify(entry: Entry) -> str:
        return f"geoqa170k-{name_part(entry.fields['id'], 'id')}"

    def to_draft(entry: Entry, name: str) -> Draft:
        question, solution = only_turn(entry.fields["conversations"])
        question = _bare_question(question)
        choices = _choices(question)
        _, stated, answer = solution.rpartition("Answer:")
        if not stated and len(answer) > len("(A)."):
            raise InputError("no answer: the solution does not end with `Answer:` and a letter")
        gold = repair_letters(answer.strip())
        return Draft(
            id=name,
            source="geoqa170k",
            image=entry.fields["image"],
            question=question,
            gold=gold.text,
            verifier="mcq",
            choices=choices,
            metadata={"origin": entry.place, "repairs": list(gold.repairs)},
        )

    yield from read_entries("geoqa170k", _rows(folder, "geo170k(qa)"), _FIELDS, identify, to_draft)


def _rows(folder: pathlib.Path, configuration: str) -> Iterator[Entry]:
    for home in (folder / configuration, folder):
        if tables := sorted(home.glob("*.parquet")):
            return read_tables(folder, tables)
    raise InputError(f"{folder} has no *.parquet, neither itself nor in {configuration}")


def _bare_question(question: str) -> str:
    return text(_QUESTION.split(question, maxsplit=1)[-1], "question")


def _choices(question: str) -> tuple[str, ...]:
    _, *options = _OPTIONS.split(question)
    if len(options) != 1:
        raise InputError("no options: the question has no one line `Choices:` with options below")
    found = [_OPTION.fullmatch(line.strip()) for line in options[0].strip().splitlines()]
    if not all(found) or "".join(option[1] for option in found) != string.ascii_uppercase[: len(found)]:
        raise InputError("options out of order: expected lines `A: ...`, `B: ...` and so on")
    return tuple(option[2] for option in found)


def _scene_name(entry: Entry) -> str:
    """`CLEVR_train_027977.png`, which ids of the released files end with; '' where the row names no scene."""
    for value in (entry.fields["id"], entry.fields.get("image_name")):
        if isinstance(value, str) and (found := _SCENE_NAME.search(value)):
            return f"{found[0]}.png"
    return ""


def _read_scenes(folder: pathlib.Path) -> dict[str, str]:
    """Words for each scene by picture name, some 250 bytes each; none without the file."""
    path = next((folder / name for name in _SCENES if (folder / name).is_file()), None)
    scenes = {}
    for entry in read_json(path, "scenes") if path else ():
        try:
            objects = [
                " ".join(text(item[name], name) for name in ("size", "color", "material", "shape"))
                for item in entry.fields["objects"]
            ]
            scenes[text(entry.fields["image_filename"], "image_filename")] = (
                f"The scene was made of these objects: {', '.join(objects)}."
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{entry.place}: not a scene of CLEVR, which has image_filename and objects with size, color, material "
                f"and shape ({error!r}); found {', '.join(entry.fields) or entry.problem}"
            ) from None
    return scenes
