import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.evaluation.judges.judge import Question
from vlaa_jax.evaluation.judges.rubric import PROMPT, RubricJudge, read_grade
from vlaa_jax.processing.records import Record

pytestmark = pytest.mark.quick

WORDS = st.text(st.characters(codec="utf-8"), max_size=60).filter(lambda text: "verall" not in text.casefold())
RECORD = Record("r", (b"picture",), "How many <image>?", "3", "digit", metadata={"secret": 3})
FIRST = "Step 1: centre 3\nStep 2: count 1\n</think>\n<answer>1</answer>"
SECOND = "Step 1: centre 3\nStep 2: count 2\n</think>\n<answer>2</answer>"


@given(st.integers(1, 5), WORDS, st.sampled_from(["", "**", "[", "(", " ", "_"]))
def test_the_number_behind_the_words_is_read(grade, before, mark):
    assert read_grade(f"Reasoning: {before}\nOverall Score: {mark}{grade}") == grade
    assert read_grade(f"<think>Overall Score: 2\nor 3</think>{before}\n**overall score:** {grade}.") == grade


@given(st.integers(1, 5), st.integers(0, 99))
def test_a_fraction_is_no_number(whole, part):
    for number in (
        f"{whole}.{part}",
        f"{whole}/{part}",
        f"{whole} / {part}",
        f"{whole} {part}/5",
        f"-{whole}",
        f"{whole}½",
    ):
        assert read_grade(f"Reasoning: good\nOverall Score: {number}") is None


@given(st.integers().filter(lambda number: not 1 <= number <= 5))
def test_only_one_to_five(number):
    assert read_grade(f"Overall Score: {number}") is None


@given(WORDS)
def test_without_the_words_there_is_no_grade(text):
    assert read_grade(f"{text} 4") is None and read_grade(f"Score: 4\n{text}") is None


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_is_read_without_an_error(text):
    assert read_grade(text) in (None, 1, 2, 3, 4, 5)
    assert read_grade(f"Overall Score:{text}") in (None, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        (None, None),
        ("Overall Score: ", None),
        ("Overall Score: four", None),
        ("Overall Score: 3 or 4", None),
        ("Overall Score: 4 out of 5", None),
        ("Overall Score: 3\nOverall Score: 4", None),
        ("Overall Score: 4\nOverall Score: 4", 4),
        ("Overall Score: 4 (good)", 4),
        ("### Overall Score : 5", 5),
    ],
)
def test_replies(reply, grade):
    assert read_grade(reply) == grade


class Asked:
    """Grades prompts by what their solution ends with, and keeps them."""

    def __init__(self, reply):
        self.reply, self.prompts = reply, []

    def __call__(self, prompts):
        self.prompts += prompts
        return [self.reply(prompt) for prompt in prompts]


def solution_of(prompt) -> str:
    return re.search(r"Solution so far:\n(.*?)\n\nJudge the last step", prompt.text, re.DOTALL)[1]


def test_every_prefix_is_asked_for_once_and_graded():
    grades = {"centre 3": 4, "count 1": 5, "count 2": 2, "<answer>1</answer>": 3, "<answer>2</answer>": 1}

    def reply(prompt):
        (grade,) = [grade for end, grade in grades.items() if solution_of(prompt).endswith(end)]
        return f"Reasoning: so\nOverall Score: {grade}"

    asked = Asked(reply)
    judge = RubricJudge(asked, name="rubric:m")
    (scores,) = judge([Question(RECORD, (FIRST, SECOND, FIRST, " \n"))])
    assert [own.tolist() for own in scores[:3]] == [[4, 5, 3], [4, 2, 1], [4, 5, 3]]
    assert np.isnan(scores[3]).all() and scores[3].shape == (1,)
    assert judge.problems == {"empty": 1} and not judge.whole
    # The first step is the same in all: five prefixes in all.
    assert len(asked.prompts) == 5
    for prompt in asked.prompts:
        assert prompt.images == (b"picture",) and prompt.attempt == 0
        assert "How many [image 1]?" in prompt.text and "secret" not in prompt.text
        assert "{question}" not in prompt.text and "single integer" not in prompt.text


def test_braces_in_a_solution_stay_as_they_are():
    asked = Asked(lambda prompt: "Overall Score: 3")
    RubricJudge(asked)([Question(RECORD, (r"Step 1: \boxed{question} {solution}",))])
    assert solution_of(asked.prompts[0]) == r"Step 1: \boxed{question} {solution}"


def test_a_reply_without_a_grade_is_asked_for_once_more_and_then_unknown():
    def reply(prompt):
        if "count 2" in solution_of(prompt):
            return None if prompt.attempt else "Overall Score: 4.5"
        if "count 1" in solution_of(prompt):
            return "Overall Score: 2" if prompt.attempt else "I would say two."
        return "Overall Score: 5"

    asked = Asked(reply)
    judge = RubricJudge(asked)
    ((first, second),) = judge([Question(RECORD, (FIRST, SECOND))])
    assert first.tolist() == [5, 2, 2]
    np.testing.assert_array_equal(second, [5, np.nan, np.nan])
    assert judge.problems == {"asked once more": 4, "no score in the reply": 2}
    again = [prompt for prompt in asked.prompts if prompt.attempt]
    assert len(again) == 4 and all("one of the numbers 1, 2, 3, 4, 5" in prompt.text for prompt in again)


def test_the_prompt_asks_for_what_is_read():
    text = PROMPT.read_text(encoding="utf-8")
    assert text.count("{question}") == text.count("{solution}") == 1
    assert "Overall Score: " in text and "Reasoning: " in text
    assert all(f"\n{grade}, " in text for grade in range(1, 6))
