"""Reasoning about a digit scene, written and checked: `Step k: ...` lines, one fact each.

The `enumerate` style goes through the digits in reading order, first the place, then the digit (to look for "what is
next" and to read "what is there" are two small things; at once they are hard), and computes the answer in small steps.
Every line can be checked against the scene; `check_trace` does so for text that a policy wrote.
"""

import collections
import operator
import re
from collections.abc import Callable, Sequence

from data_prep.digit_scenes import questions, scenes
from vlaa_jax.processing.records import Record

STYLES = ("direct", "enumerate")
DIRECT = "I can answer at once."

_Pictures = Sequence[Sequence[scenes.Glyph]]
_COMPARISONS = {">": operator.gt, "<": operator.lt, "=": operator.eq}


def write_trace(style: str, kind: str, question: questions.Question, pictures: _Pictures) -> str:
    """The text between the think tags in one of `STYLES`.

    Args:
      style: `direct` says nothing about the picture; `enumerate` lists it first.
      kind: name in `questions.KINDS`.
      question: what is asked.
      pictures: for each picture, its glyphs in reading order.
    """
    if style == "direct":
        return DIRECT
    lines = [
        f"{_picture_prefix(number, pictures)}{glyph.place} {glyph.value}"
        for number, picture in enumerate(pictures, 1)
        for glyph in picture
    ]
    lines += _conclusions(kind, question, pictures)
    return "\n".join(f"Step {step}: {line}" for step, line in enumerate(lines, 1))


def _picture_prefix(number: int, pictures: _Pictures) -> str:
    return f"picture {number}: " if len(pictures) > 1 else ""


def _conclusions(kind: str, question: questions.Question, pictures: _Pictures) -> list[str]:
    """The lines after the enumeration, without their numbers."""
    values = [glyph.value for glyph in pictures[0]]
    largest = max(values)
    place_of_value = {glyph.value: glyph.place for glyph in pictures[0]}
    option_of = dict(zip(question.choices, questions.LETTERS, strict=False))
    match kind:
        case "count_value" | "count_above":
            above = kind == "count_above"
            chosen = [value for value in values if (value > question.value if above else value == question.value)]
            return [f"{'above' if above else 'equal to'} {question.value}: {_listed(chosen)}", f"count {len(chosen)}"]
        case "sum":
            return _running_sum(values, "")
        case "fraction_even":
            even = [value for value in values if value % 2 == 0]
            return [f"even: {_listed(even)}", f"{len(even)} of {len(values)}"]
        case "range":
            return [f"largest {largest}", f"smallest {min(values)}", f"{largest}-{min(values)}={largest - min(values)}"]
        case "largest":
            return [f"largest {largest}", f"{largest} is {option_of[str(largest)]}"]
        case "position":
            place = place_of_value[question.value]
            return [f"the only {question.value}: {place}", f"{place} is {option_of[place]}"]
        case "which_appear":
            return [f"{option_of[c]} {c} {'yes' if int(c) in values else 'no'}" for c in question.choices]
        case "compare_sums":
            first, second = (sum(glyph.value for glyph in picture) for picture in pictures)
            sign = next(sign for sign, holds in _COMPARISONS.items() if holds(first, second))
            outcome = questions.PICTURE_OPTIONS[("><=").index(sign)]
            lines = [
                line
                for number, picture in enumerate(pictures, 1)
                for line in _running_sum([glyph.value for glyph in picture], _picture_prefix(number, pictures))
            ]
            return [*lines, f"{first}{sign}{second}", f"{outcome} is {option_of[outcome]}"]
        case "box_only":
            return [f"the only {question.value}: {place_of_value[question.value]}"]
        case "box_largest":
            return [f"largest {largest}", f"the only {largest}: {place_of_value[largest]}"]
        case "describe":
            return [f"{len(values)} digits"]
    raise ValueError(f"no conclusion is written for kind {kind!r}")


def _listed(values: list[int]) -> str:
    return ", ".join(str(value) for value in values) or "none"


