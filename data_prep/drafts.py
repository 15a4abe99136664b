"""What flows between the steps of a build: a question on its way to a record, and a question that was set aside.

Both are one JSON object a line. Pictures are named, not held, so the text of a million drafts fits on a laptop.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from vlaa_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Draft:
    """One question with what the steps have added so far (VLAA-Thinking, section 2).

    Attributes:
      id: unique in the build, `SOURCE-...` as in the released files.
      source: key of `sources.published.PUBLISHED`.
      image: of the picture, as `pictures.read` takes it, relative to the source's folder; '' for none.
      question: as the policy will be asked.
      gold: answer that the verifier reads.
      verifier: of the record's.
      choices, box_space: as in a record.
      context: what the captioner is told beside the picture: scene instructions, the problem in words.
      text_question: what the reasoner is asked in place of caption and question; '' for these.
      caption: of step 2, or the source's own.
      distilled: of step 3: `<think>...</think>` and a final text.
      rewritten: of step 4.
      metadata: anything else, JSON-serialisable; goes into the record.
    """

    id: str
    source: str
    image: str
    question: str
    gold: str
    verifier: str
    choices: tuple[str, ...] = ()
    box_space: str = ""
    context: str = ""
    text_question: str = ""
    caption: str = ""
    distilled: str = ""
    rewritten: str = ""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SetAside:
    """A question that goes no further, and why.

    Attributes:
      id: as far as it is known; else file and line.
      source: it came from.
      step: that it failed in.
      reason: one sentence; its first words are the same for the same kind of failure, so that counts mean something.
      draft: as it stood; None where there was none yet.
    """

    id: str
    source: str
    step: str
    reason: str
    draft: Draft | None = None


def to_line(entry: Draft | SetAside) -> str:
    """One line of JSON without its end."""
    return json.dumps(dataclasses.asdict(entry), ensure_ascii=False, sort_keys=True)


def from_line(line: str) -> Draft:
    """A draft as `to_line` wrote it.

    Raises:
      InputError: not such a line.
    """
    try:
        fields = json.loads(line)
        return Draft(**fields | {"choices": tuple(fields["choices"])})
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"not a line of a draft ({error})") from None


def write_lines(path: pathlib.Path, entries: Iterable[Draft | SetAside]) -> int:
    """Writes a file, whole or not at all; returns the number of lines."""
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(to_line(entry) + "\n")
            count += 1
    partial.replace(path)
    return count


def read_lines(path: pathlib.Path) -> Iterator[Draft]:
    """The drafts of a file.

    Raises:
      InputError: a line is none; names it.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield from_line(line)
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from None
