"""The steps of a solution: one splitter for training, scoring and data (ViLBench numbers them `Step k:`).

A step is judged as the prefix of the solution that ends with it, so the steps of a prefix are the first steps of the
whole, in text and in tokens: what scores the whole in one pass scores each prefix.
"""

import re
from collections.abc import Sequence

_STEP = re.compile(r"^[ \t]*Step[ \t]*\d+[ \t]*[:.]", re.MULTILINE | re.IGNORECASE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_ANSWER = re.compile(r"^[ \t]*</think>", re.MULTILINE)


def split_steps(text: str) -> list[str]:
    """Steps without the blanks around them; none for a blank text.

    A step begins with a line `Step k:`; where no line does, with a paragraph. What stands before the first one belongs
    to it, and what follows the reasoning (from `</think>` on) is the last step: it states the answer.
    """
    return [step.strip() for step in cut_steps(text)]


def cut_steps(text: str) -> list[str]:
    """The steps of `split_steps` with the blanks around them: joined they are the text, unless that is blank."""
    body = text.lstrip()
    if not body:
        return []
    starts = [match.start() for match in _STEP.finditer(body)]
    if not starts:
        starts = [0, *(match.end() for match in _PARAGRAPH.finditer(body.rstrip()))]
    if answer := _ANSWER.search(body, starts[0] + 1):
        starts = [*(start for start in starts if start < answer.start()), answer.start()]
    starts[0] = 0
    first, *others = (body[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True))
    return [text[: len(text) - len(body)] + first, *others]


def join_steps(steps: Sequence[str]) -> str:
    """A text that has these steps."""
    return "\n\n".join(steps)
