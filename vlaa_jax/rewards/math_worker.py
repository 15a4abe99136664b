"""The math worker: `python -m vlaa_jax.rewards.math_worker CPU_SECONDS MEMORY_BYTES PARENT_PID`.

A process of its own because symbolic math can hang or explode, and because math-verify's own time limit is a signal
that works in no thread. It reads tasks on standard input and writes verdicts on standard output (messages.py).

It imports and warms math-verify once and then forks a child for every task. So every task starts from the same memory
(sympy's caches, random state, recursion depth), whatever was asked before, and a task that breaks a limit ends alone.
The fork is safe here: this process has one thread and never loads JAX. The limit is on processor time, so that a busy
machine changes no verdict.

The worker ends with its parent: its standard input closes, and on Linux the kernel is asked to kill it (a sibling
process forked from the parent may hold the pipe open).
"""

import contextlib
import ctypes
import os
import random
import resource
import select
import signal
import sys
from typing import Any

from vlaa_jax.rewards.messages import receive, send

_PR_SET_PDEATHSIG = 1
# One of each common form: their lexer and sympy caches are filled before the first fork.
_WARM_UP = (
    (r"\frac{6}{8}", "0.75"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"y=2\sin(x)+\sqrt{3}", "y=x"),
    ("1,2", r"\{2,1\}"),
    ("(1,2)", "(2,1)"),
    ("x>3", "-2.5"),
)
_VERDICT_BYTES = 64


def judge(golds: list[str], answers: list[str]) -> str:
    """Compares one answer with one gold.

    Args:
      golds: accepted readings of the gold, LaTeX without delimiters.
      answers: the sides of the answer's chain of equalities, LaTeX; each must equal the same gold.

    Returns:
      `gold_unparsable`, `unparsable`, `hedge` (several values for a gold of one), `equal` or `different`.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Eq, FiniteSet, Set, Tuple

    # Units, percent signs and boxes are dealt with before (math.py), by rules that can be read there.
    rules = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")

    def values(latex: str) -> list[Any]:
        config = LatexExtractionConfig(normalization_config=rules)
        return parse(f"${latex}$", [config], fallback_mode="no_fallback", parsing_timeout=None)

    def content(value: Any) -> Any:
        return value.rhs if isinstance(value, Eq) else value

    gold_values = [values(gold) for gold in golds]
    if not all(gold_values):
        return "gold_unparsable"
    answer_values = [values(answer) for answer in answers]
    if not all(answer_values):
        return "unparsable"
    one_expected = not any(isinstance(content(gold[0]), (Set, Tuple)) for gold in gold_values)
    given = content(answer_values[-1][0])
    if one_expected and isinstance(given, FiniteSet) and len(given) > 1:
        return "hedge"

    def same(gold: Any, answer: Any) -> bool:
        return verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None) is True

    for gold in gold_values:
        if all(same(gold, answer) for answer in answer_values):
            # Equations are compared by their solutions. One without any would equal `1 = 2` and every other such.
            no_solution = isinstance(gold[0], Eq) and same(gold, [Eq(1, 2, evaluate=False)])
            if not no_solution or answer_values == [gold]:
                return "equal"
    return "different"


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when `parent` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request
        os._exit(0)


def _judge_in_child(task: dict[str, Any], cpu_seconds: int, memory_bytes: int) -> str:
    """A verdict, or `timeout` / `crash` when the child broke a limit."""
    worker = os.getpid()
    result, result_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _die_with(worker)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
            with contextlib.suppress(ValueError, OSError):  # macOS knows the limit but does not always take it
                resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
            os.write(result_end, judge(task["golds"], task["answers"]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(result_end)
    ready, _, _ = select.select([result, 0], [], [])
    if result not in ready:  # one task at a time: input now can only be its end
        os.kill(child, signal.SIGKILL)
        os._exit(0)
    verdict = os.read(result, _VERDICT_BYTES).decode()
    os.close(result)
    _, status = os.waitpid(child, 0)
    if verdict:
        return verdict
    return "timeout" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU else "crash"


def main() -> None:
    cpu_seconds, memory_bytes, parent = (int(argument) for argument in sys.argv[1:])
    _die_with(parent)
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not reach the protocol

    import gc
    import logging

    import sympy

    logging.disable(logging.CRITICAL)
    random.seed(0)
    sympy.core.random.seed(0)
    for gold, answer in _WARM_UP:
        judge([gold], [answer])
    gc.collect()
    gc.freeze()  # children share the memory until they write to it; a collection would write to all of it
    send(replies, {"ready": True})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while (task := receive(0)) is not None:
        send(replies, {"verdict": _judge_in_child(task, cpu_seconds, memory_bytes)})


if __name__ == "__main__":
    main()
