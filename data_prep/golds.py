r"""Clean-up of gold answers as the public sources and the released files have them (VLAA-Thinking, appendix C.1).

Option letters come as `A`, `A)`, `(a)`, `A: text`. Golds of Math PUMA's synthetic functions have wrappers, a prefix
`Output 4:`, or hold only the value of the unknown (`a = 3`) although the question asks for the whole function. The
paper fixed these "by rule-based filtering and GPT-assisted rewriting" and gives no rules; these are ours. Each has a
name, so that a report can count them, and repairing a repaired text changes nothing.
"""

import dataclasses
import re

from vlaa_jax.rewards.extract import closing_brace

# Names of repairs, as reports count them.
DELIMITERS = "math delimiters"
BOX = "box"
WHOLE_NUMBER = "whole number with decimals"
NUMBER_IN_WORDS = "number in words around it"
LETTER_MARKS = "letter with marks"
LETTER_CASE = "letter in lower case"
OPTION_TEXT = "letter with the option's text"
SOLUTION = "solution before the answer"
OUTPUT_PREFIX = "prefix 'Output'"
FUNCTION_BESIDE_VALUE = "function beside the value"
FUNCTION_COMPLETED = "function completed"
# Not repaired: the question asks for the function, the gold has the value and no form of the function is known.
VALUE_ONLY = "value only, cannot be completed"

# Characters. No gold is longer, but hostile input is: some patterns take quadratic time.
_LONGEST = 10_000


@dataclasses.dataclass(frozen=True)
class Repaired:
    """A gold after its clean-up.

    Attributes:
      text: the gold.
      repairs: names of what was done, in order; empty where nothing was.
    """

    text: str
    repairs: tuple[str, ...] = ()


_INTEGER = re.compile(r"(?<![\w.])-?\d+(?!\w|\.\d)")
_WHOLE_NUMBER = re.compile(r"(-?\d+)\.0*")


def repair_digit(text: str) -> Repaired:
    """The integer of `3`, `3.0`, `There are 3 objects.`; a text with several stays.

    Args:
      text: gold of a counting question.
    """
    if len(text) > _LONGEST:
        return Repaired(text)
    text, repairs = _unwrapped(text)
    if whole := _WHOLE_NUMBER.fullmatch(text):
        return Repaired(whole[1], (*repairs, WHOLE_NUMBER))
    found = set(_INTEGER.findall(text))
    if len(found) == 1 and text not in found:
        return Repaired(found.pop(), (*repairs, NUMBER_IN_WORDS))
    return Repaired(text, tuple(repairs))


_LETTER_MARKS = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:)]?")
_OPTION_TEXT = re.compile(r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Z])[):.])[:.]?\s+(?P<text>\S.*)", re.DOTALL)
# Text that names a second option, `A) or B)`, commits to none.
_SECOND_OPTION = re.compile(r"[,;/&]|(?:or|and)\b|.*(?<!\w)[A-Z][).:](?!\w)", re.DOTALL)


def repair_letters(text: str) -> Repaired:
    """The letter of `A`, `A)`, `(a)`, `A.`, `A: text`; any other text comes back without wrappers.

    Args:
      text: gold of a multiple-choice question.
    """
    if len(text) > _LONGEST:
        return Repaired(text)
    text, repairs = _unwrapped(text)
    option = _OPTION_TEXT.fullmatch(text)
    if option and not _SECOND_OPTION.match(option["text"]):
        letter = option[1] or option[2] or option[3]
        repairs.append(OPTION_TEXT)
    elif marked := _LETTER_MARKS.fullmatch(text):
        letter = marked[1]
        if len(text) > 1:
            repairs.append(LETTER_MARKS)
    else:
        return Repaired(text, tuple(repairs))
    if letter.islower():
        repairs.append(LETTER_CASE)
    return Repaired(letter.upper(), tuple(repairs))


_SOLUTION = re.compile(r"†\s*Answer\s*:\s*")
_OUTPUT = re.compile(r"Output\b\s*\d*\s*[:.]?\s*", re.IGNORECASE)


def repair_math(text: str, question: str = "") -> Repaired:
    r"""A mathematical gold without wrappers; the whole function where the question asks for it.

    `\boxed{a = -5}` for "The function y = a * sin(-5 * x) goes through (pi/10, 5). What is the function's equation?"
    becomes `y = (-5) * sin(-5 * x)`. Where the question holds no form of the function, as when only the picture
    shows it, the value stays and `VALUE_ONLY` is among the repairs.

    Args:
      text: the gold, or the end of a solution that `†Answer:` marks.
      question: all that is known of it: of Math PUMA's also the problem in words.
    """
    repairs: list[str] = []
    before = None
    while text != before and len(text) <= _LONGEST:
        before = text
        text, unwrapped = _unwrapped(text)
        repairs += unwrapped
        if marks := list(_SOLUTION.finditer(text)):
            text = text[marks[-1].end() :].strip().removesuffix(".")
            repairs.append(SOLUTION)
        prefix = _OUTPUT.match(text)
        if prefix and prefix.end() < len(text):
            text = text[prefix.end() :]
            repairs.append(OUTPUT_PREFIX)
        text, function_repairs = _whole_function(text, question[:_LONGEST])
        repairs += function_repairs
    return Repaired(text, tuple(dict.fromkeys(repairs)))


_WRAPPERS = ((r"\[", r"\]"), (r"\(", r"\)"), ("$$", "$$"), ("$", "$"))
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def first_box(text: str) -> str | None:
    r"""Content of the first `\boxed{}` with its nested braces; None without one that is closed."""
    box = _BOX.search(text)
    end = closing_brace(text, box.end()) if box else -1
    return text[box.end() : end].strip() if end >= 0 else None


