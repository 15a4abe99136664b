"""The clean-up of golds: literal tables, and that a clean gold stays as it is."""

import hypothesis
import pytest
from hypothesis import strategies as st

from data_prep import golds
from data_prep.golds import Repaired, first_box, repair_letters, repair_math

pytestmark = pytest.mark.quick

LETTERS = [
    ("A", "A", ()),
    (" A ", "A", ()),
    ("A)", "A", (golds.LETTER_MARKS,)),
    ("A.", "A", (golds.LETTER_MARKS,)),
    ("(A)", "A", (golds.LETTER_MARKS,)),
    ("[A].", "A", (golds.LETTER_MARKS,)),
    ("a", "A", (golds.LETTER_CASE,)),
    ("(a)", "A", (golds.LETTER_MARKS, golds.LETTER_CASE)),
    ("A: 30°", "A", (golds.OPTION_TEXT,)),
    ("B) The ratio decreases.", "B", (golds.OPTION_TEXT,)),
    ("(c) 12 cm", "C", (golds.OPTION_TEXT, golds.LETTER_CASE)),
    (r"\boxed{C}", "C", (golds.BOX,)),
    (r"\[\boxed{(C)}\]", "C", (golds.DELIMITERS, golds.BOX, golds.LETTER_MARKS)),
    (r"The answer is \boxed{D}.", "D", (golds.BOX,)),
    # Not one letter: the verifier decides.
    ("C, D", "C, D", ()),
    ("A) or B)", "A) or B)", ()),
    ("A: or B: both", "A: or B: both", ()),
    ("A. J. Smith", "A. J. Smith", ()),
    ("a book", "a book", ()),
    ("A/B", "A/B", ()),
    ("", "", ()),
]


@pytest.mark.parametrize(("text", "letter", "repairs"), LETTERS)
def test_letters(text, letter, repairs):
    assert repair_letters(text) == Repaired(letter, repairs)


IN_WORDS = "The function y = a * sin(-5 * x) goes through the points (pi/10,5). What is the function's equation?"
ONLY_ASKED = "What is the function's equation?"
TWO_UNKNOWNS = r"Given \( f(x) = ax^2 + b \) through (0, 2) and (1, 5), find the function expression."

