"""Bodies of chat completions: what is an answer, what is none, and that nothing else ever comes out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.answers.completions import read_completion, usage
from data_prep.answers.model import Answer, Unanswered

pytestmark = pytest.mark.quick


def body(finish="stop", used=(7, 5), **message):
    out = {"model": "served", "choices": [{"message": message, "finish_reason": finish}]}
    return out | ({"usage": {"prompt_tokens": used[0], "completion_tokens": used[1]}} if used else {})


def test_content_tokens_and_name():
    assert read_completion(body(content="Yes")) == Answer("Yes", 7, 5, model="served")


def test_length_means_truncated():
    assert read_completion(body("length", content="A pic")) == Answer("A pic", 7, 5, truncated=True, model="served")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_goes_into_think_tags(field):
    answer = read_completion(body(content="**Answer:** 3", **{field: "I count.\nThree.\n"}))
    assert answer.text == "<think>\nI count.\nThree.\n</think>\n\n**Answer:** 3"


def test_content_with_think_tags_stays():
    answer = read_completion(body(content="\n<think>\na\n</think>\nb", reasoning_content="a"))
    assert answer.text == "\n<think>\na\n</think>\nb"


def test_reasoning_that_was_cut_is_truncated_not_lost():
    answer = read_completion(body("length", content=None, reasoning_content="I count"))
    assert answer.truncated and "I count" in answer.text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (body("content_filter", content="x"), "blocked by the endpoint's content filter"),
        (body(content=None), "no text in the message"),
        (body(content=" \n"), "no text in the message"),
        (body(content=None, refusal="I cannot"), "no text in the message: 'I cannot'"),
        (body(content="", reasoning_content="thought to its end"), "no text in the message"),
        ({"choices": []}, "no message in the completion: \"{'choices': []}\""),
        ({"choices": [{"finish_reason": "stop"}]}, "no message in the completion: "),
        ({"error": {"message": "overloaded"}}, "no message in the completion: "),
        ([], "no message in the completion: '[]'"),
        (None, "no message in the completion: 'None'"),
    ],
)
def test_no_answer(value, reason):
    result = read_completion(value)
    assert isinstance(result, Unanswered) and result.reason.startswith(reason)


def test_half_a_surrogate_pair_can_be_written():
    assert read_completion(body(content="a\ud83d")).text.encode() == b"a?"


def test_usage_that_is_none():
    for wrong in (body(used=None), {"usage": {"prompt_tokens": -1, "completion_tokens": 1}}, {"usage": [1, 2]}, 5):
        assert usage(wrong) is None
    assert read_completion(body(content="x", used=None)).completion_tokens == 0


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "finish_reason", "usage", "prompt_tokens", "model"]),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(values)
def test_any_json_is_an_answer_or_none(value):
    result = read_completion(value)
    assert isinstance(result, Unanswered) or result.text.strip()
