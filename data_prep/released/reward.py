"""Entries of `vilreward_73k_train.json` as process records (ViLBench, table 3)."""

import dataclasses
import hashlib
import pathlib
import re
from typing import Any

from data_prep.released import fields, folders
from data_prep.released.reading import Entry
from data_prep.released.report import DAMAGED, UNKNOWN, VALUE, Outcome, Skip
from vlaa_jax.processing.records import ProcessRecord

VALUE_AS_TEXT = "value as text"
UNKNOWN_FOLDER = "unknown folder of a picture"


@dataclasses.dataclass(frozen=True)
class PublishedReward:
    """One source of ViLReward-73K.

    Attributes:
      title: for people.
      folder: matches a part of its pictures' paths; the file's own names are not documented, these are guesses.
      questions, records: published numbers.
    """

    title: str
    folder: re.Pattern[str]
    questions: int
    records: int


def _folder(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


PUBLISHED_REWARD = {
    "mavis_geometry": PublishedReward("MAVIS-Geometry", _folder("mavis"), 3_093, 25_829),
    "geoqa170k": PublishedReward("GeoQA170K", _folder("geo_?qa|geo_?170k|geo_?3k"), 8_063, 31_406),
    "clevr_math": PublishedReward("CLEVR-Math", _folder("clevr"), 957, 1_425),
    "a_okvqa": PublishedReward("A-OKVQA", _folder("a?[-_]?okvqa"), 2_044, 9_241),
    "scienceqa": PublishedReward("ScienceQA", _folder("science[-_]?qa|sqa"), 2_769, 5_659),
}

_LONGEST_NAME = 4096
_DIGITS_OF_QUESTION = 12  # hexadecimal


@dataclasses.dataclass(frozen=True)
class Converter:
    """Makes a process record of an entry; safe between threads.

    Attributes:
      folder: of the pictures.
    """

    folder: pathlib.Path

    def picture(self, entry: Entry) -> str:
        """Address of the entry's picture.

        Raises:
          Skip: it names none.
        """
        if entry.problem:
            raise Skip(DAMAGED, entry.problem)
        return folders.address(self.folder, fields.text(entry.fields, "image_path", _LONGEST_NAME))

    def __call__(self, entry: Entry) -> Outcome:
        """The record, or why there is none."""
        identity, source, remarks = f"line {entry.number}", UNKNOWN, ()
        try:
            image = self.picture(entry)
            source = source_of(image)
            if source == UNKNOWN:
                remarks = ((UNKNOWN_FOLDER, image.rpartition("/")[0]),)
            question = fields.text(entry.fields, "question", fields.LONGEST_QUESTION)
            index = entry.fields.get("index")
            index = index if isinstance(index, int) and not isinstance(index, bool) else entry.number
            named = hashlib.sha256(f"{image}\0{question}".encode()).hexdigest()[:_DIGITS_OF_QUESTION]
            identity = f"vilreward-{source}-{named}/{index}"
            process = fields.text(entry.fields, "process")
            value, repairs = _value(entry.fields.get("value"))
            record = ProcessRecord(identity, (folders.read_picture(self.folder, image),), question, process, value)
            return Outcome(identity, source, record, None, repairs, remarks)
        except Skip as skip:
            return Outcome(identity, source, None, skip.reason, (), remarks)


def source_of(image: str) -> str:
    """Key of `PUBLISHED_REWARD` by a picture's path, or `UNKNOWN`."""
    return next((key for key, source in PUBLISHED_REWARD.items() if source.folder.search(image)), UNKNOWN)


def source_of_id(identity: str) -> str:
    """The same of a record's id, as this module writes it."""
    return identity.removeprefix("vilreward-").rpartition("/")[0].rpartition("-")[0]


def _value(value: Any) -> tuple[float, tuple[str, ...]]:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not 0 <= number <= 1:
        raise Skip(VALUE, f"value is {repr(value)[:60]}")
    return number, (VALUE_AS_TEXT,) if isinstance(value, str) else ()
