"""Open-ended answers that wait for a scorer of many."""

import math

import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import Request, is_waiting, score_many, score_waiting

pytestmark = pytest.mark.quick


BETA = math.log(2)


class Letters:
    """S = number of letters a; remembers what it was asked, with 'x' could not be judged."""

    scale = "letters"

    def __init__(self, beta=BETA):
        self.beta, self.references, self.asked = beta, {}, []

    def score_batch(self, questions):
        self.asked.append([(record.id, list(answers)) for record, answers in questions])
        return [[math.nan if "x" in text else text.count("a") for text in answers] for _, answers in questions]


def record(name, answer="aa", verifier="open_ended"):
    return Record(name, (), "Describe.", answer, verifier)


def traces(of, *answers, scorer):
    completions = [answer if answer == "nothing" else f"<answer>{answer}</answer>" for answer in answers]
    return score_many([Request(of.verifier, text, of.answer, of) for text in completions], scorer=scorer)


def test_only_open_ended_answers_wait():
    scorer = Letters()
    number = Record("n", (), "How many?", "3", "digit")
    found = [*traces(record("r"), "aaa", "nothing", scorer=scorer), *traces(number, "3", scorer=scorer)]
    assert [is_waiting(trace) for trace in found] == [True, False, False]
    assert [trace.rule for trace in found[1:]] == ["no_answer", "equal"]
    assert scorer.asked == []
    assert score_waiting([(number, found[2:])], scorer) == [found[2:]]


def test_the_formula_and_what_is_asked():
    """One difference more halves what is left to 1, since beta is ln 2."""
    scorer = Letters()
    one, other = record("r"), record("s", "a")
    asked = [
        (one, traces(one, "aaa", "aaaa", "a", "aa", "nothing", "aaa", scorer=scorer)),
        (other, traces(other, "aa", scorer=scorer)),
    ]
    found = score_waiting(asked, scorer)
    assert [trace.score for trace in found[0]] == pytest.approx([0.5, 0.75, 0, 0, 0, 0.5])
    assert [trace.rule for trace in found[0]] == ["better", "better", "not_better", "not_better", "no_answer", "better"]
    assert [trace.extracted for trace in found[0]] == ["aaa", "aaaa", "a", "aa", None, "aaa"]
    assert found[0][0].normal_form == "3 against 2"
    assert found[1][0].score == pytest.approx(0.5)
    # Each text once, and the reference among them.
    assert scorer.asked == [[("r", ["aa", "aaa", "aaaa", "a"]), ("s", ["a", "aa"])]]


def test_a_reference_is_scored_once():
    scorer = Letters()
    one = record("r")
    for _ in range(2):
        (found,) = score_waiting([(one, traces(one, "aaa", scorer=scorer))] * 1, scorer)
        assert found[0].score == pytest.approx(0.5)
    (same,) = score_waiting([(one, traces(one, "aa", scorer=scorer))], scorer)
    assert scorer.asked == [[("r", ["aa", "aaa"])], [("r", ["aaa"])]]  # its own text is known
    assert same[0].score == 0 and same[0].rule == "not_better"
    # Of another record, or with another text, it is another one.
    for another in (record("t"), record("r", "aaaa")):
        score_waiting([(another, traces(another, "a", scorer=scorer))], scorer)
    assert scorer.asked[2:] == [[("t", ["aa", "a"])], [("r", ["aaaa", "a"])]]
    assert list(scorer.references.values()) == [2, 2, 4]


def test_a_record_may_come_twice():
    scorer = Letters()
    one = record("r")
    found = score_waiting([(one, traces(one, text, scorer=scorer)) for text in ("aaa", "aaaa")], scorer)
    assert [own[0].score for own in found] == pytest.approx([0.5, 0.75])
    assert scorer.asked == [[("r", ["aa", "aaa", "aaaa"])]]


def test_what_could_not_be_judged_is_no_better():
    scorer = Letters()
    one, bad = record("r"), record("s", "x")
    found = score_waiting([(of, traces(of, "ax", "aaa", scorer=scorer)) for of in (one, bad)], scorer)
    assert [[trace.rule for trace in own] for own in found] == [["unread", "better"], ["unread", "unread"]]
    assert [trace.score for trace in found[1]] == [0, 0]
    # A reference that could not be judged is asked for again.
    score_waiting([(bad, traces(bad, "a", scorer=scorer))], scorer)
    assert scorer.asked[1] == [("s", ["x", "a"])]


def test_a_scorer_whose_beta_was_not_set_is_refused():
    scorer = Letters(beta=math.nan)
    one = record("r")
    with pytest.raises(InputError, match="beta is nan, expected a finite number above 0"):
        score_waiting([(one, traces(one, "a", scorer=scorer))], scorer)
