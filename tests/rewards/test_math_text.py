import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.rewards.math_text import LONGEST, Expression, read


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, expected",
    [
        ("3", Expression(("3",))),
        (r"\[ \boxed{3}. \]", Expression(("3",))),
        ("The final answer is $3$.", Expression(("3",))),
        (r"x = \boxed{3}", Expression(("x", "3"))),
        (r"\boxed{3}, \boxed{-3}", Expression(("3 , -3",))),
        ("50%", Expression(("50",), percent=True)),
        (r"x = 50\%", Expression(("x", "50"), percent=True)),
        ("50 percent", Expression(("50",), percent=True)),
        ("5 cm", Expression(("5",), unit="cm")),
        ("5cm", Expression(("5",), unit="cm")),
        (r"5\,\text{cm}", Expression(("5",), unit="cm")),
        (r"5 \mathrm{ m}^2", Expression(("5",), unit="m^2")),
        ("5 square meters", Expression(("5",), unit="m^2")),
        ("5 cm²", Expression(("5",), unit="cm^2")),
        (r"2\sqrt{3} \text{ cubic cm}", Expression((r"2\sqrt{3}",), unit="cm^3")),
        (r"4\pi \text{ square units}", Expression((r"4\pi",), unit="unit^2")),
        (r"5 \text{ apples}", Expression(("5",), unit="apples")),
        ("90°", Expression(("90",), unit="degree")),
        (r"90^\circ", Expression(("90",), unit="degree")),
        ("90 degrees", Expression(("90",), unit="degree")),
        ("5 m", Expression(("5",), unit="m")),
        ("5m", Expression(("5m",))),
        ("x^2 m", Expression(("x^2 m",))),
        (r"\sin 60^\circ", Expression((r"\sin 60^\circ",))),
        ("1,000", Expression(("1000",))),
        (r"1\,000\,000", Expression(("1000000",))),
        ("(1,234)", Expression(("(1,234)",))),
        ("3, 4", Expression(("3, 4",))),
        ("x = 1, y = 2", Expression(("x = 1, y = 2",))),
        ("0 <= x", Expression(("0 <= x",))),
        (r"\frac12", Expression((r"\frac{1}{2}",))),
        ("2 1/2", Expression((r"2\frac{1}{2}",))),
        ("2½", Expression((r"2\frac{1}{2}",))),
        ("x²", Expression(("x^{2}",))),
        ("10⁻¹²", Expression(("10^{-12}",))),
        ("√2", Expression((r"\sqrt{2}",))),
        ("2sqrt(3)", Expression((r"2\sqrt{3}",))),
        ("pi/2", Expression((r"\pi /2",))),
        ("−５", Expression(("-5",))),
        (r"\$5", Expression(("5",))),
        ("2**3", Expression(("2^3",))),
    ],
)
def test_read(text, expected):
    assert read(text) == (expected, "")


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, rule",
    [
        ("", "unparsable"),
        ("$$", "unparsable"),
        ("%", "unparsable"),
        ("x =", "unparsable"),
        ("3 4", "side_by_side"),
        (r"3 \quad 4", "side_by_side"),
        ("3\n4", "side_by_side"),
        ("three", "prose"),
        ("5 apples", "prose"),
        ("it is 5", "prose"),
        ("either 3 or 4", "prose"),
        ("1" * (LONGEST + 1), "too_long"),
        ("é" * (LONGEST // 2 + 1), "too_long"),
    ],
)
def test_refused(text, rule):
    assert read(text) == (None, rule)


@pytest.mark.quick
def test_claims_leave_names_out():
    assert read(r"\angle ABC = 40 + 5 = 45^\circ")[0].claims == ("40 + 5", "45")
    assert read("f(2) = 3")[0].claims == ("3",)
    assert read("x = 50%")[0].claims == (r"\frac{50}{100}",)
    assert read("x = y")[0].claims == ("y",)


@given(st.text(alphabet=r"0123 .,=%$\{}()[]^_-+/*√²½°boxedfractextcm", max_size=60))
def test_any_text_is_read_or_refused(text):
    expression, rule = read(text)
    assert (expression is None) == bool(rule)
    assert expression is None or all(expression.sides)
