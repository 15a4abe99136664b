import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.rewards.mcq import check_choices, judge, read, read_gold

CHOICES = ("10", "12", "15", "Point A")
CASES = [
    # gold, answer, score, valid
    ("B", "B", 1, True),
    ("B", "(B)", 1, True),
    ("B", "[B]", 1, True),
    ("B", "B.", 1, True),
    ("B", "B)", 1, True),
    ("B", "B:", 1, True),
    ("B", r"\text{B}", 1, True),
    ("B", r"$\text{(B)}$", 1, True),
    ("B", r"\(\mathrm{B}\)", 1, True),
    ("B", "**B**", 1, True),
    ("B", "**B.** 12", 1, True),
    ("B", "Option B", 1, True),
    ("B", "option (B).", 1, True),
    ("B", "Answer: B", 1, True),
    ("B", "The correct answer is B.", 1, True),
    ("B", "The answer is option B", 1, True),
    ("B", r"\boxed{B}", 1, True),
    ("B", r"\[\boxed{\textbf{B}}\]", 1, True),
    ("B", r"\boxed{B. 12}", 1, True),
    ("B", "B. 12", 1, True),
    ("B", "B: 12", 1, True),
    ("B", "B 12", 1, True),
    ("B", "(B) $12$", 1, True),
    ("B", "B) 12.", 1, True),
    ("B", "\n\nB\n", 1, True),
    ("B", "b", 1, True),
    ("B", "(b)", 1, True),
    ("B", "Ｂ", 1, True),
    ("B", "B. because it is the larger angle", 1, True),
    ("D", "D. Point A", 1, True),
    ("D", "D. point a", 1, True),
    ("B", "A", 0, True),
    ("B", "A. 10", 0, True),
    ("B", "A, B", 0, True),
    ("B", "ABCD", 0, True),
    ("B", "A, B, C, D", 0, True),
    ("B", "A. 10, B. 12, C. 15, D. Point A", 0, True),
    ("B", "A or B", 0, False),
    ("B", "B or A.", 0, False),
    ("B", "A/B", 0, False),
    ("B", r"\boxed{A} or \boxed{B}", 0, False),
    ("B", "B. 12 or C. 15", 0, False),
    ("B", "B. maybe A", 0, False),
    ("B", "B. not 15", 0, False),
    ("B", "B. 15", 0, False),
    ("B", "B. or so", 0, False),
    ("B", "not A", 0, False),
    ("B", "12", 0, False),
    ("B", "E", 0, False),
    ("B", "B, E", 0, False),
    ("B", "the second one", 0, False),
    ("B", "B?", 0, False),
    ("A", "bad", 0, False),
    ("A", "a point", 0, False),
    ("AC", "AC", 1, True),
    ("AC", "CA", 1, True),
    ("AC", "C, A", 1, True),
    ("AC", "A and C", 1, True),
    ("AC", "A, and C", 1, True),
    ("AC", "both A and C", 1, True),
    ("AC", "A & C", 1, True),
    ("AC", "A; C", 1, True),
    ("AC", "a, c", 1, True),
    ("AC", "(A), (C)", 1, True),
    ("AC", "(A)(C)", 0, False),
    ("AC", "A\nC", 1, True),
    ("AC", r"\boxed{A}, \boxed{C}", 1, True),
    ("AC", r"\boxed{A, C}", 1, True),
    ("AC", "Options A and C", 1, True),
    ("AC", "A. 10, C. 15", 1, True),
    ("AC", "A. 10\nC. 15", 1, True),
    ("AC", "A", 0, True),
    ("AC", "A, B, C", 0, True),
    ("AC", "A or C", 0, False),
    ("ABCD", "A, B, C, D", 1, True),
]


@pytest.mark.quick
@pytest.mark.parametrize("gold, answer, score, valid", CASES)
def test_mcq(gold, answer, score, valid):
    verdict = judge(answer, gold, CHOICES)
    assert (verdict.score, verdict.valid) == (score, valid)


@pytest.mark.quick
@pytest.mark.parametrize(
    "gold, letters",
    [
        ("B", "B"),
        ("b", "B"),
        ("(a)", "A"),
        ("A)", "A"),
        ("A,C", "AC"),
        ("AC", "AC"),
        ("C, A", "AC"),
        ("C and A", "AC"),
        ("B. 12", "B"),
        ("D) Point A", "D"),
    ],
)
def test_gold_spellings(gold, letters):
    assert read_gold(gold, CHOICES) == frozenset(letters)


@pytest.mark.quick
@pytest.mark.parametrize("gold", ["", "E", "12", "A or B", "second", "A, E", "ac"])
def test_bad_gold(gold):
    with pytest.raises(InputError, match="does not name options A to D"):
        read_gold(gold, CHOICES)


@pytest.mark.quick
@pytest.mark.parametrize("choices", [(), ("one",), ("one", " "), ("x",) * 27])
def test_bad_choices(choices):
    with pytest.raises(InputError, match="choices"):
        check_choices(choices)


@pytest.mark.quick
def test_options_unknown():
    assert judge("(F)", "F").score == 1
    assert judge("F. seven", "F").score == 1
    assert judge("F or G", "F") == judge("F or G", "G")
    assert judge("F or G", "F").rule == "hedge"


@pytest.mark.quick
def test_options_that_contain_or_and_letters():
    choices = ("red or blue", "A and C", "green/blue")
    assert judge("A. red or blue", "A", choices).score == 1
    assert judge("B. A and C", "B", choices).score == 1
    assert judge("C) green/blue", "C", choices).score == 1
    assert judge("A and C", "B", choices).score == 0


def test_the_score_is_set_equality_for_every_pair_of_sets():
    sets = [set(chosen) for size in range(1, 5) for chosen in itertools.combinations("ABCD", size)]
    for gold, answer in itertools.product(sets, sets):
        assert judge(" and ".join(sorted(answer)), ", ".join(sorted(gold, reverse=True)), CHOICES).score == (
            gold == answer
        )


@given(st.text())
def test_any_text_is_read_or_refused(text):
    letters, rule = read(text, CHOICES)
    assert (letters is None) == bool(rule)
    assert letters is None or (letters and letters <= set("ABCD"))
