import gc
import math
import sys
import types

import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import load_scorer, open_ended, require_scorer, score
from vlaa_jax.rewards.open_ended import judge

EXAMPLE = Record(id="r7", images=(b"",), question="Describe.", answer="a cat", verifier="open_ended")


class WordCount:
    """S = number of words; remembers what it was shown."""

    beta = 0.2
    scale = "words, from 0"

    def __init__(self):
        self.shown = []

    def __call__(self, example, answer):
        self.shown.append(answer)
        return len(answer.split())


@pytest.mark.quick
@pytest.mark.parametrize(
    "answer, beta, expected",
    [
        ("a cat", 0.2, 0),
        ("cat", 0.2, 0),
        ("a black cat", 0.2, 1 - math.exp(-0.2)),
        ("a big black cat", 0.2, 1 - math.exp(-0.4)),
        ("a black cat", math.log(2), 0.5),
        ("a black cat", 1.0, 0.6321205588285577),
        ("word " * 10000, 5.0, 1),
    ],
)
def test_formula(answer, beta, expected):
    scorer = WordCount()
    scorer.beta = beta
    verdict = judge(answer, "a cat", EXAMPLE, scorer)
    assert verdict.score == pytest.approx(expected)
    assert verdict.rule == ("better" if expected else "not_better")
    assert verdict.valid


@pytest.mark.quick
def test_negative_scores():
    scorer = WordCount()
    scorer.__class__ = type("Negative", (WordCount,), {"__call__": lambda self, example, answer: -float(len(answer))})
    assert judge("ab", "abc", EXAMPLE, scorer).score == pytest.approx(1 - math.exp(-0.2))
    assert judge("abcd", "abc", EXAMPLE, scorer).score == 0


@pytest.mark.quick
def test_the_reference_is_scored_once_and_by_itself():
    scorer = WordCount()
    for answer in ("x", "x y z", "x"):
        judge(answer, "a cat", EXAMPLE, scorer)
    assert scorer.shown == ["a cat", "x", "x y z", "x"]
    judge("x", "another reference", EXAMPLE, scorer)
    judge("x", "a cat", Record("r8", (), "", "a cat", "open_ended"), scorer)
    assert scorer.shown[4:] == ["another reference", "x", "a cat", "x"]
    other = WordCount()
    judge("x", "a cat", EXAMPLE, other)
    assert other.shown == ["a cat", "x"]


@pytest.mark.quick
def test_references_are_forgotten_with_their_scorer():
    scorer = WordCount()
    judge("x", "a cat", EXAMPLE, scorer)
    held = len(open_ended._known)
    del scorer
    gc.collect()
    assert len(open_ended._known) < held


@pytest.mark.quick
def test_the_scorer_sees_the_text_inside_the_tags():
    scorer = WordCount()
    completion = "<think>many many words</think><answer> a black cat\n</answer>"
    assert score("open_ended", completion, "a cat", example=EXAMPLE, scorer=scorer) == pytest.approx(1 - math.exp(-0.2))
    assert scorer.shown == ["a cat", "a black cat"]
    assert score("open_ended", "a very black cat", "a cat", example=EXAMPLE, scorer=scorer) == 0
    assert len(scorer.shown) == 2


@pytest.mark.quick
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_names_the_record(value):
    scorer = WordCount()
    scorer.__class__ = type("Broken", (WordCount,), {"__call__": lambda self, example, answer: value})
    with pytest.raises(InputError, match=r"record 'r7'.*Broken.*finite"):
        score("open_ended", "<answer>x</answer>", "a cat", example=EXAMPLE, scorer=scorer)


@pytest.mark.quick
def test_without_a_scorer_both_ways_on_are_named():
    with pytest.raises(InputError, match=r"record 'r7'.*config\.rewards\.scorer.*rules"):
        score("open_ended", "<answer>x</answer>", "a cat", example=EXAMPLE)
    with pytest.raises(InputError, match=r"config\.rewards\.scorer.*rules"):
        require_scorer(["digit", "open_ended"], None)
    require_scorer(["digit", "math"], None)
    require_scorer(["open_ended"], WordCount())


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("some_scorers")
    module.WordCount = WordCount
    module.NoBeta = type("NoBeta", (), {"scale": "any", "__call__": lambda self, example, answer: 0.0})
    module.NegativeBeta = type("NegativeBeta", (WordCount,), {"beta": -1.0})
    module.NoScale = type("NoScale", (), {"beta": 1.0, "__call__": lambda self, example, answer: 0.0})
    module.NotCallable = type("NotCallable", (), {"beta": 1.0, "scale": "any"})
    monkeypatch.setitem(sys.modules, "some_scorers", module)
    return module


@pytest.mark.quick
def test_load_scorer(module):
    assert isinstance(load_scorer("some_scorers:WordCount"), WordCount)


@pytest.mark.quick
@pytest.mark.parametrize(
    "name, message",
    [
        ("", "package.module:ClassName"),
        ("some_scorers", "package.module:ClassName"),
        (":WordCount", "package.module:ClassName"),
        ("no_such_package.module:Scorer", "cannot import no_such_package.module"),
        ("some_scorers:Missing", "has no Missing"),
        ("some_scorers:NoBeta", "beta is None"),
        ("some_scorers:NegativeBeta", "beta is -1.0"),
        ("some_scorers:NoScale", "scale"),
        ("some_scorers:NotCallable", "cannot be called"),
    ],
)
def test_load_scorer_refuses(module, name, message):
    with pytest.raises(InputError, match=message):
        load_scorer(name)
