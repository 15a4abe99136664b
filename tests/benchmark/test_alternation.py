"""Order, repetition and medians of runs whose times the test chooses."""

import pytest

from vlaa_jax.benchmark.alternation import Alternation, Measured, Run, alternate

pytestmark = pytest.mark.quick


def side(name, calls, runs):
    """A side that gives these (seconds, share of others) one after the other."""
    left = iter(runs)

    def run():
        calls.append(name)
        seconds, foreign = next(left)
        return Run(seconds, 2 * seconds, foreign, {"rate": 1 / seconds})

    return run


def measure(runs, repeats, **given):
    calls, lines = [], []
    sides = {name: side(name, calls, values) for name, values in given.items()}
    found = alternate("work", sides, Alternation(runs, repeats, lines.append))
    return found, "".join(calls), lines


def test_sides_alternate_after_a_first_run_that_does_not_count():
    found, calls, _ = measure(3, 5, a=[(99, 0), (1, 0), (2, 0), (3, 0)], b=[(99, 0), (40, 0), (50, 0), (30, 0)])
    assert calls == "ab" + "ababab"
    assert [run.seconds for run in found["a"].runs] == [1, 2, 3]
    assert found["b"].seconds == 40
    assert found["b"].cpu_seconds == 80
    assert found["a"].median("rate") == 0.5


def test_a_disturbed_run_is_repeated_at_once():
    found, calls, lines = measure(
        2, 5, a=[(9, 0.5), (5, 0.031), (4, 0.2), (1, 0.03), (2, 0)], b=[(9, 0), (7, 0), (8, 0)]
    )
    assert calls == "ab" + "aaab" + "ab"
    assert [run.seconds for run in found["a"].runs] == [1, 2]
    assert found["a"].clean == 2
    assert lines[:3] == [
        "work: a 1/2: 5.000 s, others 3.1 %: disturbed",
        "work: a 1/2: 4.000 s, others 20.0 %: disturbed",
        "work: a 1/2: 1.000 s, others 3.0 %",
    ]


def test_the_least_disturbed_run_counts_when_all_were():
    found, calls, _ = measure(1, 2, a=[(9, 0), (5, 0.5), (6, 0.1), (7, 0.3)])
    assert calls == "a" + "aaa"
    assert [run.seconds for run in found["a"].runs] == [6]
    assert found["a"].clean == 0


def test_the_median_of_an_even_number_lies_between_the_middle_two():
    assert Measured(tuple(Run(seconds, 0, 0, {}) for seconds in (8, 1, 2, 4))).seconds == 3
