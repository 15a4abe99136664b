"""The digit verifier: one integer, as in counting questions. Rule of VLAA-Thinking, figure 4: 1 if equal, else 0."""

import re

from vlaa_jax.errors import InputError
from vlaa_jax.rewards.extract import normalise, unwrap
from vlaa_jax.rewards.verdict import Verdict, invalid

_INTEGER = re.compile(r"([+-]?)0*([0-9]+)")


def read(text: str) -> str | None:
    r"""The integer as text without leading zeros or plus sign, or None unless the whole text is one integer literal.

    Seen through: full-width digits, Unicode minus, `$`, `\boxed{}`, bold, a final period. Not integers: 'three',
    '3 or 4', '3.5', '5.0', '1,000', '5 cm'.
    """
    match = _INTEGER.fullmatch(unwrap(normalise(text).strip("$")))
    if match is None:
        return None
    sign = "-" if match[1] == "-" and match[2] != "0" else ""
    return sign + match[2]


def read_gold(gold: str) -> str:
    """As `read`; raises InputError."""
    number = read(gold)
    if number is None:
        raise InputError(f"gold answer {gold!r} is not one integer, as the digit verifier expects")
    return number


def judge(answer: str, gold: str) -> Verdict:
    """1 when answer and gold are the same integer, else 0."""
    expected, number = read_gold(gold), read(answer)
    if number is None:
        return invalid("not_one_integer")
    equal = number == expected
    return Verdict(valid=True, normal_form=number, rule="equal" if equal else "different", score=float(equal))
