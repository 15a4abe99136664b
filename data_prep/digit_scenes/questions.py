"""The twelve kinds of question: which digits a scene must show, what is asked, and the gold answer.

Answers are balanced before the scene is drawn: a kind first draws its answer (or the letter, the rank, the subset),
then digits that give it. So neither the question's wording nor its options tell the answer.
"""

import dataclasses
import fractions
from collections.abc import Callable

import numpy as np

from data_prep.digit_scenes import facts, scenes

LETTERS = "ABCD"
PICTURE_OPTIONS = ("first", "second", "equal")

Pictures = list[list[scenes.Glyph]]  # glyphs of each picture in reading order
Answer = tuple[str, tuple[str, ...]]  # gold, options in letter order


@dataclasses.dataclass(frozen=True)
class Draft:
    """What must be known before the scene is drawn.

    Attributes:
      values: for each picture, the digits that it shows.
      value: the digit that the question names, if it names one.
      choices: options in letter order, where they do not depend on places.
    """

    values: tuple[tuple[int, ...], ...]
    value: int | None = None
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked about a drawn scene; the fields are those of `Record`, `value` is the digit the question names."""

    text: str
    answer: str
    choices: tuple[str, ...] = ()
    box_space: str = ""
    value: int | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of question.

    Attributes:
      verifier: the record's verifier.
      templates: paraphrases; `{v}` is the digit that the question names.
      draft: `(generator, digits, turn) -> Draft`; `turn` counts the questions of this kind in a split and is used to
        give every option its share.
      answer: `(generator, draft, pictures, turn) -> (gold, options)`.
    """

    verifier: str
    templates: tuple[str, ...]
    draft: Callable[[np.random.Generator, int, int], Draft]
    answer: Callable[[np.random.Generator, Draft, Pictures, int], Answer]


