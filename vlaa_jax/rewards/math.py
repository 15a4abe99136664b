r"""The math verifier: LaTeX or plain expressions, compared by math-verify (as in VLAA-Thinking) in worker processes.

math-verify decides whether two expressions are equal: unreduced fractions, surds and expanded forms are accepted, sets
are unordered, tuples ordered, decimals equal when they agree to 6 places. What it decides by habit is decided here
(reading: math_text.py):

* One answer. `3 or 4`, `3, 4`, `\pm 3` for a gold of one value are hedges and not valid; for a gold of several values
  they are a set. Numbers separated only by space are not valid (math-verify reads `3 4` as 3 + 4).
* A chain of equalities, `x = 3` or `2 + 2 = 4`, for a gold without an equals sign: every side that is not a mere name
  must equal the gold (math-verify looks at the last side only, so `4 = 3` would pass for 3).
* A gold that is a plain number asks for a number: `17 \cdot 23`, `3+4` or `\max(3, 4)` score 0 (rule `not_evaluated`).
  Fractions, powers, roots, mixed numbers and scientific notation are numbers.
* Percent. `50%` means 0.5. A gold with a percent sign asks for a percentage, so for `50%` the answers 50%, 0.5 and 50
  are right; for the gold 0.5 the answer 50% is right; for the gold 50 it is not.
* Units. A unit that only one side writes is ignored; two different units score 0 (rule `other_unit`). Units are not
  converted. A unit is a known one (`cm`, `m^2`, `degrees`), or any words in `\text{}` or `\mathrm{}`, after a number.

Not symmetric in gold and answer, on purpose: the percent rule, the plain-number rule, and equations (a gold `x = 3`
takes the answer `3` and the gold `3` takes `x = 3`, but the gold `2x + z = 1` does not take `1`).
"""

import os
import re
import threading
from collections.abc import Callable

from vlaa_jax.errors import InputError
from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rewards.math_text import Expression, read
from vlaa_jax.rewards.verdict import Verdict, invalid

_PLAIN_NUMBER = re.compile(r"-?(?:[\d,]*\.?\d+|\d+\s*/\s*\d+|\\[dt]?frac\{-?\d+\}\{\d+\})")
_SCIENTIFIC = re.compile(r"(\d)\s*(?:\\times|\\cdot|\*)\s*(?=10\s*\^)")
_UNEVALUATED = re.compile(
    r"[\d)}\]]\s*(?:[+*\-!(]|\\times|\\cdot|\\div|\\ast)"
    r"|\\(?:sum|prod|int|lim|max|min|gcd|lcm|binom|dbinom|tbinom)(?![a-z])"
)


def read_gold(gold: str) -> Expression:
    """As `math_text.read`; raises InputError. Whether math-verify can parse it is for `check_gold` to say."""
    expression, rule = read(gold)
    if expression is None:
        raise InputError(f"gold answer {gold!r} is not one mathematical expression ({rule})")
    return expression


def check_gold(gold: str, pool: MathPool | None = None) -> None:
    """Raises InputError unless math-verify parses the gold and finds it equal to itself."""
    latex = read_gold(gold).latex
    verdict, _ = (pool or default_pool()).submit([latex], [latex]).result()
    if verdict != "equal":
        raise InputError(f"gold answer {gold!r} cannot be parsed as a mathematical expression ({verdict})")


def submit(answer: str, gold: str, pool: MathPool | None = None) -> Callable[[], tuple[Verdict, float]]:
    """Starts judging one answer.

    Args:
      answer: text between the tags.
      gold: gold text; InputError when it cannot be read.
      pool: workers to ask; `default_pool()` when not given.

    Returns:
      A function that waits for (verdict, seconds in the worker). It raises InputError when math-verify cannot parse the
      gold: a mistake in the data never becomes a silent 0.
    """
    expected = read_gold(gold)
    expression, rule = read(answer)
    if expression is None:
        return lambda: (invalid(rule), 0.0)

    def judged(rule: str) -> Verdict:
        return Verdict(valid=True, normal_form=expression.normal_form, rule=rule, score=float(rule == "equal"))

    if expected.unit and expression.unit and expected.unit != expression.unit:
        return lambda: (judged("other_unit"), 0.0)
    if _PLAIN_NUMBER.fullmatch(expected.value) and _UNEVALUATED.search(_SCIENTIFIC.sub(r"\1e", expression.value)):
        return lambda: (judged("not_evaluated"), 0.0)

    golds = [expected.latex]
    if expected.percent and not expression.percent:
        golds.append(expected.latex_without_percent)
    answers = expression.claims if len(expected.sides) == 1 else (expression.latex,)
    asked = (pool or default_pool()).submit(golds, answers)

    def wait() -> tuple[Verdict, float]:
        verdict, seconds = asked.result()
        if verdict == "gold_unparsable":
            raise InputError(f"gold answer {gold!r} cannot be parsed as a mathematical expression")
        valid = verdict in ("equal", "different")
        return (judged(verdict) if valid else invalid(verdict)), seconds

    return wait


_pool: MathPool | None = None
_pool_lock = threading.Lock()


def default_pool() -> MathPool:
    """The process's own pool of two workers, made at the first call and closed at exit."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = MathPool()
        return _pool


def _forget_pool() -> None:
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)  # a forked data-loading process has no threads to use the pool with
