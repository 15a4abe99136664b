import dataclasses

import numpy as np
import pytest

from data_prep.digit_scenes import builder
from data_prep.digit_scenes.step_truth import TrueSteps, first_wrong_step, step_table
from vlaa_jax.evaluation.best_of_n.answered import Answered, Judged
from vlaa_jax.evaluation.judges.judge import Question
from vlaa_jax.evaluation.judges.open import open_judge
from vlaa_jax.processing.conversation import completion_text
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.steps import split_steps
from vlaa_jax.rewards import Trace

pytestmark = pytest.mark.quick

GLYPHS = [{"index": 0, "value": v, "place": p, "box": [0, 0, 30, 30]} for v, p in ((7, "northwest"), (3, "centre"))]
SCENE = Record("r", (b"",), "?", "10", "math", metadata={"kind": "sum", "value": None, "glyphs": [GLYPHS]})


def solution(*lines: str, answer: str = "10") -> str:
    return completion_text("\n".join(f"Step {k}: {line}" for k, line in enumerate(lines, 1)), answer)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["northwest 7", "centre 3", "7+3=10"], ([0, 1, 2], -1)),
        (["northwest 7", "centre 4", "7+4=11"], ([0, 1, 2], 1)),
        (["northwest 8", "centre 3", "7+3=10"], ([0, 1, 2], 0)),
        (["northwest 7", "northwest 7"], ([0, 1], 1)),  # listed twice
        (["northwest 7", "who knows", "7+3=11"], None),
        (["northwest 7", "centre 4", "who knows"], ([0, 1, 2], 1)),
    ],
)
def test_the_first_wrong_step(lines, expected):
    assert first_wrong_step(SCENE, solution(*lines)) == expected
    assert first_wrong_step(SCENE, solution(*lines, answer="11")) == expected, "the answer is no step"


def test_without_steps_nothing_is_known():
    assert first_wrong_step(SCENE, completion_text("I look.", "10")) is None
    assert first_wrong_step(SCENE, "") is None


def test_references_have_no_wrong_step():
    split = dataclasses.replace(builder.SPLITS["sft"], records=60, enumerate_share=1.0)
    for record in builder.draw_split("truth", split, 0):
        text = completion_text(record.trace, record.answer)
        places, first = first_wrong_step(record, text)
        assert first == -1 and places == list(range(len(split_steps(text)) - 1))


def test_the_table():
    texts = (
        solution("northwest 7", "centre 3", "7+3=10"),
        solution("northwest 7", "centre 4", "7+4=11"),
        solution("northwest 7", "centre 3", "7+3=10"),  # the same again
        solution("who knows"),
        solution("northwest 8"),
    )
    trace = Trace(valid=True, normal_form="", rule="", score=1.0, extracted="", seconds=0.0)
    steps = [[0.9, 0.8, 0.6, 0.1], [0.9, 0.2, 0.1, 0.0], [0.9, 0.8, 0.6, 0.1], [0.0, 0.0], [0.7, 0.0]]
    scores = {
        "steps": [[np.array(own) for own in steps]],
        "rubric": [[10 * np.array(own) for own in steps]],
        "unread": [[np.array([np.nan, 0.5, 0.5, 0.5]), *(np.array(own) for own in steps[1:])]],
        "whole": [[np.array([1.0])] * 5],
    }
    question = Answered(dataclasses.replace(SCENE, images=()), texts, (trace,) * 5)
    other = dataclasses.replace(question, record=Record("o", (), "?", "1", "digit"))
    two = {name: [*own, *own] for name, own in scores.items()}
    (table,) = step_table([Judged("m", (question, other), two, frozenset({"whole"}))])
    # Two solutions with a wrong step, one of which is found, and one without: F1 of 1/2 and 1. Right steps have 0.9,
    # 0.8, 0.6, 0.9, first wrong ones 0.2 and 0.7: seven of eight pairs are in order.
    assert table.rows == [
        ["steps", "m", "3", "2", "0.667", "0.875"],
        ["rubric", "m", "3", "2", "-", "0.875"],
        ["unread", "m", "3", "2", "0.667", "0.875"],
    ]
    assert step_table([Judged("m", (other,), scores)]) == []


def test_a_judge_that_knows_the_steps():
    judge = open_judge("class:data_prep.digit_scenes.step_truth:TrueSteps")
    assert isinstance(judge, TrueSteps) and judge.whole
    responses = (
        solution("northwest 7", "centre 3", "7+3=10", answer="1"),
        solution("northwest 7", "centre 4", "7+4=11"),
        solution("northwest 7", "who knows"),
        completion_text("I can answer at once.", "10"),
    )
    scores = judge([Question(SCENE, responses), Question(Record("o", (), "?", "1", "digit"), ("a",))])
    assert [own.tolist() for own in scores[0]] == [[1.0], [pytest.approx(1 / 3)], [0.5], [0.0]]
    assert np.isnan(scores[1][0]).all() and sum(judge.problems.values()) == 1
