"""Facts of a scene as text, and the scorer of descriptions: an exact stand-in for a reward model.

A fact is a digit at a place. The facts of a scene are a multiset: were there two sevens at one place, the same
statement made twice would state both of them; a third time is a repeat.
"""

import collections
import re

from data_prep.digit_scenes import scenes
from vlaa_jax.processing.records import Record

Fact = tuple[int, str]

_CLAUSE_END = re.compile(r"[.;!\n]+")
_PLACE = rf"(?:at|in|on) the ({'|'.join(sorted(scenes.PLACES, key=len, reverse=True))})"
_CLAUSE = re.compile(rf"{_PLACE},? there is an? (\d)|there is an? (\d) {_PLACE}", re.IGNORECASE)

TRUE, FALSE, IDLE = 1.0, -1.0, -0.25


def statement(value: int, place: str) -> str:
    """The sentence that states one fact: "In the northwest there is a 7."."""
    return f"In the {place} there is {'an' if value == 8 else 'a'} {value}."


def parse_statements(text: str) -> list[Fact | None]:
    """The fact that each clause of `text` states, place first or digit first; None for a clause that states none.

    Blank clauses are left out.
    """
    clauses = [" ".join(clause.split()) for clause in _CLAUSE_END.split(text)]
    matches = [_CLAUSE.fullmatch(clause) for clause in clauses if clause]
    return [(int(match[2] or match[3]), (match[1] or match[4]).lower()) if match else None for match in matches]


class FactScorer:
    """Scores a description of a digit scene: +1 a true statement, -1 a false one, -0.25 a repeat or an unparsed clause.

    Attributes:
      beta: slope of the reward `1 - exp(-beta * (S(answer) - S(reference)))`. One true fact more than the reference
        gives `1 - exp(-0.8) = 0.55` whatever the number of facts, two give 0.80.
      scale: the range of the score in words.
    """

    beta = 0.8
    scale = "true statements less false ones, about -3 to 9"

    def __call__(self, example: Record, answer: str) -> float:
        """Score of `answer` for the scene in `example.metadata["glyphs"]`, not bounded; 0 for an empty answer."""
        unsaid = collections.Counter(
            (glyph["value"], glyph["place"]) for picture in example.metadata["glyphs"] for glyph in picture
        )
        known = frozenset(unsaid)
        score = 0.0
        for fact in parse_statements(answer):
            if fact is None:
                score += IDLE
            elif fact not in known:
                score += FALSE
            elif unsaid[fact]:
                unsaid[fact] -= 1
                score += TRUE
            else:
                score += IDLE
        return score