MATH = [
    (r"\[\boxed{y = -5 \sin(-5x)}\]", IN_WORDS, r"y = -5 \sin(-5x)", (golds.DELIMITERS, golds.BOX)),
    (r"\boxed{\frac{1}{\sqrt{2}}}", "", r"\frac{1}{\sqrt{2}}", (golds.BOX,)),
    (r"\boxed{\boxed{3}}", "", "3", (golds.BOX,)),
    (r"$$ 7 $$", "", "7", (golds.DELIMITERS,)),
    (r"The function is \( \boxed{y=2x} \).", "", "y=2x", (golds.BOX,)),
    ("Output 4: y = 3x", "", "y = 3x", (golds.OUTPUT_PREFIX,)),
    ("Output:\n\\[ y = 3x \\]", "", "y = 3x", (golds.OUTPUT_PREFIX, golds.DELIMITERS)),
    (r"\boxed{\text{3}}", "", r"\text{3}", (golds.BOX,)),
    ("Step 1: a = -5.\n\n†Answer: y = -5 * x.", IN_WORDS, "y = -5 * x", (golds.SOLUTION,)),
    # The value of the unknown against the whole function.
    ("a = -5", IN_WORDS, "y = (-5) * sin(-5 * x)", (golds.FUNCTION_COMPLETED,)),
    ("-5", IN_WORDS, "y = (-5) * sin(-5 * x)", (golds.FUNCTION_COMPLETED,)),
    (r"\[\boxed{a = -5}\]", IN_WORDS, "y = (-5) * sin(-5 * x)",
     (golds.DELIMITERS, golds.BOX, golds.FUNCTION_COMPLETED)),
    ("a = 3, b = 2", TWO_UNKNOWNS, "f(x) = (3)x^2 + (2)", (golds.FUNCTION_COMPLETED,)),
    (r"k = \frac{1}{2}", r"$y = \tan(k x)$ passes (1, 2). Solve the function.", r"y = \tan((\frac{1}{2}) x)",
     (golds.FUNCTION_COMPLETED,)),
    (r"\omega = 2", r"y = \sin(\omega x) is shown. Determine the function.", r"y = \sin((2) x)",
     (golds.FUNCTION_COMPLETED,)),
    ("a = 3, y = 3x^2", ONLY_ASKED, "y = 3x^2", (golds.FUNCTION_BESIDE_VALUE,)),
    ("y = 3x^2 and a = 3", "", "y = 3x^2", (golds.FUNCTION_BESIDE_VALUE,)),
    ("a = 3", ONLY_ASKED, "a = 3", (golds.VALUE_ONLY,)),
    ("3", ONLY_ASKED, "3", (golds.VALUE_ONLY,)),
    ("a = 3", TWO_UNKNOWNS, "a = 3", (golds.VALUE_ONLY,)),
    ("3", TWO_UNKNOWNS, "3", (golds.VALUE_ONLY,)),
    # Right as they are.
    ("y = 3", ONLY_ASKED, "y = 3", ()),
    ("a = 3", "The function is y = a * x. What is the value of a in the function?", "a = 3", ()),
    ("a = 3", "", "a = 3", ()),
    ("x = 3", "The function is y = 2 * x. Find the equation.", "x = 3", ()),
    ("a = 3", "Given f(x) = a * x. Find the equation for f(x).", "f(x) = (3) * x", (golds.FUNCTION_COMPLETED,)),
    ("3", "Solve the equation y = a * x through (1, 3) for a.", "3", ()),
    ("a = 3, y = 3x^2", "Find the value of the unknown of the function.", "a = 3, y = 3x^2", ()),
    ("12", "What is the volume of the solid?", "12", ()),
    ("(1, 2)", ONLY_ASKED, "(1, 2)", ()),
    (r"\boxed{3} \text{cm}", "", r"\boxed{3} \text{cm}", ()),
    (r"\boxed{3} or \boxed{4}", "", r"\boxed{3} or \boxed{4}", ()),
    (r"\boxed{3", "", r"\boxed{3", ()),
    ("Output", "", "Output", ()),
    ("", ONLY_ASKED, "", ()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "question", "gold", "repairs"), MATH)
def test_math(text, question, gold, repairs):
    assert repair_math(text, question) == Repaired(gold, repairs)


def test_the_first_box():
    assert first_box(r"so \boxed{\frac{1}{2}} or \boxed{3}") == r"\frac{1}{2}"
    assert first_box("no box") is None
    assert first_box(r"\boxed{open") is None


pieces = st.lists(
    st.sampled_from(
        [r"\boxed{", "}", r"\[", r"\]", "$", "$$", r"\(", r"\)", "Output 4:", "†Answer:", "a = 3", "y = 2x", "-5", ", ",
         " and ", "(", ")", "A", "b", ". ", ": ", " ", "\\", "text"]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)  # fmt: skip
questions = st.sampled_from(["", IN_WORDS, ONLY_ASKED, TWO_UNKNOWNS])


@hypothesis.given(pieces, questions)
@hypothesis.settings(deadline=None, max_examples=200)
def test_repairing_a_repaired_gold_changes_nothing(text, question):
    letter = repair_letters(text).text
    assert repair_letters(letter) == Repaired(letter)
    gold = repair_math(text, question).text
    again = repair_math(gold, question)
    assert again.text == gold
    assert set(again.repairs) <= {golds.VALUE_ONLY}


@pytest.mark.parametrize("text", ["\\boxed{" * 300_000, " " * 2_000_000, "a = 3, " * 300_000, "(" * 2_000_000])
def test_long_golds_cost_nothing(text):
    assert repair_math(text, text) == Repaired(text)
    assert repair_letters(text) == Repaired(text)
