"""Reasoning about a digit scene, written and checked: `Step k: ...` lines, one fact each.

The `enumerate` style goes through the digits in reading order, first the place, then the digit (to look for "what is
next" and to read "what is there" are two small things; at once they are hard), and computes the answer in small steps.
What a step looks up always stands behind the word that it is found by: the digit behind its place, the option behind
its letter. A policy as small as the demo's does not learn to look the other way ("4 is C" stayed at chance), so a step
goes through the list and says yes or no to each. `enumerate` gives the box of the one digit that a question asks for,
the `locate` style that of every listed digit, so that a policy learns to read boxes from the picture. Every line can be
checked against the scene; `check_trace` does so for text that a policy wrote.
"""

import collections
import operator
import re
from collections.abc import Callable, Iterable, Sequence

from data_prep.digit_scenes import questions, scenes
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards.box import Box, intersection_over_union

STYLES = ("direct", "enumerate", "locate")
DIRECT = "I can answer at once."

_Pictures = Sequence[Sequence[scenes.Glyph]]
_COMPARISONS = {">": operator.gt, "<": operator.lt, "=": operator.eq}
_PICTURE_NAMES = ("first", "second")
_EMPTY = "empty"
_SAME_BOX = 0.5  # least intersection over union


def write_trace(style: str, kind: str, question: questions.Question, pictures: _Pictures) -> str:
    """The text between the think tags in one of `STYLES`.

    Args:
      style: `direct` says nothing about the picture; `enumerate` lists it first, `locate` with boxes.
      kind: name in `questions.KINDS`.
      question: what is asked.
      pictures: for each picture, its glyphs in reading order.
    """
    if style == "direct":
        return DIRECT
    lines = [
        f"{_picture_prefix(number, pictures)}{_located(glyph) if style == 'locate' else _listed(glyph)}"
        for number, picture in enumerate(pictures, 1)
        for glyph in picture
    ]
    lines += _conclusions(kind, question, pictures)
    return "\n".join(f"Step {step}: {line}" for step, line in enumerate(lines, 1))


def _listed(glyph: scenes.Glyph) -> str:
    return f"{glyph.place} {glyph.value}"


def _located(glyph: scenes.Glyph) -> str:
    return f"{_listed(glyph)} {questions.format_box(glyph.box)}"


def _picture_prefix(number: int, pictures: _Pictures) -> str:
    return f"{_PICTURE_NAMES[number - 1]} " if len(pictures) > 1 else ""


def _conclusions(kind: str, question: questions.Question, pictures: _Pictures) -> list[str]:
    """The lines after the enumeration, without their numbers."""
    values = [glyph.value for glyph in pictures[0]]
    largest = max(values)
    match kind:
        case "count_value":
            equal = [value == question.value for value in values]
            return [f"equal to {question.value}: {_verdicts(values, equal)}", f"count {sum(equal)}"]
        case "count_above":
            above = [value > question.value for value in values]
            return [f"above {question.value}: {_verdicts(values, above)}", f"count {sum(above)}"]
        case "sum":
            return _running_sum(values, "")
        case "fraction_even":
            even = [value % 2 == 0 for value in values]
            return [f"even: {_verdicts(values, even)}", f"{sum(even)} of {len(values)}"]
        case "range":
            return [f"largest {largest}", f"smallest {min(values)}", f"{largest}-{min(values)}={largest - min(values)}"]
        case "largest":
            return [f"largest {largest}", *_options(question)]
        case "position":
            digits = {glyph.place: str(glyph.value) for glyph in pictures[0]}
            return _options(question, lambda place: f"{place} {digits.get(place, _EMPTY)}")
        case "which_appear":
            return _options(question)
        case "compare_sums":
            first, second = (sum(glyph.value for glyph in picture) for picture in pictures)
            sign = next(sign for sign, holds in _COMPARISONS.items() if holds(first, second))
            lines = [
                line
                for number, picture in enumerate(pictures, 1)
                for line in _running_sum([glyph.value for glyph in picture], _picture_prefix(number, pictures))
            ]
            return [*lines, f"{first}{sign}{second}", *_options(question)]
        case "box_only":
            return [_search(question.value, pictures[0])]
        case "box_largest":
            return [f"largest {largest}", _search(largest, pictures[0])]
        case "describe":
            return [f"{len(values)} digits"]
    raise ValueError(f"no conclusion is written for kind {kind!r}")


