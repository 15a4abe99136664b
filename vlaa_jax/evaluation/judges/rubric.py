"""A generative judge: a model that sees grades the solution so far from 1 to 5, after each step (ViLBench, Figure 1).

Wording and anchors of the rubric are ours. A judge is deterministic, so its prompts are to be answered greedily.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import tqdm

from vlaa_jax.evaluation.judges.judge import Question
from vlaa_jax.processing.solutions import question_of
from vlaa_jax.processing.steps import join_steps, split_steps

PROMPT = pathlib.Path(__file__).parent / "prompts" / "rubric.txt"

_SLOT = re.compile(r"\{(question|solution)\}")
_SCORE = re.compile(r"overall[ \t]+score[ \t*_]*:(.*)", re.IGNORECASE)
_NUMBER = re.compile(r"[ \t*_\[(]*([1-5])(.*)")
_REMINDER = (
    "\n\nThe second line must be 'Overall Score: ' and one of the numbers 1, 2, 3, 4, 5, with nothing behind it."
)
_AT_ONCE = 256  # prompts; the progress bar goes on after each lot


@dataclasses.dataclass(frozen=True)
class RubricPrompt:
    """What a model is asked.

    Attributes:
      text: of the prompt.
      images: encoded, in the question's order, to be shown before it.
      attempt: 0, or 1 where the reply to the first could not be read.
    """

    text: str
    images: tuple[bytes, ...]
    attempt: int = 0


Ask = Callable[[Sequence[RubricPrompt]], Sequence[str | None]]
"""Replies to prompts, in their order; None where there was none."""


class RubricJudge:
    """Scores 1 to 5 by a model's replies; a reply that cannot be read is asked for once more, then it is NaN.

    Attributes:
      name, whole, problems: see `Judge`.
    """

    whole = False

    def __init__(self, ask: Ask, *, name: str = "rubric", prompt: pathlib.Path = PROMPT):
        """Asks nothing yet.

        Args:
          ask: of an endpoint, a sampler, ...
          name: see `Judge`.
          prompt: file with the slots `{question}` and `{solution}`.
        """
        self.name = name
        self.problems: collections.Counter[str] = collections.Counter()
        self._ask, self._template = ask, prompt.read_text(encoding="utf-8").strip()

    def __call__(self, questions: Sequence[Question]) -> list[list[np.ndarray]]:
        """See `Judge`."""
        prompts: dict[tuple[int, str], RubricPrompt] = {}
        for b, question in enumerate(questions):
            for steps in map(split_steps, dict.fromkeys(question.responses)):
                for count in range(1, len(steps) + 1):
                    prefix = join_steps(steps[:count])  # shared by responses that begin alike
                    prompts.setdefault((b, prefix), self._prompt(question, prefix))
        grades = dict(zip(prompts, self._grades(list(prompts.values())), strict=True))
        out = []
        for b, question in enumerate(questions):
            of_question = []
            for steps in map(split_steps, question.responses):
                scores = [grades[b, join_steps(steps[:count])] for count in range(1, len(steps) + 1)]
                of_question.append(np.asarray(scores or [np.nan]))
                self.problems["empty"] += not steps
            out.append(of_question)
        self.problems = +self.problems  # without zeros
        return out

    def _prompt(self, question: Question, prefix: str) -> RubricPrompt:
        record = question_of(question.record)
        values = {"question": _named_pictures(record.question), "solution": prefix}
        return RubricPrompt(_SLOT.sub(lambda slot: values[slot[1]], self._template), record.images)

    def _grades(self, prompts: Sequence[RubricPrompt]) -> list[float]:
        grades = []
        for at in tqdm.tqdm(range(0, len(prompts), _AT_ONCE), desc=self.name, leave=False, disable=None):
            lot = prompts[at : at + _AT_ONCE]
            found = [read_grade(reply) for reply in self._ask(lot)]
            again = [place for place, grade in enumerate(found) if grade is None]
            if again:
                self.problems["asked once more"] += len(again)
                second = [dataclasses.replace(lot[i], text=lot[i].text + _REMINDER, attempt=1) for i in again]
                for place, reply in zip(again, self._ask(second), strict=True):
                    found[place] = read_grade(reply)
            self.problems["no score in the reply"] += found.count(None)
            grades += [np.nan if grade is None else float(grade) for grade in found]
        return grades


def read_grade(reply: str | None) -> int | None:
    """The number behind `Overall Score:`; None unless it is one of 1, 2, 3, 4, 5 and stands alone.

    `4.5`, `4/5` and `3 or 4` are none; marks of emphasis, brackets and words may stand around the number. A reply that
    states scores which differ has none.
    """
    said = (reply or "").rpartition("</think>")[2]  # a model that reasons may try scores first
    grades = {_read_line(line) for line in _SCORE.findall(said)}
    return grades.pop() if len(grades) == 1 else None


def _read_line(line: str) -> int | None:
    found = _NUMBER.match(line)
    if not found or "/" in found[2] or any(character.isnumeric() for character in found[2]):
        return None
    return int(found[1])


def _named_pictures(question: str) -> str:
    """The question with its marks as numbers: the pictures stand before the whole prompt."""
    first, *rest = question.split("<image>")
    return first + "".join(f"[image {number}]{part}" for number, part in enumerate(rest, 1))
