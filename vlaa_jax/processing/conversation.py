"""The conversation: one function builds it for SFT, rollout, log-probabilities, evaluation, scoring and export."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import VERIFIERS, Record

# Beside the weights of an exported model: how it was asked in training (`training/export.py` writes them).
OWN_SYSTEM, OWN_NOTE = "system_prompt.txt", "vlaa_jax.json"

SYSTEM_FILE = pathlib.Path(__file__).parent / "prompts" / "system.txt"

# What each verifier needs to be told to read the answer. `{space}` is the box's coordinate space.
INSTRUCTIONS = {
    "digit": "Answer with a single integer.",
    "mcq": "Answer with the option's letter.",
    "math": "Answer in LaTeX.",
    "iou": "Answer with one box [x1, y1, x2, y2] in {space}.",
    "open_ended": "",
}

_SPACES = {
    "pixels": "pixels of the image",
    "normalised": "fractions of the image's width and height",
    "thousand": "thousandths of the image's width and height",
}

# Data sets that already ask for a letter do it in many wordings.
_ASKS_FOR_LETTER = re.compile(r"\b(answer|respond|select|choose|provide|give)\b[^.\n]*\bletter\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What surrounds a question.

    Attributes:
      system: the system message; it asks for the two pairs of tags.
      instructions: verifier -> sentence added after the question.
    """

    system: str
    instructions: Mapping[str, str]

    def messages(self, record: Record) -> list[dict[str, Any]]:
        """Chat messages of a record: system, then the user's images, question and the verifier's instruction.

        Images stand where the question has `<image>`, or before it when it has no mark.

        Raises:
          InputError: the number of marks is not the number of images, or an unknown verifier.
        """
        if record.verifier not in self.instructions:
            raise InputError(
                f"record {record.id}: verifier {record.verifier!r} is none of {', '.join(self.instructions)}"
            )
        parts = record.question.split("<image>")
        if len(parts) == 1:
            parts = [""] * len(record.images) + parts
        if len(parts) != len(record.images) + 1:
            raise InputError(
                f"record {record.id}: the question has {len(parts) - 1} <image> marks for {len(record.images)} images"
            )
        # No `format`: a user's sentence may hold braces (`\boxed{}`).
        instruction = self.instructions[record.verifier].replace("{space}", _SPACES.get(record.box_space, ""))
        if not self._has_instruction(record, instruction):
            parts[-1] = f"{parts[-1].rstrip()}\n{instruction}"
        content: list[dict[str, str]] = []
        for index, part in enumerate(parts):
            if index:
                content.append({"type": "image"})
            if part:
                content.append({"type": "text", "text": part})
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]

    def sha256(self, chat_template: str) -> str:
        """Names the conversation's wording: the same policy under another hash is another experiment."""
        text = json.dumps([self.system, sorted(self.instructions.items()), chat_template])
        return hashlib.sha256(text.encode()).hexdigest()

    def _has_instruction(self, record: Record, instruction: str) -> bool:
        asked = record.verifier == "mcq" and _ASKS_FOR_LETTER.search(record.question)
        return bool(not instruction or instruction in record.question or asked)


def completion_text(trace: str, answer: str) -> str:
    """A completion as we write it: what SFT teaches and the reward's format gate accepts."""
    return f"<think>\n{trace}\n</think>\n<answer>{answer}</answer>"


def load_prompt(system: str | None = None, instructions: Mapping[str, str] | None = None) -> Prompt:
    """Reads the system message and lays the user's instructions over the default ones.

    Args:
      system: file with the system message; None for ours.
      instructions: verifier -> sentence, for the verifiers that shall differ.

    Raises:
      InputError: no such file, one that is empty or no UTF-8 text, or an unknown verifier.
    """
    path = epath.Path(system or SYSTEM_FILE)
    if not path.exists():
        raise InputError(f"config.prompt.system: {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config.prompt.system: {path} is no text file ({error})") from None
    if not text:
        raise InputError(f"config.prompt.system: {path} is empty")
    unknown = set(instructions or {}) - set(VERIFIERS)
    if unknown:
        raise InputError(f"config.prompt.instructions: unknown verifier {sorted(unknown)[0]!r}, expected {VERIFIERS}")
    return Prompt(text, {**INSTRUCTIONS, **(instructions or {})})


def own_prompt(directory: pathlib.Path, *, system: str = "", instructions: Mapping[str, str] | None = None) -> Prompt:
    """The conversation that a checkpoint was trained with, else ours.

    Args:
      directory: Hugging Face directory; an exported one says how it was asked.
      system: file with another system message.
      instructions: verifier -> sentence, laid over its own.

    Raises:
      InputError: as `read_note` and `load_prompt`.
    """
    own = directory / OWN_SYSTEM
    return load_prompt(
        system or (str(own) if own.exists() else None),
        {**read_note(directory).get("instructions", {}), **(instructions or {})},
    )


def read_note(directory: pathlib.Path) -> dict[str, Any]:
    """What an exported directory says of its training: prompt_sha256, instructions, rollout; {} where it has none.

    Raises:
      InputError: the file is no JSON object.
    """
    path = directory / OWN_NOTE
    if not path.exists():
        return {}
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(note, dict):
        raise InputError(f"{path}: expected a JSON object with prompt_sha256, instructions and rollout")
    return note
