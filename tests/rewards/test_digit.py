import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.rewards.digit import judge, read_gold

CASES = [
    # gold, answer, score, valid
    ("3", "3", 1, True),
    ("3", " 3.\n", 1, True),
    ("3", "$3$", 1, True),
    ("3", "$3", 1, True),
    ("3", r"\boxed{3}", 1, True),
    ("3", r"\[\boxed{3}\]", 1, True),
    ("3", "**3**", 1, True),
    ("3", "３", 1, True),
    ("3", "03", 1, True),
    ("3", "+3", 1, True),
    ("-5", "−5", 1, True),
    ("0", "-0", 1, True),
    ("$12$", "12", 1, True),
    ("9" * 5000, "9" * 5000, 1, True),
    ("3", "4", 0, True),
    ("5", "-5", 0, True),
    ("53", "5³", 0, False),
    ("1", "①", 0, False),
    ("3", "three", 0, False),
    ("3", "3 or 4", 0, False),
    ("3", "3, 4", 0, False),
    ("34", "3 4", 0, False),
    ("3", "3.5", 0, False),
    ("3", "3.0", 0, False),
    ("3", "3 3", 0, False),
    ("3", "3 objects", 0, False),
    ("3", "The answer is 3", 0, False),
    ("1000", "1,000", 0, False),
    ("3", r"\boxed{3} \boxed{4}", 0, False),
    ("3", "0 1 2 3 4 5 6 7 8 9", 0, False),
    ("3", "", 0, False),
]


@pytest.mark.quick
@pytest.mark.parametrize("gold, answer, score, valid", CASES)
def test_digit(gold, answer, score, valid):
    verdict = judge(answer, gold)
    assert (verdict.score, verdict.valid) == (score, valid)


@pytest.mark.quick
@pytest.mark.parametrize("gold", ["", "three", "3.5", "3 or 4", "A"])
def test_bad_gold(gold):
    with pytest.raises(InputError, match="not one integer"):
        read_gold(gold)


@pytest.mark.quick
def test_normal_form():
    assert [judge(answer, "3").normal_form for answer in ("+003.", "−0", "x")] == ["3", "0", ""]
