"""DocVQA (single page) as its challenge ships it: `train_v1.0_withQT.json` and the pages' pictures.

The file is an object whose `data` is a list of questions with `questionId`, `image` (`documents/xnbl0037_1.png`),
`question` and `answers`, spellings of one answer. The newer download keeps it in `spdocvqa_qas/` and the pictures,
without `documents/`, in `spdocvqa_images/`.
"""

import pathlib
from collections.abc import Iterator

from data_prep import pictures
from data_prep.drafts import Draft, SetAside
from data_prep.sources.entries import Entry, find_file, read_json
from data_prep.sources.reading import name_part, read_entries, text, texts

_FIELDS = ("questionId", "image", "question", "answers")
_NAMES = ("train_v1.0_withQT.json", "train_v1.0.json")
_FILES = tuple(f"{home}{name}" for home in ("", "spdocvqa_qas/", "train/") for name in _NAMES)


def read_docvqa(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Questions about pages; the gold is the first spelling, all are in the metadata.

    Raises:
      InputError: the folder or its files are not of this form.
    """

    def identify(entry: Entry) -> str:
        return f"docvqa-{name_part(entry.fields['questionId'], 'questionId')}"

    def to_draft(entry: Entry, name: str) -> Draft:
        image = text(entry.fields["image"], "image")
        page = image.rpartition("/")[2]
        answers = texts(entry.fields["answers"], "answers")
        return Draft(
            id=name,
            source="docvqa",
            image=pictures.locate(folder, (image, f"spdocvqa_images/{page}", f"train/{image}", page)),
            question=text(entry.fields["question"], "question"),
            gold=answers[0],
            verifier="open_ended",
            metadata={"origin": entry.place, "answers": answers},
        )

    entries = read_json(find_file(folder, _FILES), "data")
    yield from read_entries("docvqa", entries, _FIELDS, identify, to_draft)
