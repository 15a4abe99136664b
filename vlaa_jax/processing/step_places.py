"""Where the steps of a sampled completion end among its own tokens.

A policy's tokens need not be those into which its text would be split again, and a token may begin in one step and end
in the next. So the place is found in the text: a step ends with the token that completes it.
"""

import bisect
import functools
from collections.abc import Sequence

import numpy as np

from vlaa_jax.processing.steps import cut_steps
from vlaa_jax.processing.tokenizer import Tokenizer


def step_places(tokenizer: Tokenizer, tokens: Sequence[int]) -> np.ndarray:
    """Places `[S]` of the last token of each step of a completion, rising; equal where one token ends two.

    Args:
      tokenizer: of the policy.
      tokens: `[C]` of the completion; its steps are `split_steps(tokenizer.decode(tokens))`.
    """
    text = tokenizer.decode(tokens)
    decoded = functools.cache(lambda length: tokenizer.decode(tokens[:length]))
    places, length = [], 0
    for end in _text_ends(text):
        # Longer prefixes begin with what shorter ones say, but for half a character (U+FFFD) at their end.
        has_step = lambda length, end=end: decoded(length).startswith(text[:end])  # noqa: E731
        length = bisect.bisect_left(range(len(tokens) + 1), True, lo=length, key=has_step)
        places.append(length - 1)
    return np.asarray(places, np.int32)


def _text_ends(text: str) -> list[int]:
    """Where each step ends in its text: before it and behind it there are only blanks."""
    ends, at = [], 0
    for step in cut_steps(text):
        ends.append(at + len(step.rstrip()))
        at += len(step)
    return ends
