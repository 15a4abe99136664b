"""All steps of all solutions in one pass against one pass for each prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from vlaa_jax.errors import InputError
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.reward_model import RewardHead, RewardModel, with_head
from vlaa_jax.objectives.shared_prompt import longest_row
from vlaa_jax.objectives.step_scores import score_steps
from vlaa_jax.processing.batches import Rows, pack
from vlaa_jax.processing.solutions import Solutions, SolutionShape, pad_solutions

SHAPE = SolutionShape(prompt=24, windows=5, solutions=3, tokens=12, steps=4, length=longest_row(24, 3, 12))


@pytest.fixture(scope="module")
def reward_model() -> RewardModel:
    head = RewardHead(tiny.SIZES.text.width, nnx.Rngs(3))
    head.bias[...] = jnp.float32(0.25)
    return with_head(tiny.model(), head)


def draw(seed: int = 0) -> tuple[list, list]:
    """Prompts with and without pictures, and solutions of one to four steps; one prompt has one solution alone."""
    rng = np.random.default_rng(seed)
    prompts = [tiny.prompt(rng, parts) for parts in ([(1, 4, 6), 5], [9, (1, 2, 4)], [6])]
    solutions = []
    for count in (3, 1, 3):
        ends = [np.cumsum(rng.integers(1, 4, steps)) - 1 for steps in rng.integers(1, 5, count)]
        solutions.append([(rng.integers(10, 640, own[-1] + 1).astype(np.int32), own.astype(np.int32)) for own in ends])
    return prompts, solutions


@jax.jit
def last_logits(model: RewardModel, rows: Rows) -> jax.Array:
    """The logit at each row's last token."""
    features = model.vision(rows.vision, jnp.float32)
    states = model(rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index)
    last = jnp.sum(rows.segments > 0, axis=1) - 1
    return model.reward_head(states[jnp.arange(len(last)), last])


def prefix_by_prefix(model: RewardModel, prompts: list, solutions: list) -> list[float]:
    """A row for every prefix, in the order of prompts, solutions and steps."""
    examples = [
        (prompt, tokens[: end + 1])
        for prompt, own in zip(prompts, solutions, strict=True)
        for tokens, ends in own
        for end in ends
    ]
    rows, _ = pack(
        [[example] for example in examples],
        count=len(examples),
        length=SHAPE.prompt + SHAPE.tokens,
        windows=SHAPE.windows,
        targets=SHAPE.tokens,
        slots_per_window=tiny.SIZES.vision.window_units**2,
        no_vision=jax.tree.map(lambda leaf: leaf[:0], prompts[0].vision),
    )
    return np.asarray(last_logits(model, rows)).tolist()


def test_one_pass_scores_as_a_pass_for_each_prefix(reward_model):
    prompts, solutions = draw()
    batch = pad_solutions(prompts, solutions, SHAPE)
    logits = np.asarray(score_steps(reward_model, batch, dtype="float32"))
    assert logits.shape == (3, 3, 4) and logits.dtype == np.float32
    expected = prefix_by_prefix(reward_model, prompts, solutions)
    np.testing.assert_allclose(logits[batch.ends >= 0], expected, atol=2e-5)
    assert np.std(expected) > 0.1  # of scores that are all the same nothing would be known


def test_a_score_sees_neither_later_steps_nor_other_solutions(reward_model):
    prompts, solutions = draw()
    batch = pad_solutions(prompts, solutions, SHAPE)
    tokens, ends = solutions[0][1]
    changed = np.where(np.arange(len(tokens)) > ends[0], 11, tokens).astype(np.int32)
    others = [[(np.full_like(own, 12), places) for own, places in solutions[0]], *solutions[1:]]
    others[0][1] = (changed, ends)
    again = pad_solutions(prompts, others, SHAPE)
    first, second = (np.asarray(score_steps(reward_model, each, dtype="float32")) for each in (batch, again))
    np.testing.assert_allclose(first[0, 1, 0], second[0, 1, 0], atol=2e-5)
    np.testing.assert_allclose(first[1:][batch.ends[1:] >= 0], second[1:][batch.ends[1:] >= 0], atol=2e-5)
    assert abs(first[0, 0, 0] - second[0, 0, 0]) > 1e-3


def test_a_solution_without_room_is_refused():
    prompts, solutions = draw()
    solutions[0][0] = (np.zeros(13, np.int32), np.array([12], np.int32))
    with pytest.raises(InputError, match="13 tokens in 1 steps, but there is room for 12 in 4"):
        pad_solutions(prompts, solutions, SHAPE)


def test_absent_solutions_have_no_step():
    prompts, solutions = draw()
    batch = pad_solutions(prompts, solutions, SHAPE)
    assert isinstance(batch, Solutions)
    assert batch.lengths[1].tolist()[1:] == [0, 0]
    assert (batch.ends[1, 1:] == -1).all()
