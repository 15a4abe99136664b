"""ALLaVA-LAION as ALLaVA-4V ships it: questions, captions and pictures in `allava_laion/`.

`ALLaVA-Instruct-LAION-4V.json` and `ALLaVA-Caption-LAION-4V.json` are lists of `id` (`allava_laion_inst_100277305`,
`allava_laion_cap_100277305`), `image` (`allava_laion/images/100277305.jpeg`), `conversations` and `url`. They share
their pictures. The folder is that of the whole set or `allava_laion` itself.
"""

import pathlib
from collections.abc import Iterator

from data_prep import pictures
from data_prep.drafts import Draft, SetAside
from data_prep.sources.entries import Entry, find_file, read_json
from data_prep.sources.reading import name_part, only_turn, read_entries, text
from vlaa_jax.errors import InputError

_FIELDS = ("id", "image", "conversations")


def read_allava_laion(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Open questions with GPT-4V's answers, which become the reference, and its captions, which replace step 2.

    The captions are held while the questions are read: about a kilobyte each, half a gigabyte for all 505,588.

    Raises:
      InputError: the folder or its files are not of this form.
    """
    captions = _read_captions(_find(folder, "ALLaVA-Caption-LAION-4V.json"))

    def identify(entry: Entry) -> str:
        return f"allava-{name_part(entry.fields['id'], 'id').replace('allava_laion_inst_', 'allava_laion_')}"

    def to_draft(entry: Entry, name: str) -> Draft:
        image = text(entry.fields["image"], "image")
        question, answer = only_turn(entry.fields["conversations"])
        caption = captions.get(image)
        if caption is None:
            raise InputError("no caption: the file of captions has none that can be read for the picture")
        metadata = {"origin": entry.place, "captions": "ALLaVA-Caption-LAION-4V"}
        if entry.fields.get("url"):
            metadata["url"] = text(entry.fields["url"], "url")
        inside = image.removeprefix("allava_laion/")
        return Draft(
            id=name,
            source="allava_laion",
            image=pictures.locate(folder, (image, inside, inside.removeprefix("images/"))),
            question=question,
            gold=answer,
            verifier="open_ended",
            caption=caption,
            metadata=metadata,
        )

    entries = read_json(_find(folder, "ALLaVA-Instruct-LAION-4V.json"))
    yield from read_entries("allava_laion", entries, _FIELDS, identify, to_draft)


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    return find_file(folder, (name, f"allava_laion/{name}"))


def _read_captions(path: pathlib.Path) -> dict[str, str]:
    """By picture, the first of each; one that cannot be read costs its question, which then has none."""
    captions: dict[str, str] = {}
    for entry in read_json(path):
        try:
            image, (_, caption) = text(entry.fields.get("image"), "image"), only_turn(entry.fields.get("conversations"))
        except InputError:
            continue
        captions.setdefault(image, caption)
    if not captions:
        raise InputError(f"{path}: no record with image and a conversation that holds a caption")
    return captions