def _unwrapped(text: str) -> tuple[str, list[str]]:
    r"""Takes off `\[ \]` and the like around the whole text, and a `\boxed{}` that ends it with whatever leads to it.

    Two boxes stay: they are two answers. So does a box before other text, which may be its unit.
    """
    repairs: list[str] = []
    while True:
        before = text = text.strip()
        for left, right in _WRAPPERS:
            inner = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and inner.strip() and left not in inner:
                text = inner.strip()
                repairs.append(DELIMITERS)
        boxes = list(_BOX.finditer(text))
        end = closing_brace(text, boxes[0].end()) if boxes else -1
        if end >= 0 and boxes[-1].start() < end and not re.sub(r"\\[\])]|[$.*\s]", "", text[end + 1 :]):
            content = text[boxes[0].end() : end].strip()
            if content:
                text = content
                repairs.append(BOX)
        if text == before:
            return text, list(dict.fromkeys(repairs))


# `y`, `f(x)`: what a function is called.
_FUNCTION_NAME = r"(?:y|[fghFGH]\s*(?:\\left)?\(\s*x\s*(?:\\right)?\))"
_FUNCTION = re.compile(rf"{_FUNCTION_NAME}\s*=\s*.+", re.DOTALL)
_VALUE = re.compile(r"(?P<name>[A-Za-z]|\\[a-z]+)\s*=\s*(?P<value>[^=]+)", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\s*(?:\d+(?:\.\d+)?|\.\d+|\d+\s*/\s*\d+|\\[dt]?frac\s*\{-?\d+\}\s*\{\d+\})")
_BETWEEN_PARTS = re.compile(r"\s*(?:\b(?:and|so|thus|then|therefore)\b,?|[,;\n]|\\\\|\\quad|\\text\{\s*and\s*\})\s*")

# One clause that asks for a function, not for a number that belongs to one.
_ASKS = re.compile(
    r"\b(?:what|which|find|determine|give|solve|derive|identify|write|state|provide|tell|figure|calculate|work)\b"
    r"(?P<rest>[^.?!\n]*?\b(?:function|equation|expression|formula)[^.?!\n]*)",
    re.IGNORECASE,
)
_ASKS_FOR_NUMBER = re.compile(
    r"\bfor\s+(?![yfgh]\b)[a-z]\b"
    r"|\b(?:values?|solutions?|coefficients?|parameters?|constants?|unknowns?|variables?|domain|range|zeros?|roots?)\b"
    r"|\b(?:period|slope|vertex|amplitude|maximum|minimum|intercepts?|derivative|area|degree|asymptotes?)\b",
    re.IGNORECASE,
)
_NAMED_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|abs|pi"
# What a function's right side is made of: numbers, signs, commands, named functions, letters one by one or as a product
# with x (`ax`). A word ends it.
_FORM_TOKEN = (
    rf"(?:\d+(?:\.\d+)?|\\[A-Za-z]+|(?:{_NAMED_FUNCTIONS})(?![A-Za-z])|(?<![A-Za-z])[A-Za-z]?x(?![A-Za-z])"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[-+*/^(){}|_ ])"
)
_FORM = re.compile(rf"(?<![A-Za-z]){_FUNCTION_NAME}\s*=\s*(?:{_FORM_TOKEN})+")
_LETTER_OF_FORM = re.compile(rf"\\[A-Za-z]+|(?:{_NAMED_FUNCTIONS})(?![A-Za-z])|[A-Za-z]")


def _whole_function(text: str, question: str) -> tuple[str, list[str]]:
    """The function of a gold that has more than it, or less."""
    parts = [part for part in _BETWEEN_PARTS.split(text) if part]
    functions = [part for part in parts if _FUNCTION.fullmatch(part)]
    matches = [_VALUE.fullmatch(part) for part in parts if part not in functions]
    values = {match["name"]: match["value"].strip() for match in matches if match}
    if not all(matches):
        number = len(parts) == 1 and _NUMBER.fullmatch(text)
        return _completed(text, {"": text}, question) if number and _asks_for_function(question) else (text, [])
    if len(functions) == 1 and values and (_asks_for_function(question) or not question):
        return functions[0], [FUNCTION_BESIDE_VALUE]
    if functions or not values or "x" in values or not _asks_for_function(question):
        return text, []
    return _completed(text, values, question)


def _asks_for_function(question: str) -> bool:
    return any(not _ASKS_FOR_NUMBER.search(clause["rest"]) for clause in _ASKS.finditer(question))


def _completed(text: str, values: dict[str, str], question: str) -> tuple[str, list[str]]:
    """The question's form of the function with its unknowns replaced; '' names the only one."""
    for match in _FORM.finditer(question):
        name, _, form = _balanced(match[0]).partition("=")
        unknown = {letter for letter in _LETTER_OF_FORM.findall(form) if len(letter) == 1 and letter not in "xe"}
        unknown |= values.keys() & set(_LETTER_OF_FORM.findall(form))
        if "" in values and len(unknown) == 1:
            values = {unknown.pop(): values[""]}
        elif not unknown or unknown != values.keys():
            continue
        return f"{name.strip()} = {_filled(form.strip(), values)}", [FUNCTION_COMPLETED]
    return text, [VALUE_ONLY]


def _filled(form: str, values: dict[str, str]) -> str:
    return _LETTER_OF_FORM.sub(lambda letter: f"({values[letter[0]]})" if letter[0] in values else letter[0], form)


def _balanced(form: str) -> str:
    """Up to a closing bracket that nothing opened, without an operator at the end."""
    depth = 0
    for index, character in enumerate(form):
        depth += (character in "({") - (character in ")}")
        if depth < 0:
            form = form[:index]
            break
    return form.rstrip(" +-*/^_\\")
