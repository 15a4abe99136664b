"""VizWiz VQA as its challenge ships it: `Annotations/train.json` and the pictures of `train.zip`.

The file is a list of `image`, `question`, `answers` (ten of `answer` and `answer_confidence`), `answer_type` and
`answerable`. People who are blind asked; some pictures do not show what they asked for.
"""

import collections
import pathlib
from collections.abc import Iterator
from typing import Any

from data_prep import pictures
from data_prep.drafts import Draft, SetAside
from data_prep.sources.entries import Entry, find_file, read_json
from data_prep.sources.reading import name_part, read_entries, text
from vlaa_jax.errors import InputError

_FIELDS = ("image", "question", "answers")
_FILES = ("train.json", "Annotations/train.json", "annotations/train.json")
# What answerers wrote where the picture does not tell.
_NO_ANSWERS = ("unanswerable", "unsuitable", "unsuitable image")


def read_vizwiz(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Questions about photographs; the gold is the answer that most people gave, of equals the first.

    Questions that most people, or the set's own mark, call unanswerable are set aside: their reference would teach to
    give up. The paper does not say what it did with them; it keeps 6,528 of 20,523.

    Raises:
      InputError: the folder or its files are not of this form.
    """

    def identify(entry: Entry) -> str:
        return f"vizwiz-{name_part(entry.fields['image'], 'image')}"

    def to_draft(entry: Entry, name: str) -> Draft:
        fields = entry.fields
        image = text(fields["image"], "image")
        gold, share = _most_given(fields["answers"])
        if fields.get("answerable") == 0 or gold.casefold() in _NO_ANSWERS:
            raise InputError("unanswerable: by its mark or by most of its answers")
        return Draft(
            id=name,
            source="vizwiz",
            image=pictures.locate(folder, (f"train/{image}", image, f"Images/train/{image}", f"Images/{image}")),
            question=text(fields["question"], "question"),
            gold=gold,
            verifier="open_ended",
            metadata={"origin": entry.place, "agreement": share},
        )

    yield from read_entries("vizwiz", read_json(find_file(folder, _FILES)), _FIELDS, identify, to_draft)


def _most_given(answers: Any) -> tuple[str, float]:
    """The commonest answer, whatever its capitals, and its share; those that the giver was not sure of count half."""
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, dict) for answer in answers):
        raise InputError("wrong type: answers must be a list of objects with answer and answer_confidence")
    votes: collections.Counter[str] = collections.Counter()
    for answer in answers:
        weight = 1.0 if answer.get("answer_confidence") == "yes" else 0.5
        votes[text(answer.get("answer"), "answer").casefold()] += weight
    (commonest, weight), *_ = votes.most_common(1)
    spelling = next(spelled for answer in answers if (spelled := answer["answer"].strip()).casefold() == commonest)
    return spelling, weight / votes.total()
