"""Steps 2 to 5 ask a model: what of a draft goes into the prompt, and what becomes of the answer.

All here are functions of texts; asking, retries and files are the engine's.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from data_prep.drafts import Draft, SetAside
from data_prep.sources.published import PUBLISHED, Route
from vlaa_jax.errors import InputError

# Of a completion's format: texts between them may hold none.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_PROMPTS = pathlib.Path(__file__).parent / "prompts"


@dataclasses.dataclass(frozen=True)
class Step:
    """One asking step.

    Attributes:
      number: of the paper's steps.
      name: of its section in the config, and of its prompt.
      routes: of the drafts that it asks for; the others pass.
      slots: that its prompt must have.
      sees: whether the model gets the picture.
      ask: (draft, prompt file's text) -> prompt.
      accept: (draft, answer, config section) -> the draft with it, the draft set aside, or None to ask once more.
      rules: fields of its section, beside the model's, that `accept` reads.
    """

    number: int
    name: str
    routes: frozenset[Route]
    slots: tuple[str, ...]
    sees: bool
    ask: Callable[[Draft, str], str]
    accept: Callable[[Draft, str, Mapping[str, Any]], Draft | SetAside | None]
    rules: tuple[str, ...] = ()

    def asks_for(self, draft: Draft) -> bool:
        return PUBLISHED[draft.source].route in self.routes

    def set_aside(self, draft: Draft, reason: str) -> SetAside:
        return SetAside(draft.id, draft.source, self.name, reason, draft)


def read_prompt(step: Step, file: str) -> str:
    """The text of a step's prompt.

    Args:
      step: of the prompt.
      file: the user's; '' for ours.

    Raises:
      InputError: no such text file, or a slot is missing in it.
    """
    path = pathlib.Path(file) if file else _PROMPTS / f"{step.name}.txt"
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config.{step.name}.prompt: {path} cannot be read as text ({error})") from None
    for slot in step.slots:
        if f"{{{slot}}}" not in text:
            raise InputError(f"config.{step.name}.prompt: {path} has no {{{slot}}}")
    return text


def fill(template: str, **values: str) -> str:
    """A prompt with its slots filled; a paragraph whose slot is empty is left out.

    Slots are replaced in one pass, and nothing else between braces is looked at: both texts may hold LaTeX.
    """
    slot = re.compile("|".join(rf"\{{{name}\}}" for name in values))
    paragraphs = [
        slot.sub(lambda found: values[found[0][1:-1]], paragraph)
        for paragraph in template.split("\n\n")
        if all(values[found[1:-1]].strip() for found in slot.findall(paragraph))
    ]
    return "\n\n".join(paragraphs)


def unfit(text: str) -> str:
    """Why a text cannot be stored or sent, '' where it can."""
    if "\0" in text:
        return "it holds a NUL character"
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        return "it holds half a surrogate pair, which is no Unicode text"
    return ""


def split_thinking(text: str) -> tuple[str, str] | None:
    """The two parts of `<think>...</think>` and a final text; None where a part is blank or holds another tag."""
    before, opened, rest = text.partition("<think>")
    thinking, closed, final = rest.partition("</think>")
    if before.strip() or not (opened and closed and thinking.strip() and final.strip()):
        return None
    if any(tag in part for tag in TAGS for part in (thinking, final)):
        return None
    return thinking.strip(), final.strip()


def reasoning(draft: Draft) -> str:
    """The text of a draft as far as the steps have come; that of a source taken as it is needs no rewriting."""
    return draft.rewritten or draft.distilled


def _ask_caption(draft: Draft, prompt: str) -> str:
    return fill(prompt, context=draft.context)


def _accept_caption(draft: Draft, answer: str, section: Mapping[str, Any]) -> Draft | SetAside:
    if not answer.strip():
        return CAPTION.set_aside(draft, "empty answer")
    return dataclasses.replace(draft, caption=answer.strip())


def _ask_distil(draft: Draft, prompt: str) -> str:
    if PUBLISHED[draft.source].route == "no_caption":
        return draft.text_question  # alone, without instructions (section 2)
    return fill(prompt, caption=draft.caption, context=draft.context, question=draft.question)


def _accept_distil(draft: Draft, answer: str, section: Mapping[str, Any]) -> Draft | SetAside:
    # Chat templates of reasoners may put the start tag into the prompt.
    text = answer if "<think>" in answer or "</think>" not in answer else f"<think>\n{answer}"
    if split_thinking(text) is None:
        return DISTIL.set_aside(draft, "not one think block and a final text")
    return dataclasses.replace(draft, distilled=text.strip())


def _ask_rewrite(draft: Draft, prompt: str) -> str:
    return fill(prompt, text=draft.distilled)


def _accept_rewrite(draft: Draft, answer: str, section: Mapping[str, Any]) -> Draft | SetAside:
    before, after = len(draft.distilled.split()), len(answer.split())
    if abs(before - after) > section["drift"]:  # "sentence length gap", appendix A.1: over the whole text
        return REWRITE.set_aside(draft, f"drift of more than {section['drift']} words: from {before} to {after}")
    if split_thinking(answer) is None:
        return REWRITE.set_aside(draft, "the rewriting is not one think block and a final text")
    return dataclasses.replace(draft, rewritten=answer.strip())


def _ask_verify(draft: Draft, prompt: str) -> str:
    # The final text alone: whether the paper's verifier also saw the reasoning is not stated.
    parts = split_thinking(reasoning(draft))
    return fill(prompt, gold=draft.gold, answer=parts[1] if parts else reasoning(draft), question=draft.question)


def _accept_verify(draft: Draft, answer: str, section: Mapping[str, Any]) -> Draft | SetAside | None:
    match answer.strip():
        case "Yes":
            return draft
        case "No":
            return VERIFY.set_aside(draft, "the verifier says No")
    return None


_DISTILLED = frozenset({"caption", "own_caption", "no_caption"})
CAPTION = Step(2, "caption", frozenset({"caption"}), (), True, _ask_caption, _accept_caption)
DISTIL = Step(3, "distil", _DISTILLED, ("caption", "question"), False, _ask_distil, _accept_distil)
REWRITE = Step(4, "rewrite", _DISTILLED, ("text",), False, _ask_rewrite, _accept_rewrite, ("drift",))
VERIFY = Step(5, "verify", _DISTILLED | {"as_is"}, ("gold", "answer"), False, _ask_verify, _accept_verify)
ASKING = (CAPTION, DISTIL, REWRITE, VERIFY)
