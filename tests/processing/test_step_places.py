"""Ends of steps among the tokens of a sampled completion."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.digit_scenes.demo import SHIPPED_POLICY
from vlaa_jax.processing.step_places import step_places
from vlaa_jax.processing.steps import split_steps
from vlaa_jax.processing.tokenizer import Tokenizer

pytestmark = pytest.mark.quick


@functools.cache
def tokenizer() -> Tokenizer:
    """Of bytes, so that every token is a part of a text, and some are parts of a character."""
    return Tokenizer(SHIPPED_POLICY)


class Pieces:
    """A tokenizer whose token n is the n-th piece."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def decode(self, tokens):
        return "".join(self.pieces[token] for token in tokens)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["Step 1: a", "\n", "Step 2: b", "\n"], [0, 2]),
        (["Step", " 1: a b", "\nStep", " 2: ", "c", "\n</think>", "<answer>3</answer>"], [1, 4, 6]),
        (["one", "\n\ntwo"], [0, 1]),  # the token that ends the first step is not the one that begins the next
        (["on", "e\n\nt", "wo"], [1, 2]),  # one that does both ends the first
        (["  ", "\n", "alone", ""], [2]),
        (["a\n\nb\n\nc", " d"], [0, 0, 1]),  # a token of two whole steps
        (["", "  "], []),
        ([], []),
    ],
)
def test_by_hand(pieces, expected):
    assert step_places(Pieces(*pieces), range(len(pieces))).tolist() == expected


PARTS = [
    "Step 1: two",
    "\nStep 2: é€",
    "\n\n",
    "😀",
    "</think>",
    "\n</think>\n<answer>7</answer>",
    " ",
    "end",
    "\ufffd",
]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.sampled_from(PARTS), st.integers(0, 700)), max_size=12))
def test_a_step_ends_with_the_token_that_completes_it(parts):
    """Texts and single tokens, halves of characters among them: compared with every prefix."""
    tokens = [token for part in parts for token in ([part] if isinstance(part, int) else tokenizer().encode(part))]
    tokens = np.asarray([token for token in tokens if token not in tokenizer().end_tokens], np.int64)
    text = tokenizer().decode(tokens)
    prefixes = [tokenizer().decode(tokens[:length]) for length in range(len(tokens) + 1)]
    steps, places = split_steps(text), step_places(tokenizer(), tokens)
    assert len(places) == len(steps)
    at = 0
    for step, place in zip(steps, places, strict=True):
        at = text.index(step, at) + len(step)
        assert not text[: at - len(step)].strip() or text[:at].endswith(step)
        has_it = [prefix[:at] == text[:at] for prefix in prefixes]
        assert place == has_it.index(True) - 1
        assert all(has_it[place + 1 :])  # what the search relies on


def test_what_follows_the_end_token_is_no_step():
    end = tokenizer().end_tokens[0]
    tokens = [*tokenizer().encode("Step 1: a\nStep 2: b"), end, *tokenizer().encode("\nStep 3: c")]
    assert step_places(tokenizer(), tokens).tolist() == step_places(tokenizer(), tokens[: tokens.index(end)]).tolist()
    assert len(step_places(tokenizer(), tokens)) == 2
