"""The one splitter of solutions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.processing.steps import cut_steps, join_steps, split_steps

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "text, steps",
    [
        ("", []),
        (" \n\n ", []),
        ("Step 1: a\nStep 2: b", ["Step 1: a", "Step 2: b"]),
        ("\n  Step 1: a\nStep 2: b\n", ["Step 1: a", "Step 2: b"]),
        (" one\n\ntwo\n\n", ["one", "two"]),
        (
            "First of all.\nStep 1: a\n\nmore of it\n step 2. b ",
            ["First of all.\nStep 1: a\n\nmore of it", "step 2. b"],
        ),
        ("It is as in Step 1: no line begins so", ["It is as in Step 1: no line begins so"]),
        ("one\ntwo\n \n\nthree", ["one\ntwo", "three"]),
        (
            "<think>\nStep 1: north 3\nStep 2: count 1\n</think>\n<answer>1</answer>",
            ["<think>\nStep 1: north 3", "Step 2: count 1", "</think>\n<answer>1</answer>"],
        ),
        ("<think>\nAt once.\n</think>\n<answer>B</answer>", ["<think>\nAt once.", "</think>\n<answer>B</answer>"]),
        ("a</think> b\n</think>\nStep 1: c\n</think> d", ["a</think> b\n</think>\nStep 1: c", "</think> d"]),
        ("<think>\na\n\nb\n</think>\n\n<answer>B</answer>", ["<think>\na", "b", "</think>\n\n<answer>B</answer>"]),
    ],
)
def test_steps(text, steps):
    assert split_steps(text) == steps


PIECES = ["Step 1:", "step 12 .", "Step", "a", "b c", "\n", "\n\n", " ", "</think>", "<think>", "<answer>", "\t"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


@given(TEXTS)
def test_nothing_but_blanks_is_lost(text):
    assert "".join("".join(split_steps(text)).split()) == "".join(text.split())
    assert all(step == step.strip() and step for step in split_steps(text))


@given(TEXTS)
def test_steps_with_their_blanks_are_the_text(text):
    assert "".join(cut_steps(text)) == (text if text.strip() else "")
    assert [step.strip() for step in cut_steps(text)] == split_steps(text)


@given(TEXTS, st.data())
def test_the_steps_of_a_prefix_are_the_first_steps_of_the_whole(text, data):
    steps = split_steps(text)
    count = data.draw(st.integers(0, len(steps)))
    assert split_steps(join_steps(steps[:count])) == steps[:count]
