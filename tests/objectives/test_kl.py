import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.kl import kl_estimate, kl_reward_to_go, update_kl_coefficient


@pytest.mark.quick
@pytest.mark.parametrize(
    ("estimator", "values", "gradients"),
    [
        ("k1", [0.5, -0.5, 0.0], [1.0, 1.0, 1.0]),
        ("k2", [0.125, 0.125, 0.0], [0.5, -0.5, 0.0]),
        ("k3", [0.1065307, 0.1487213, 0.0], [0.3934693, -0.6487213, 0.0]),
    ],
)
def test_estimators_by_hand(estimator, values, gradients):
    log_probabilities, reference = jnp.array([-1.0, -2.0, -3.0]), jnp.array([-1.5, -1.5, -3.0])
    np.testing.assert_allclose(kl_estimate(log_probabilities, reference, estimator), values, rtol=1e-6)
    gradient = jax.grad(lambda policy: jnp.sum(kl_estimate(policy, reference, estimator)))(log_probabilities)
    np.testing.assert_allclose(gradient, gradients, rtol=1e-6)


@pytest.mark.quick
def test_means_over_the_policy():
    """Expectations over three words: k1 and k3 are unbiased, the mean gradient of k1 is 0, that of k2 is the KL's."""
    logits, reference = jnp.array([0.3, -0.2, 0.9]), jnp.log(jnp.array([0.5, 0.3, 0.2]))

    def divergence(logits):
        policy = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(policy) * (policy - reference))

    def mean_estimate(logits, estimator):
        policy = jax.nn.log_softmax(logits)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(policy)) * kl_estimate(policy, reference, estimator))

    np.testing.assert_allclose(mean_estimate(logits, "k1"), divergence(logits), rtol=1e-5)
    np.testing.assert_allclose(mean_estimate(logits, "k3"), divergence(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(mean_estimate)(logits, "k1"), 0.0, atol=1e-6)
    np.testing.assert_allclose(jax.grad(mean_estimate)(logits, "k2"), jax.grad(divergence)(logits), rtol=1e-4)


@pytest.mark.quick
def test_reward_to_go_by_hand():
    kl = jnp.array([[1.0, 2.0, 4.0, 8.0], [0.5, -1.0, jnp.nan, jnp.nan]])
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = [[-1.5, -1.4, -1.2, -0.8], [0.05, 0.1, 0.0, 0.0]]
    np.testing.assert_allclose(kl_reward_to_go(kl, mask, 0.1), expected, rtol=1e-6)
    assert not np.any(jax.grad(lambda kl: jnp.sum(kl_reward_to_go(kl, mask, 0.1)))(kl))


@pytest.mark.quick
def test_controller():
    # One step of the paper: at most 0.2 * 2,048 / 10,000 = 4.096 % up or down; within the error proportional.
    assert update_kl_coefficient(1e-3, 1.0, 5e-4, 10_000, 2_048) == pytest.approx(1.04096e-3, rel=1e-12)
    assert update_kl_coefficient(1e-3, -1.0, 5e-4, 10_000, 2_048) == pytest.approx(0.95904e-3, rel=1e-12)
    assert update_kl_coefficient(1e-3, 5.5e-4, 5e-4, 10_000, 2_048) == pytest.approx(1.02048e-3, rel=1e-12)
    assert update_kl_coefficient(1e-3, 5e-4, 5e-4, 10_000, 2_048) == 1e-3
    assert update_kl_coefficient(1e-3, 1.0, None, 10_000, 2_048) == 1e-3


@pytest.mark.quick
def test_controller_over_the_papers_49_steps():
    coefficient = 1e-3
    for _ in range(49):
        coefficient = update_kl_coefficient(coefficient, 0.1, 5e-4, 10_000, 2_048)
    assert coefficient == pytest.approx(7.15e-3, rel=1e-3)
    coefficient = 1e-3
    for _ in range(49):
        coefficient = update_kl_coefficient(coefficient, 0.0, 5e-4, 10_000, 2_048)
    assert coefficient == pytest.approx(1.29e-4, rel=2e-3)


@pytest.mark.quick
def test_refusals():
    with pytest.raises(InputError, match="kl_estimator is 'k4'"):
        kl_estimate(jnp.zeros(1), jnp.zeros(1), "k4")
    with pytest.raises(InputError, match="target is 0"):
        update_kl_coefficient(1e-3, 0.1, 0.0, 10_000, 2_048)
    with pytest.raises(InputError, match="horizon 0"):
        update_kl_coefficient(1e-3, 0.1, 5e-4, 0, 2_048)
    with pytest.raises(FloatingPointError, match="nan"):
        update_kl_coefficient(1e-3, float("nan"), 5e-4, 10_000, 2_048)