def ask(kind: str, generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Question:
    """The question of a kind about a drawn scene; options stand below the text as lines `A. ...`."""
    answer, choices = KINDS[kind].answer(generator, draft, pictures, turn)
    templates = KINDS[kind].templates
    text = templates[generator.integers(len(templates))].format(v=draft.value)
    text = "\n".join([text, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])
    box_space = "pixels" if KINDS[kind].verifier == "iou" else ""
    return Question(text, answer, choices, box_space, draft.value)


# Drafts: digits that give a balanced answer.


def _digits(generator: np.random.Generator, low: int, high: int, count: int) -> list[int]:
    """`count` digits, uniform in [low, high]."""
    return generator.integers(low, high + 1, count).tolist()


def _others(generator: np.random.Generator, value: int, count: int) -> list[int]:
    """`count` digits other than `value`, uniform."""
    return [(value + step) % 10 for step in _digits(generator, 1, 9, count)]


def _one(values: list[int], value: int | None = None, choices: tuple[str, ...] = ()) -> Draft:
    return Draft((tuple(values),), value, choices)


def _draft_count_value(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    value = int(generator.integers(10))
    matching = int(generator.integers(min(digits, 5) + 1))
    return _one([value] * matching + _others(generator, value, digits - matching), value)


def _draft_count_above(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    value = int(generator.integers(2, 8))
    above = int(generator.integers(digits + 1))
    return _one(_digits(generator, value + 1, 9, above) + _digits(generator, 0, value, digits - above), value)


def _draft_any(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    return _one(_digits(generator, 0, 9, digits))


def _draft_fraction_even(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    even = int(generator.integers(digits + 1))
    odd = digits - even
    return _one([2 * x for x in _digits(generator, 0, 4, even)] + [2 * x + 1 for x in _digits(generator, 0, 4, odd)])


def _draft_range(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    spread = int(generator.integers(1, 10))
    low = int(generator.integers(10 - spread))
    return _one([low, low + spread, *_digits(generator, low, low + spread, digits - 2)])


def _draft_largest(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    """The gold's rank among the four options is uniform: to pick the largest option is right once in four."""
    larger = turn // 4 % 4
    gold = int(generator.integers(max(2, 3 - larger), 10 - larger))
    values = [gold, *_digits(generator, 0, gold, digits - 1)]
    seen = sorted(set(values) - {gold})
    unseen = sorted(set(range(gold)) - set(values))
    below = [*generator.permutation(seen).tolist(), *generator.permutation(unseen).tolist()][: 3 - larger]
    above = generator.permutation(np.arange(gold + 1, 10)).tolist()[:larger]
    return _one(values, None, _arrange(generator, str(int(gold)), [str(int(x)) for x in below + above], turn))


def _draft_single(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    value = int(generator.integers(10))
    return _one([value, *_others(generator, value, digits - 1)], value)


def _draft_which_appear(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    options = generator.permutation(10)[:4].tolist()
    subsets = [subset for subset in range(1, 16) if subset.bit_count() <= digits]
    subset = subsets[turn % len(subsets)]
    present = [option for bit, option in enumerate(options) if subset >> bit & 1]
    allowed = sorted(set(range(10)) - set(options) | set(present))
    rest = [allowed[x] for x in _digits(generator, 0, len(allowed) - 1, digits - len(present))]
    return _one(present + rest, None, tuple(str(option) for option in options))


def _draft_compare_sums(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    """The digits are shared between two pictures, at least two each; a third of the pairs have equal sums."""
    first = max(4, digits) // 2
    second = max(4, digits) - first
    if generator.integers(2):
        first, second = second, first
    outcome = turn // 3 % 3
    while True:
        values = _digits(generator, 0, 9, first), _digits(generator, 0, 9, second)
        difference = sum(values[0]) - sum(values[1])
        if abs(difference) < 10 and (difference < 0) + 2 * (difference == 0) == outcome:
            distractors = [option for option in PICTURE_OPTIONS if option != PICTURE_OPTIONS[outcome]]
            choices = _arrange(generator, PICTURE_OPTIONS[outcome], distractors, turn)
            return Draft((tuple(values[0]), tuple(values[1])), None, choices)


def _draft_box_largest(generator: np.random.Generator, digits: int, turn: int) -> Draft:
    largest = int(generator.integers(2, 10))
    return _one([largest, *_digits(generator, 0, largest - 1, digits - 1)])


def _arrange(generator: np.random.Generator, gold: str, distractors: list[str], turn: int) -> tuple[str, ...]:
    """Options with the gold at letter `turn` modulo their number, the others in random order."""
    options = [distractors[index] for index in generator.permutation(len(distractors))]
    options.insert(turn % (len(distractors) + 1), gold)
    return tuple(options)


# Gold answers.


def _shown(pictures: Pictures) -> list[int]:
    return [glyph.value for glyph in pictures[0]]


def _answer_count_value(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    return str(_shown(pictures).count(draft.value)), ()


def _answer_count_above(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    return str(sum(value > draft.value for value in _shown(pictures))), ()


def _answer_sum(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    return str(sum(_shown(pictures))), ()


def even_share(values: list[int]) -> str:
    r"""Share of even digits in lowest terms, `\frac{2}{5}`, or the integer 0 or 1."""
    share = fractions.Fraction(sum(value % 2 == 0 for value in values), len(values))
    return str(share) if share.denominator == 1 else rf"\frac{{{share.numerator}}}{{{share.denominator}}}"


def _answer_fraction_even(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    return even_share(_shown(pictures)), ()


def _answer_range(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    return str(max(_shown(pictures)) - min(_shown(pictures))), ()


def _answer_largest(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    return LETTERS[draft.choices.index(str(max(_shown(pictures))))], draft.choices


def _answer_position(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    """Distractors are first the places of other digits, then empty ones."""
    (gold,) = (glyph.place for glyph in pictures[0] if glyph.value == draft.value)
    places = generator.permutation([place for place in scenes.PLACES if place != gold]).tolist()
    taken = {glyph.place for glyph in pictures[0]}
    places.sort(key=lambda place: place not in taken)
    choices = _arrange(generator, gold, places[:3], turn)
    return LETTERS[choices.index(gold)], choices


def _answer_which_appear(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    shown = {str(value) for value in _shown(pictures)}
    present = [letter for letter, choice in zip(LETTERS, draft.choices, strict=True) if choice in shown]
    return ",".join(present), draft.choices


def _answer_compare_sums(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    first, second = (sum(glyph.value for glyph in picture) for picture in pictures)
    outcome = PICTURE_OPTIONS[2 if first == second else int(second > first)]
    return LETTERS[draft.choices.index(outcome)], draft.choices


def format_box(box: tuple[int, int, int, int]) -> str:
    """`[x1,y1,x2,y2]`."""
    return "[" + ",".join(str(side) for side in box) + "]"


def _answer_box_only(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    (box,) = (glyph.box for glyph in pictures[0] if glyph.value == draft.value)
    return format_box(box), ()


def _answer_box_largest(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    return format_box(max(pictures[0], key=lambda glyph: glyph.value).box), ()


def _answer_describe(generator: np.random.Generator, draft: Draft, pictures: Pictures, turn: int) -> Answer:
    """True, but only about half of the facts (one more or less, at least one, never all), in reading order."""
    glyphs = pictures[0]
    stated = int(np.floor(len(glyphs) / 2 + generator.uniform(-1, 2)))
    stated = min(max(stated, 1), len(glyphs) - 1)
    chosen = sorted(generator.permutation(len(glyphs))[:stated].tolist())
    return " ".join(facts.statement(glyphs[index].value, glyphs[index].place) for index in chosen), ()


KINDS = {
    "count_value": Kind(
        "digit",
        (
            "How many times does the digit {v} appear?",
            "Count the digits that are a {v}.",
            "How many digits in the picture equal {v}?",
        ),
        _draft_count_value,
        _answer_count_value,
    ),
    "count_above": Kind(
        "digit",
        (
            "How many digits are greater than {v}?",
            "Count the digits above {v}.",
            "How many digits in the picture exceed {v}?",
        ),
        _draft_count_above,
        _answer_count_above,
    ),
    "sum": Kind(
        "math",
        ("What is the sum of all digits?", "Add up all digits in the picture.", "What do the digits add up to?"),
        _draft_any,
        _answer_sum,
    ),
    "fraction_even": Kind(
        "math",
        (
            "What fraction of the digits is even?",
            "Which part of all digits in the picture is even, as a fraction?",
            "Give the number of even digits as a fraction of all digits.",
        ),
        _draft_fraction_even,
        _answer_fraction_even,
    ),
    "range": Kind(
        "math",
        (
            "What is the largest digit minus the smallest?",
            "How far apart are the smallest and the largest digit?",
            "By how much does the largest digit exceed the smallest?",
        ),
        _draft_range,
        _answer_range,
    ),
    "largest": Kind(
        "mcq",
        ("Which digit is the largest?", "What is the largest digit in the picture?", "Name the largest digit shown."),
        _draft_largest,
        _answer_largest,
    ),
    "position": Kind(
        "mcq",
        (
            "Where is the digit {v}?",
            "In which part of the picture is the {v}?",
            "At which place does the digit {v} stand?",
        ),
        _draft_single,
        _answer_position,
    ),
    "which_appear": Kind(
        "mcq",
        (
            "Which of these digits appear in the picture?",
            "Name every option that the picture shows.",
            "Which of the digits below can be seen?",
        ),
        _draft_which_appear,
        _answer_which_appear,
    ),
    "compare_sums": Kind(
        "mcq",
        (
            "Which picture has the larger sum of digits?",
            "Add up the digits of each picture. Which sum is larger?",
            "In which picture do the digits add up to more?",
        ),
        _draft_compare_sums,
        _answer_compare_sums,
    ),
    "box_only": Kind(
        "iou",
        ("Give the bounding box of the {v}.", "Locate the digit {v} with a box.", "What is the box around the {v}?"),
        _draft_single,
        _answer_box_only,
    ),
    "box_largest": Kind(
        "iou",
        (
            "Give the bounding box of the largest digit.",
            "Locate the largest digit with a box.",
            "What is the box around the largest digit?",
        ),
        _draft_box_largest,
        _answer_box_largest,
    ),
    "describe": Kind(
        "open_ended",
        ("Describe the picture.", "Which digits are where?", "Say which digits the picture shows, and where."),
        _draft_any,
        _answer_describe,
    ),
}
