import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.advantages import advantages

REWARDS = jnp.array([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("baseline", "scale", "expected"),
    [
        # means 1/4 and 1/2; unbiased deviations 1/2 and 1/sqrt(3)
        ("group", "group", [[-0.5, 1.5], [-0.8660254, 0.8660254]]),
        ("group", "none", [[-0.25, 0.75], [-0.5, 0.5]]),
        # mean 3/8; unbiased deviation of all eight sqrt((3 - 9/8) / 7) = 0.5175492
        ("group", "batch", [[-0.4830459, 1.4491377], [-0.9660918, 0.9660918]]),
        ("batch", "none", [[-0.375, 0.625], [-0.375, 0.625]]),
        ("batch", "batch", [[-0.7245688, 1.2076147], [-0.7245688, 1.2076147]]),
    ],
)
def test_by_hand(baseline, scale, expected):
    """`expected`: for each group, the advantage of reward 0 and of reward 1."""
    expected = np.where(REWARDS == 0, np.array(expected)[:, :1], np.array(expected)[:, 1:])
    np.testing.assert_allclose(advantages(REWARDS, baseline=baseline, scale=scale), expected, rtol=1e-6)


@pytest.mark.quick
def test_epsilon_is_added_to_the_deviation():
    np.testing.assert_allclose(advantages(REWARDS[:1], epsilon=0.5), [[-0.25, -0.25, -0.25, 0.75]], rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_nothing(scale):
    for group in (3, 5, 7):  # float32 means of 3, 5 or 7 equal numbers are often off by one rounding
        for reward in (0.0, 1.0, 0.7, 0.1, 1 / 3):
            assert not np.any(advantages(jnp.full((2, group), reward), scale=scale)), (group, reward)


@pytest.mark.quick
def test_a_group_that_agrees_gives_nothing_beside_one_that_does_not():
    result = advantages(jnp.array([[0.7, 0.7, 0.7], [0.0, 0.0, 1.0]]))
    assert not np.any(result[0])
    np.testing.assert_allclose(result[1], [-0.5773503, -0.5773503, 1.1547005], rtol=1e-6)


@pytest.mark.quick
def test_a_single_completion_has_no_advantage():
    assert not np.any(advantages(jnp.array([[0.3], [1.0]])))
    assert not np.any(advantages(jnp.array([[0.3], [1.0]]), scale="batch"))
    for scale in ("batch", "none"):
        assert not np.any(advantages(jnp.array([[0.3]]), baseline="batch", scale=scale))


rewards_strategy = numpy_strategies.arrays(
    np.float32,
    numpy_strategies.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=4),
    elements=st.floats(0, 1, width=32).map(lambda reward: np.float32(round(reward, 2))),
)


@settings(max_examples=30, deadline=None)
@given(rewards=rewards_strategy, shift=st.floats(-2, 2), scale=st.sampled_from(["group", "batch", "none"]))
def test_sum_to_zero_and_ignore_a_shift(rewards, shift, scale):
    result = np.asarray(advantages(jnp.asarray(rewards), scale=scale))
    np.testing.assert_allclose(result.sum(axis=1), 0.0, atol=1e-4)
    # A shift rounds the rewards anew; an epsilon above that rounding keeps groups that agree from being blown up.
    shifted = advantages(jnp.asarray(rewards) + shift, scale=scale, epsilon=1e-4)
    np.testing.assert_allclose(shifted, advantages(jnp.asarray(rewards), scale=scale, epsilon=1e-4), atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(rewards=rewards_strategy, data=st.data())
def test_the_order_of_groups_and_of_completions_changes_nothing(rewards, data):
    rows = np.array(data.draw(st.permutations(range(rewards.shape[0]))))
    columns = np.array(data.draw(st.permutations(range(rewards.shape[1]))))
    expected = np.asarray(advantages(jnp.asarray(rewards)))[rows][:, columns]
    np.testing.assert_allclose(advantages(jnp.asarray(rewards[rows][:, columns])), expected, atol=1e-4)


@pytest.mark.quick
def test_no_gradient_and_no_nonsense():
    assert not np.any(jax.grad(lambda rewards: jnp.sum(advantages(rewards) ** 2))(REWARDS))
    with pytest.raises(InputError, match="baseline 'batch' does not go with scale 'group'"):
        advantages(REWARDS, baseline="batch", scale="group")
    with pytest.raises(InputError, match="scale is 'std'"):
        advantages(REWARDS, scale="std")
    with pytest.raises(InputError, match="baseline is 'mean'"):
        advantages(REWARDS, baseline="mean")
    with pytest.raises(InputError, match=r"\[B, G\] was expected"):
        advantages(REWARDS[0])
