"""Sampling behind what a question left behind, against sampling from the whole prompt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.sampler import Prefix, sampling_weights

PARTS = ([3, (1, 6, 10), 2], [8], [2, (1, 4, 4), 1, (1, 2, 8), 3])
LENGTHS = ((0, 5), (9, 1), (3, 12))  # of two partial solutions a question
SHAPE, PARTIAL, DRAWS = (25, 6), 12, (10, 2**33, 11, 12, 13, 14)


def behind(prompt, tokens):
    """The whole prompt."""
    after = prompt.positions.max() + 1 + np.arange(len(tokens))
    return dataclasses.replace(
        prompt,
        tokens=np.concatenate([prompt.tokens, tokens]).astype(np.int32),
        positions=np.concatenate([prompt.positions, np.broadcast_to(after, (3, len(tokens)))], 1).astype(np.int32),
        feature_index=np.concatenate([prompt.feature_index, np.full(len(tokens), -1)]).astype(np.int32),
    )


@pytest.fixture(scope="module")
def found():
    """Completions of whole prompts and of continued ones."""
    rng = np.random.default_rng(0)
    questions = [tiny.prompt(rng, parts) for parts in PARTS]
    partial = [rng.integers(10, tiny.SIZES.text.vocabulary, n) for lengths in LENGTHS for n in lengths]
    sharper = jax.tree.map(lambda leaf: leaf * 1.5 if leaf.ndim > 2 else leaf, tiny.model())
    weights = sampling_weights(sharper, jnp.float32)
    sampling = Sampling(2.0, end_tokens=tuple(range(10, 60)))
    generator = Generator(sampling, 1, 20, (), (), seed=3, stream=2, segment=4)  # so few rows need one program
    whole = [behind(questions[row // 2], tokens) for row, tokens in enumerate(partial)]
    expected = generator(weights, whole, DRAWS, (SHAPE[0] + PARTIAL, SHAPE[1])).completions
    kept = generator.keep(weights, questions, len(questions), SHAPE)
    continued, row_steps = generator.go_on(weights, kept, partial, DRAWS, PARTIAL)
    again, _ = generator.go_on(weights, kept, partial[::-1], DRAWS[::-1], PARTIAL)
    return jax.tree.map(np.asarray, (expected, continued)), row_steps, jax.tree.map(np.asarray, again)


def test_continued_prompts_give_the_tokens_of_whole_ones(found):
    (expected, continued), row_steps, _ = found
    assert len(set(expected.lengths.ravel().tolist())) > 2
    for name in ("tokens", "lengths", "ended"):
        np.testing.assert_array_equal(getattr(continued, name), getattr(expected, name), err_msg=name)
    for name in ("log_probability", "sampled_log_probability"):
        np.testing.assert_allclose(getattr(continued, name), getattr(expected, name), atol=1e-4, err_msg=name)
    assert row_steps.used == (expected.lengths - 1).sum()


def test_a_partial_solution_is_continued_behind_its_own_question(found):
    """The same partial solutions behind other questions are completed otherwise."""
    (expected, _), _, swapped = found
    assert (swapped.tokens[::-1][[0, 1, 4, 5]] != expected.tokens[[0, 1, 4, 5]]).any()


def test_as_many_partial_solutions_of_every_question_are_asked_for():
    generator = Generator(Sampling(1.0), 1, 2, (), (), seed=0, stream=2)
    nothing = np.zeros((2, 0))
    kept = Prefix((), (), nothing, nothing, nothing)
    with pytest.raises(ValueError, match="3 partial solutions of 2 questions"):
        generator.go_on(None, kept, [np.zeros(0, np.int32)] * 3, (0, 1, 2), 4)
