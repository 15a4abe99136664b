"""ArxivQA as its authors ship it: `arxivqa.jsonl` and the pictures of `images.tgz`.

A line has `id`, `image` (`images/0805.4509_1.jpg`), `options`, `question`, `label` and `rationale`. Labels come as `B`,
`B)`, `(b)` and the like, options with and without their letters.
"""

import pathlib
import re
import string
from collections.abc import Iterator

from data_prep import pictures
from data_prep.drafts import Draft, SetAside
from data_prep.golds import repair_letters
from data_prep.sources.entries import Entry, find_file, read_json
from data_prep.sources.reading import name_part, read_entries, text, texts
from vlaa_jax.errors import InputError

_FIELDS = ("id", "image", "options", "question", "label")
_OPTION = re.compile(r"\(?([A-Za-z])\s*[).:]\s*(\S.*)", re.DOTALL)


def read_arxivqa(folder: pathlib.Path) -> Iterator[Draft | SetAside]:
    """Multiple-choice questions about figures of papers.

    Raises:
      InputError: the folder or its files are not of this form, or the archive of pictures is still compressed.
    """
    path = find_file(folder, ("arxivqa.jsonl",))
    if not (folder / "images").is_dir() and not any(folder.glob("*.tar")):
        raise InputError(
            f"{folder} has neither images/ nor a .tar: a compressed tar has no random access, so unpack images.tgz "
            f"(tar -xzf images.tgz) or only its compression (gunzip, giving images.tar)"
        )

    def identify(entry: Entry) -> str:
        return f"arxivqa-{name_part(entry.fields['id'], 'id')}"

    def to_draft(entry: Entry, name: str) -> Draft:
        fields = entry.fields
        choices = _choices(texts(fields["options"], "options"))
        gold = repair_letters(text(fields["label"], "label"))
        lettered = [f"{letter}) {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
        metadata = {"origin": entry.place, "repairs": list(gold.repairs)}
        if fields.get("rationale"):
            metadata["rationale"] = text(fields["rationale"], "rationale")
        return Draft(
            id=name,
            source="arxivqa",
            image=pictures.locate(folder, (text(fields["image"], "image"),)),
            question="\n".join([text(fields["question"], "question"), *lettered]),
            gold=gold.text,
            verifier="mcq",
            choices=choices,
            metadata=metadata,
        )

    yield from read_entries("arxivqa", read_json(path), _FIELDS, identify, to_draft)


def _choices(options: list[str]) -> tuple[str, ...]:
    """Options without their letters, where all have theirs; other letters would make the label name another option."""
    if len(options) > len(string.ascii_uppercase):
        raise InputError(f"too many options: {len(options)}")
    found = [_OPTION.fullmatch(option) for option in options]
    own = [
        match is not None and match[1].upper() == letter
        for match, letter in zip(found, string.ascii_uppercase, strict=False)
    ]
    if all(own):
        return tuple(match[2] for match in found if match)
    if any(own) or all(found):
        raise InputError("options out of order: they have letters, but not all their own")
    return tuple(options)