def _running_sum(values: list[int], prefix: str) -> list[str]:
    lines, total = [], values[0]
    for value in values[1:]:
        lines.append(f"{prefix}{total}+{value}={total + value}")
        total += value
    return lines


# Checking.

_STEP = re.compile(r"Step \d+:(.*)")
_PICTURE = re.compile(r"picture ([12]): (.*)")
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


class _SceneFacts:
    """What may still be said about a scene, line by line."""

    def __init__(self, record: Record):
        pictures = [[scenes.Glyph.from_json(entry) for entry in picture] for picture in record.metadata["glyphs"]]
        self._record = record
        self._values = [[glyph.value for glyph in picture] for picture in pictures]
        self._places = [[(glyph.value, glyph.place) for glyph in picture] for picture in pictures]
        self._unlisted = [collections.Counter(places) for places in self._places]
        self._unadded = [collections.Counter(values) for values in self._values]
        self._totals: list[int | None] = [None] * len(pictures)

    def check(self, fact: str) -> bool | None:
        picture = 0
        if match := _PICTURE.fullmatch(fact):
            picture, fact = int(match[1]) - 1, match[2]
        for pattern, check in _CHECKS:
            if match := re.fullmatch(pattern, fact):
                return picture < len(self._values) and check(self, picture, *match.groups())
        return None

    def _listed(self, picture: int, place: str, value: str) -> bool:
        return _take(self._unlisted[picture], (int(value), place))

    def _matching(self, picture: int, relation: str, value: str, listed: str) -> bool:
        holds = operator.gt if relation == "above" else operator.eq
        return self._same(listed, [x for x in self._values[picture] if holds(x, int(value))])

    def _even(self, picture: int, listed: str) -> bool:
        return self._same(listed, [x for x in self._values[picture] if x % 2 == 0])

    def _same(self, listed: str, values: list[int]) -> bool:
        return sorted(re.findall(r"\d", listed)) == sorted(str(value) for value in values)

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

    def _only(self, picture: int, value: str, place: str) -> bool:
        return [p for v, p in self._places[picture] if v == int(value)] == [place]

    def _appears(self, picture: int, letter: str, value: str, verdict: str) -> bool:
        appears = int(value) in self._values[picture]
        return self._option(picture, value, letter) and appears == (verdict == "yes")

    def _compare(self, picture: int, first: str, sign: str, second: str) -> bool:
        sums = [sum(values) for values in self._values]
        return sums == [int(first), int(second)] and _COMPARISONS[sign](*sums)

    def _digits(self, picture: int, count: str) -> bool:
        return int(count) == len(self._values[picture])

    def _option(self, picture: int, text: str, letter: str) -> bool:
        index = questions.LETTERS.index(letter)
        return index < len(self._record.choices) and self._record.choices[index] == text


def _take(counter: collections.Counter, item: object) -> bool:
    """Takes one `item` out of `counter`; False if none is left."""
    if not counter[item]:
        return False
    counter[item] -= 1
    return True


_CHECKS: tuple[tuple[str, Callable[..., bool]], ...] = (
    (rf"({_PLACE}) (\d)", _SceneFacts._listed),
    (r"(above|equal to) (\d): (none|\d(?:, \d)*)", _SceneFacts._matching),
    (r"even: (none|\d(?:, \d)*)", _SceneFacts._even),
    (r"count (\d+)", _SceneFacts._count),
    (r"(\d+)\+(\d)=(\d+)", _SceneFacts._sum),
    (r"(\d+) of (\d+)", _SceneFacts._even_of_all),
    (r"largest (\d)", _SceneFacts._largest),
    (r"smallest (\d)", _SceneFacts._smallest),
    (r"(\d)-(\d)=(\d)", _SceneFacts._difference),
    (rf"the only (\d): ({_PLACE})", _SceneFacts._only),
    (r"([A-D]) (\d) (yes|no)", _SceneFacts._appears),
    (r"(\d+)([><=])(\d+)", _SceneFacts._compare),
    (r"(\d+) digits", _SceneFacts._digits),
    (r"(.+) is ([A-D])", _SceneFacts._option),
)
