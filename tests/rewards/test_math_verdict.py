import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.rewards.math import check_gold, submit

CASES = [
    # gold, answer, score, valid
    ("5", "5", 1, True),
    ("5", "5.0", 1, True),
    ("5", "5.00", 1, True),
    ("0.5", ".5", 1, True),
    ("-5", "−5", 1, True),
    ("12", "１２", 1, True),
    ("1000", "1,000", 1, True),
    ("1000", r"1\,000", 1, True),
    ("10^3", "1000", 1, True),
    ("2000", r"2 \times 10^3", 1, True),
    ("1/2", "0.5", 1, True),
    (r"\frac{3}{4}", "6/8", 1, True),
    ("3/4", r"\frac{6}{8}", 1, True),
    (r"\frac12", "0.5", 1, True),
    ("2.5", r"2 \frac{1}{2}", 1, True),
    ("2:3", "2/3", 1, True),
    (r"\frac{1}{3}", "0.3333333", 1, True),
    (r"\frac{1}{3}", "0.333", 0, True),
    (r"\sqrt{2}", "1.414", 0, True),
    (r"\pi", "3.14", 0, True),
    ("12.0001", "12", 0, True),
    # gold raw, as data sets write it
    (r"\sqrt{2}", r"\boxed{\sqrt{2}}", 1, True),
    (r"2\sqrt{3}", r"\sqrt{12}", 1, True),
    ("x^2+2x+1", "(x+1)^2", 1, True),
    (r"\[\boxed{y = 2\cos(3x)}\]", r"$y=2\cos(3x)$", 1, True),
    (r"y=\sin(x)+2", r"y=2+\sin x", 1, True),
    (r"y = \log_{2}(x+1)", r"\log_2(x+1)", 1, True),
    ("y = |x-2|", "y = |2-x|", 1, True),
    ("A", "a", 1, True),
    # units: ignored when one side has none, compared when both have one, never converted
    ("5", "5 cm", 1, True),
    ("5", r"5\,\text{cm}", 1, True),
    ("5 cm", "5", 1, True),
    ("5 cm", "5 centimeters", 1, True),
    ("5 cm", "5 m", 0, True),
    ("5 cm", "7 cm", 0, True),
    ("5", "7 cm", 0, True),
    ("100 cm", "1 m", 0, True),
    ("5 cm^2", "5 cm", 0, True),
    ("90", r"90^\circ", 1, True),
    ("5m", "5", 0, True),
    # percent: 50% is 0.5; a gold with the sign asks for a percentage
    ("0.5", "50%", 1, True),
    ("50", "50%", 0, True),
    ("50", "0.5", 0, True),
    ("0.5", "50", 0, True),
    ("50%", "50%", 1, True),
    ("50%", "0.5", 1, True),
    ("50%", r"\frac{1}{2}", 1, True),
    ("50%", "50", 1, True),
    ("50%", "5%", 0, True),
    ("50%", "500%", 0, True),
    ("50%", "5000%", 0, True),
    (r"x = 50\%", "x = 0.5", 1, True),
    # sets unordered, tuples ordered
    (r"\{1,2\}", r"\{2,1\}", 1, True),
    ("1,2", "2,1", 1, True),
    ("1 or 2", "2, 1", 1, True),
    ("1, 2", "1, 2, 3", 0, True),
    ("1, 2", "1", 0, True),
    ("(1,2)", "(1, 2)", 1, True),
    ("(1,2)", "(2,1)", 0, True),
    ("(1,2)", "2, 1", 0, True),
    ("x=3, x=-3", r"\pm 3", 1, True),
    ("x>3", "3<x", 1, True),
    ("[0,1)", r"0 \le x < 1", 1, True),
    (r"0 \le x < 1", "[0,1)", 1, True),
    ("[1,2]", "(1,2)", 0, True),
    # hedges
    ("3", "3 or 4", 0, False),
    ("3", "4 or 3", 0, False),
    ("3", r"3 \text{ or } 4", 0, False),
    ("3", "3, 4", 0, False),
    ("3", "4, 3", 0, False),
    ("3", r"\{3, 4\}", 0, False),
    ("3", r"\pm 3", 0, False),
    ("3", "x = 3, x = 4", 0, False),
    ("x = 3", r"x = \pm 3", 0, False),
    ("3", r"\boxed{3} \boxed{4}", 0, False),
    ("3", r"\boxed{3} or \boxed{4}", 0, False),
    ("7", "3 4", 0, False),
    ("3", "3\n4", 0, False),
    ("3", "(3, 4)", 0, True),
    ("3", "[3, 4]", 0, True),
    ("3", "3 = 4", 0, True),
    ("4", "3 = 4", 0, True),
    ("3", "4 = 3", 0, True),
    ("3", r"\frac{0}{0}", 0, True),
    ("x^2 = -1", "1 = 2", 0, True),
    ("x^2 = -1", "x^2 = -2", 0, True),
    ("x^2 = -1", r"\boxed{x^2 = -1}", 1, True),
    ("0 = 0", "1 = 2", 0, True),
    ("y = 3x+1", "y = y", 0, True),
    # chains and names
    ("4", "2 + 2 = 4", 1, True),
    ("3", "x = 3", 1, True),
    ("x = 3", "3", 1, True),
    ("3x+1", "y = 3x+1", 1, True),
    ("y = 3x+1", "y-3x = 1", 1, True),
    ("1", "y-3x = 1", 0, True),
    ("x = 3", "y = 3", 0, True),
    # a plain number is asked for
    ("391", r"17 \cdot 23", 0, True),
    ("12", "3+4+5", 0, True),
    ("4", r"\max(3,4)", 0, True),
    ("3", "5-2", 0, True),
    ("1+\\sqrt{2}", r"\sqrt{2}+1", 1, True),
    # nothing to read
    ("3", "three", 0, False),
    ("3", "I think it is three", 0, False),
    ("3", r"\frac{1", 0, False),
    ("3", "?", 0, False),
]


@pytest.mark.parametrize("gold, answer, score, valid", CASES)
def test_math(gold, answer, score, valid):
    verdict, _ = submit(answer, gold)()
    assert (verdict.score, verdict.valid) == (score, valid)


@pytest.mark.parametrize("first, second", [(gold, answer) for gold, answer, score, _ in CASES if score])
def test_equality_is_symmetric_save_where_documented(first, second):
    verdict, _ = submit(first, second)()
    assert verdict.score == 1 or (first, second) in {("50%", "50"), ("4", "2 + 2 = 4")}


@pytest.mark.parametrize(
    "gold", ["3", r"\sqrt{2}", r"2\sqrt{3}", "x^2+2x+1", "(1,2)", "1,2", "y = 3x+1", "50%", "5 cm"]
)
def test_good_gold(gold):
    check_gold(gold)


@pytest.mark.parametrize(
    "gold", ["", "no solution at all", r"\frac{1", "3 4", r"\frac{0}{0}", "9" * 3000, r"(a+b", "?"]
)
def test_bad_gold(gold):
    with pytest.raises(InputError, match="gold answer"):
        check_gold(gold)


def test_a_gold_that_does_not_parse_is_never_a_silent_zero():
    with pytest.raises(InputError, match="cannot be parsed"):
        submit("1", r"\frac{1")()
