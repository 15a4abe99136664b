"""Advantages of steps: two steps by hand, and every case against a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.accumulation import summarise
from vlaa_jax.objectives.grpo import GRPOObjective, grpo_loss
from vlaa_jax.objectives.process_advantages import process_advantages

pytestmark = pytest.mark.quick

# Two completions of two steps. The first one's end at tokens 1 and 3 and are worth 0 and 1, the second one's end at
# tokens 0 and 4 and are worth 1 and 1. The four have mean 3/4 and unbiased deviation sqrt(3/4 / 3) = 1/2.
ENDS = np.array([[[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]], bool)
REWARDS = np.where(ENDS, [[[0, 0, 0, 1, 0], [1, 0, 0, 0, 1]]], np.nan)  # elsewhere nothing counts
# So the steps are worth -1.5 and 0.5, and twice 0.5. A token has the steps that end at it or later.
BY_HAND = [[[-1.0, -1.0, 0.5, 0.5, 0.0], [1.0, 0.5, 0.5, 0.5, 0.5]]]


def test_two_steps_by_hand():
    np.testing.assert_allclose(process_advantages(REWARDS, ENDS), BY_HAND, rtol=1e-6)


def test_epsilon_is_added_to_the_deviation():
    np.testing.assert_allclose(process_advantages(REWARDS, ENDS, epsilon=0.5), np.divide(BY_HAND, 2), rtol=1e-6)


def test_groups_are_by_themselves_and_one_that_agrees_has_exactly_nothing():
    for reward in (0.0, 0.7, 1 / 3):
        rewards = np.concatenate([REWARDS, np.full_like(REWARDS, reward)])
        out = process_advantages(rewards, np.concatenate([ENDS, ENDS]))
        np.testing.assert_allclose(out[:1], BY_HAND, rtol=1e-6)
        assert not np.any(out[1])


@pytest.mark.parametrize("steps", [0, 1])
def test_a_group_with_less_than_two_steps_has_nothing(steps):
    ends = np.zeros((1, 2, 4), bool)
    ends[0, 1, 2] = steps
    assert not np.any(process_advantages(np.full(ends.shape, 0.3), ends))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    ends = rng.random((2, 3, 6)) < 0.4
    rewards = rng.random(ends.shape).astype(np.float32)
    expected = np.zeros(ends.shape)
    for b in range(2):
        found = rewards[b][ends[b]]
        if len(found) < 2:
            continue
        for g in range(3):
            for t in range(6):
                later = [rewards[b, g, at] for at in range(t, 6) if ends[b, g, at]]
                expected[b, g, t] = sum((r - found.mean()) / (found.std(ddof=1) + 1e-9) for r in later)
    np.testing.assert_allclose(process_advantages(rewards, ends), expected, atol=2e-4)


def test_the_loss_takes_an_advantage_for_each_token():
    """At ratio 1 the loss of a token is minus its advantage; it is averaged over a completion's tokens, then added."""
    zeros, mask = jnp.zeros((1, 2, 5)), np.array([[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]], bool)
    loss, metrics = grpo_loss(
        zeros, zeros, None, jnp.array(BY_HAND), mask, objective=GRPOObjective(kl_placement="none"), kl_coefficient=0.0
    )
    np.testing.assert_allclose(loss, -(-1.0 - 1.0 + 0.5 + 0.5) / 4 - (1.0 + 4 * 0.5) / 5, rtol=1e-6)
    assert summarise(metrics)["ratio"] == 1


@pytest.mark.parametrize(("rewards", "ends"), [((2, 3), (2, 3)), ((1, 2, 3), (1, 2, 4))])
def test_shapes_that_do_not_fit_are_refused(rewards, ends):
    with pytest.raises(InputError, match=r"\[B, G, C\] was expected"):
        process_advantages(np.zeros(rewards), np.zeros(ends, bool))