def _verdicts(items: Iterable[object], holds: Iterable[bool]) -> str:
    """`3 no, 7 yes`."""
    return ", ".join(f"{item} {'yes' if held else 'no'}" for item, held in zip(items, holds, strict=True))


def _options(question: questions.Question, text: Callable[[str], str] = str) -> list[str]:
    """A line with a verdict for each option: `A 7 no`."""
    golds = question.answer.split(",")
    return [
        f"{letter} {_verdicts([text(choice)], [letter in golds])}"
        for letter, choice in zip(questions.LETTERS, question.choices, strict=False)
    ]


def _search(value: int, picture: Sequence[scenes.Glyph]) -> str:
    """Goes through the places until it has found the digit: `find 7: northwest 3 no, west 7 [84,50,115,92]`."""
    found = [glyph.value for glyph in picture].index(value)
    before = [f"{_listed(glyph)} no" for glyph in picture[:found]]
    return f"find {value}: {', '.join([*before, _located(picture[found])])}"


def _running_sum(values: list[int], prefix: str) -> list[str]:
    lines, total = [], values[0]
    for value in values[1:]:
        lines.append(f"{prefix}{total}+{value}={total + value}")
        total += value
    return lines


# Checking.

_STEP = re.compile(r"Step \d+:(.*)")
_PICTURE = re.compile(rf"({'|'.join(_PICTURE_NAMES)}) (.*)")
_PLACE = "|".join(sorted(scenes.PLACES, key=len, reverse=True))


def check_trace(record: Record, text: str) -> list[bool | None]:
    """Checks each line `Step k: fact` of `text` against the scene of `record`.

    A glyph may be listed as often as it is there, and no oftener; a running sum must go on from the true sum so far
    with a digit not yet added. The numbers k and lines that are no steps are ignored.

    Returns:
      For each step in order: whether it is true, or None if it states no fact of the known forms.
    """
    scene = _SceneFacts(record)
    return [scene.check(match[1].strip()) for line in text.splitlines() if (match := _STEP.fullmatch(line.strip()))]


def check_steps(record: Record, steps: Sequence[str]) -> list[list[bool | None]]:
    """`check_trace` of the steps of a solution (`steps.split_steps`): the verdicts of each, none for one without facts.

    Facts of a step are checked after those of the steps before it.
    """
    verdicts = iter(check_trace(record, "\n".join(steps)))
    return [[next(verdicts) for _ in check_trace(record, step)] for step in steps]  # one alone tells how many


class _SceneFacts:
    """What may still be said about a scene, line by line."""

    def __init__(self, record: Record):
        pictures = [[scenes.Glyph.from_json(entry) for entry in picture] for picture in record.metadata["glyphs"]]
        self._record = record
        self._pictures = pictures
        self._values = [[glyph.value for glyph in picture] for picture in pictures]
        self._places = [[(glyph.value, glyph.place) for glyph in picture] for picture in pictures]
        self._unlisted = [collections.Counter(places) for places in self._places]
        self._unadded = [collections.Counter(values) for values in self._values]
        self._totals: list[int | None] = [None] * len(pictures)

    def check(self, fact: str) -> bool | None:
        picture = 0
        if match := _PICTURE.fullmatch(fact):
            picture, fact = _PICTURE_NAMES.index(match[1]), match[2]
        for pattern, check in _CHECKS:
            if match := re.fullmatch(pattern, fact):
                return picture < len(self._values) and check(self, picture, *match.groups())
        return None

    def _listed(self, picture: int, place: str, value: str) -> bool:
        return _take(self._unlisted[picture], (int(value), place))

    def _located(self, picture: int, place: str, value: str, *sides: str) -> bool:
        """A digit not yet listed whose box is about this one."""
        here = any(
            (glyph.place, glyph.value) == (place, int(value)) and _overlap(glyph.box, sides) >= _SAME_BOX
            for glyph in self._pictures[picture]
        )
        return here and self._listed(picture, place, value)

    def _equal(self, picture: int, value: str, verdicts: str) -> bool:
        return self._judged(picture, verdicts, lambda x: x == int(value))

    def _above(self, picture: int, value: str, verdicts: str) -> bool:
        return self._judged(picture, verdicts, lambda x: x > int(value))

    def _even(self, picture: int, verdicts: str) -> bool:
        return self._judged(picture, verdicts, lambda x: x % 2 == 0)

    def _judged(self, picture: int, verdicts: str, holds: Callable[[int], bool]) -> bool:
        """Every digit of the picture once, in any order, each with the right verdict."""
        values = sorted(self._values[picture])
        return sorted(verdicts.split(", ")) == sorted(_verdicts([value], [holds(value)]) for value in values)

    def _count(self, picture: int, count: str) -> bool:
        return self._record.verifier == "digit" and int(count) == int(self._record.answer)

    def _sum(self, picture: int, total: str, value: str, result: str) -> bool:
        known = self._totals[picture]
        begins = known is None and _take(self._unadded[picture], int(total))
        if not begins and known != int(total):
            return False
        self._totals[picture] = int(total)
        if int(total) + int(value) != int(result) or not _take(self._unadded[picture], int(value)):
            return False
        self._totals[picture] = int(result)
        return True

    def _even_of_all(self, picture: int, even: str, all_digits: str) -> bool:
        values = self._values[picture]
        return (int(even), int(all_digits)) == (sum(value % 2 == 0 for value in values), len(values))

    def _largest(self, picture: int, value: str) -> bool:
        return int(value) == max(self._values[picture])

    def _smallest(self, picture: int, value: str) -> bool:
        return int(value) == min(self._values[picture])

    def _difference(self, picture: int, larger: str, smaller: str, result: str) -> bool:
        values = self._values[picture]
        return (int(larger), int(smaller)) == (max(values), min(values)) and int(larger) - int(smaller) == int(result)

    def _found(self, picture: int, value: str, others: str, place: str, found: str, *sides: str) -> bool:
        """Places with other digits, none twice, and then the digit, which is there once."""
        left = collections.Counter(f"{place} {v}" for v, place in self._places[picture] if v != int(value))
        right = [glyph for glyph in self._pictures[picture] if glyph.value == int(value)]
        return (
            all(_take(left, item) for item in others.split(" no, ")[:-1])
            and found == value
            and [glyph.place for glyph in right] == [place]
            and _overlap(right[0].box, sides) >= _SAME_BOX
        )

    def _compare(self, picture: int, first: str, sign: str, second: str) -> bool:
        sums = [sum(values) for values in self._values]
        return sums == [int(first), int(second)] and _COMPARISONS[sign](*sums)

    def _digits(self, picture: int, count: str) -> bool:
        return int(count) == len(self._values[picture])

    def _option(self, picture: int, letter: str, text: str, verdict: str) -> bool:
        index = questions.LETTERS.index(letter)
        if index >= len(self._record.choices):
            return False
        expected = self._record.choices[index]
        if self._record.metadata["kind"] == "position":
            digit = next((value for value, place in self._places[picture] if place == expected), _EMPTY)
            expected = f"{expected} {digit}"
        right = letter in self._record.answer.split(",")
        return text == expected and right == (verdict == "yes")


def _overlap(box: Sequence[int], sides: Sequence[str]) -> float:
    return intersection_over_union(Box(*box, "pixels"), Box(*map(int, sides), "pixels"))


def _take(counter: collections.Counter, item: object) -> bool:
    """Takes one `item` out of `counter`; False if none is left."""
    if not counter[item]:
        return False
    counter[item] -= 1
    return True


_BOX = r"\[(\d+),(\d+),(\d+),(\d+)\]"
_VERDICTS = r"(?:\d (?:yes|no)(?:, |$))+"
_CHECKS: tuple[tuple[str, Callable[..., bool]], ...] = (
    (rf"({_PLACE}) (\d)", _SceneFacts._listed),
    (rf"({_PLACE}) (\d) {_BOX}", _SceneFacts._located),
    (rf"equal to (\d): ({_VERDICTS})", _SceneFacts._equal),
    (rf"above (\d): ({_VERDICTS})", _SceneFacts._above),
    (rf"even: ({_VERDICTS})", _SceneFacts._even),
    (r"count (\d+)", _SceneFacts._count),
    (r"(\d+)\+(\d)=(\d+)", _SceneFacts._sum),
    (r"(\d+) of (\d+)", _SceneFacts._even_of_all),
    (r"largest (\d)", _SceneFacts._largest),
    (r"smallest (\d)", _SceneFacts._smallest),
    (r"(\d)-(\d)=(\d)", _SceneFacts._difference),
    (rf"find (\d): ((?:(?:{_PLACE}) \d no, )*)({_PLACE}) (\d) {_BOX}", _SceneFacts._found),
    (r"([A-D]) (.+) (yes|no)", _SceneFacts._option),
    (r"(\d+)([><=])(\d+)", _SceneFacts._compare),
    (r"(\d+) digits", _SceneFacts._digits),
)
