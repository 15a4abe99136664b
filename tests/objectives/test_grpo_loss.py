import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.accumulation import merge_metrics, summarise
from vlaa_jax.objectives.grpo import (
    GRPOObjective,
    grpo_loss,
    loss_denominator,
    truncated_importance_weights,
    truncation_mask,
)

# Two completions of 2 and 3 tokens. Ratios 1, 1.5 with advantage 1, and 0.5, 1.5, 1 with advantage -2.
MASK = jnp.array([[1, 1, 0], [1, 1, 1]])
ADVANTAGES = jnp.array([1.0, -2.0])
OLD = jnp.full((2, 3), -1.0)
LOG_PROBABILITIES = OLD + jnp.log(jnp.array([[1.0, 1.5, 9.0], [0.5, 1.5, 1.0]]))
# The policy is twice as sure as the reference of the last token and agrees with it everywhere else.
REFERENCE = LOG_PROBABILITIES.at[1, 2].add(-jnp.log(2.0))

NO_KL = GRPOObjective(kl_placement="none")


def sum_and_gradient(objective, log_probabilities=LOG_PROBABILITIES, reference=None, **arguments):
    arguments = {"old": OLD, "advantages": ADVANTAGES, "mask": MASK, "kl_coefficient": 0.0, **arguments}

    def loss(log_probabilities):
        return grpo_loss(log_probabilities, reference=reference, objective=objective, **arguments)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(log_probabilities)
    return float(value), gradient, metrics


@pytest.mark.quick
@pytest.mark.parametrize(
    ("fields", "denominator", "loss_sum", "gradient"),
    [
        # Token losses -1, -1.2 (bounded) and 1.6 (bounded), 3 (a ratio above 1.2 is not bounded where A < 0), 2.
        ({}, 2, 1.1, [[-1 / 2, 0, 0], [0, 3 / 3, 2 / 3]]),
        ({"aggregation": "token_mean"}, 5, 4.4, [[-1, 0, 0], [0, 3, 2]]),
        ({"aggregation": "constant_length", "constant_length": 10}, 20, 4.4, [[-1, 0, 0], [0, 3, 2]]),
        ({"clip_low": 0.6, "clip_high": 0.6}, 2, 0.75, [[-1 / 2, -1.5 / 2, 0], [1 / 3, 3 / 3, 2 / 3]]),
        # Ratios of sequences: sqrt(1.5) = 1.2247, bounded at 1.2; cbrt(0.75) = 0.9085603.
        ({"ratio": "sequence"}, 2, 0.6171206, [[0, 0, 0], [0.6057069, 0.6057069, 0.6057069]]),
        # Weights 1, 1.25 and 0.5, 1.25, 1; every token keeps its gradient.
        (
            {"policy_loss": "cispo", "ratio_cap": 1.25, "aggregation": "token_mean"},
            5,
            -3.4363159,
            [[-1, -1.25, 0], [1, 2.5, 2]],
        ),
    ],
)
def test_policy_term_by_hand(fields, denominator, loss_sum, gradient):
    objective = GRPOObjective(kl_placement="none", **fields)
    value, derivative, metrics = sum_and_gradient(objective)
    assert value == pytest.approx(loss_sum, rel=1e-5)
    np.testing.assert_allclose(derivative, gradient, rtol=1e-5, atol=1e-7)
    assert float(loss_denominator(MASK, objective)) == denominator
    assert summarise(metrics)["policy_loss"] == pytest.approx(loss_sum / denominator, rel=1e-5)


@pytest.mark.quick
def test_kl_in_the_loss_by_hand():
    # k3 = 1/2 - 1 + ln 2 = 0.1931472 on one token of three, gradient 1 - 1/2.
    value, gradient, metrics = sum_and_gradient(GRPOObjective(), reference=REFERENCE, kl_coefficient=0.1)
    assert value == pytest.approx(1.1 + 0.1 * 0.1931472 / 3, rel=1e-6)
    np.testing.assert_allclose(gradient, [[-1 / 2, 0, 0], [0, 1, 2 / 3 + 0.05 / 3]], rtol=1e-5)
    assert summarise(metrics)["kl"] == pytest.approx(0.1931472 / 5, rel=1e-5)

    # Weighted by the ratio 1 of that token, whose own derivative adds k3.
    weighted = GRPOObjective(kl_ratio_weighted=True)
    _, gradient, _ = sum_and_gradient(weighted, reference=REFERENCE, kl_coefficient=0.1)
    assert float(gradient[1, 2]) == pytest.approx(2 / 3 + (0.05 + 0.1 * 0.1931472) / 3, rel=1e-5)


@pytest.mark.quick
def test_kl_in_the_reward_by_hand():
    # On policy, KL 0.5 and 0.25 of the two tokens, coefficient 2: advantages 1 - 1.5 and 1 - 0.5.
    objective = GRPOObjective(kl_placement="reward", kl_estimator="k1", aggregation="token_mean")
    value, gradient, metrics = sum_and_gradient(
        objective,
        log_probabilities=OLD[:1],
        old=OLD[:1],
        reference=jnp.array([[-1.5, -1.25, 7.0]]),
        advantages=ADVANTAGES[:1],
        mask=MASK[:1],
        kl_coefficient=2.0,
    )
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0.0]], rtol=1e-6)
    assert value == pytest.approx(0.0, abs=1e-6)
    assert summarise(metrics)["kl_at_rollout"] == pytest.approx(0.375)


@pytest.mark.quick
def test_importance_weights_multiply_the_policy_term_only():
    value, gradient, metrics = sum_and_gradient(
        GRPOObjective(), reference=REFERENCE, kl_coefficient=0.1, importance_weights=jnp.array([2.0, 0.5])
    )
    assert value == pytest.approx(-1.1 * 2 + 2.2 * 0.5 + 0.1 * 0.1931472 / 3, rel=1e-6)
    np.testing.assert_allclose(gradient, [[-1, 0, 0], [0, 0.5, 1 / 3 + 0.05 / 3]], rtol=1e-5)
    assert summarise(metrics)["importance_weight"] == pytest.approx((2 * 2 + 3 * 0.5) / 5)
    value, _, _ = sum_and_gradient(NO_KL, importance_weights=jnp.array([[1.0, 3.0, jnp.nan], [0.0, 1.0, 0.0]]))
    assert value == pytest.approx((-1 - 3 * 1.2) / 2 + 3.0 / 3, rel=1e-6)


@pytest.mark.quick
def test_metrics_by_hand():
    numbers = summarise(sum_and_gradient(NO_KL, reference=REFERENCE)[2])
    assert numbers == {
        "policy_loss": pytest.approx(0.55),
        "clip_low": pytest.approx(1 / 5),
        "clip_high": pytest.approx(1 / 5),
        "ratio": pytest.approx(5.5 / 5),
        "ratio_squared": pytest.approx((1 + 2.25 + 0.25 + 2.25 + 1) / 5),
        "ratio_max": pytest.approx(1.5),
        # r - 1 - ln r: 0.5 - ln 1.5 twice, ln 2 - 0.5 once
        "kl_to_old": pytest.approx((2 * 0.0945349 + 0.1931472) / 5, rel=1e-5),
        "kl": pytest.approx(0.1931472 / 5, rel=1e-5),
        # log pi_old - log pi_ref is -ln r, plus ln 2 on the last token
        "kl_at_rollout": pytest.approx((-2 * 0.4054651 + 0.6931472 + 0.6931472) / 5, rel=1e-5),
        "tokens_per_completion": pytest.approx(2.5),
    }
    of_sequences = summarise(sum_and_gradient(GRPOObjective(kl_placement="none", ratio="sequence"))[2])
    assert of_sequences["clip_high"] == pytest.approx(1 / 2) and of_sequences["clip_low"] == 0.0
    assert of_sequences["ratio"] == pytest.approx((1.2247449 + 0.9085603) / 2)


@pytest.mark.quick
def test_a_truncated_completion_adds_nothing_and_still_counts_as_one():
    mask = truncation_mask(MASK, jnp.array([False, True]))
    np.testing.assert_array_equal(mask, [[True, True, False], [False, False, False]])
    value, gradient, metrics = sum_and_gradient(NO_KL, mask=mask)
    assert value == pytest.approx(-1.1)
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0], [0, 0, 0]], atol=1e-7)
    assert float(loss_denominator(mask, NO_KL)) == 2
    assert float(loss_denominator(mask, GRPOObjective(aggregation="token_mean"))) == 2
    assert float(loss_denominator(mask, GRPOObjective(aggregation="constant_length", constant_length=10))) == 20
    assert summarise(metrics)["ratio"] == pytest.approx(1.25)
    nothing = sum_and_gradient(NO_KL, mask=jnp.zeros_like(MASK))
    assert nothing[0] == 0.0 and not np.any(nothing[1]) and "ratio" not in summarise(nothing[2])


@pytest.mark.quick
def test_truncated_importance_weights_by_hand():
    trainer, sampler = jnp.log(jnp.array([[0.6, 0.2, 0.3], [0.5, 0.9, 0.5]])), jnp.log(jnp.array([[0.2, 0.4, 0.3]] * 2))
    mask = jnp.array([[1, 1, 1], [1, 1, 0]])
    tokens = truncated_importance_weights(trainer, sampler, mask, cap=2.4)
    np.testing.assert_allclose(tokens, [[2.4, 0.5, 1.0], [2.4, 2.25, 1.0]], rtol=1e-6)
    sequences = truncated_importance_weights(trainer, sampler, mask, cap=2.4, level="sequence")
    np.testing.assert_allclose(sequences, [1.5, 2.4], rtol=1e-6)
    far = truncated_importance_weights(jnp.zeros((1, 3)), jnp.full((1, 3), -1e4), mask[:1], cap=2.0, level="sequence")
    np.testing.assert_allclose(far, [2.0], rtol=1e-6)
    gradient = jax.grad(lambda trainer: jnp.sum(truncated_importance_weights(trainer, sampler, mask, cap=2.4)))(trainer)
    assert not np.any(gradient)


VARIANTS = [
    GRPOObjective(),
    GRPOObjective(aggregation="token_mean", clip_high=0.28, kl_estimator="k2", kl_ratio_weighted=True),
    GRPOObjective(aggregation="constant_length", constant_length=6, kl_placement="reward", kl_estimator="k1"),
    GRPOObjective(ratio="sequence", clip_low=0.1, clip_high=0.1),
    GRPOObjective(policy_loss="cispo", aggregation="token_mean", ratio_cap=1.2, kl_placement="none"),
]


@functools.partial(jax.jit, static_argnames="objective")
def value_gradient_metrics(objective, log_probabilities, old, reference, advantages, mask, weights):
    def loss(log_probabilities):
        return grpo_loss(
            log_probabilities,
            old,
            reference,
            advantages,
            mask,
            objective=objective,
            kl_coefficient=0.3,
            importance_weights=weights,
        )

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(log_probabilities)
    return value, gradient, metrics, loss_denominator(mask, objective)


def random_batch(seed, shape=(3, 4, 5)):
    """Arguments of `value_gradient_metrics` for B prompts, G completions, C tokens; some are all masked."""
    random = np.random.default_rng(seed)
    log_probabilities, old, reference = -1.5 + 0.3 * random.normal(size=(3, *shape))
    lengths = random.integers(0, shape[-1] + 1, size=shape[:-1]) * (random.random(shape[:-1]) < 0.9)
    mask = np.arange(shape[-1]) < lengths[..., None]
    advantages, weights = random.normal(size=shape[:-1]), random.uniform(0.5, 2, size=shape)
    floats = [jnp.asarray(array, jnp.float32) for array in (log_probabilities, old, reference, advantages, weights)]
    return (*floats[:4], jnp.asarray(mask), floats[4])


def assert_same_numbers(actual, expected):
    actual, expected = summarise(actual), summarise(expected)
    assert actual.keys() == expected.keys()
    for name in actual:
        assert actual[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("objective", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_micro_batches_add_up(objective, seed):
    batch = random_batch(seed)
    value, gradient, metrics, denominator = value_gradient_metrics(objective, *batch)
    parts = [value_gradient_metrics(objective, *(array[row : row + 1] for array in batch)) for row in range(3)]
    np.testing.assert_allclose(sum(part[0] for part in parts), value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), gradient, atol=1e-6)
    assert float(sum(part[3] for part in parts)) == float(denominator)
    assert_same_numbers(functools.reduce(merge_metrics, [part[2] for part in parts]), metrics)


@pytest.mark.parametrize("objective", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), garbage=st.sampled_from([0.0, -7.5, np.nan, -np.inf]))
def test_padding_changes_nothing(objective, seed, garbage):
    log_probabilities, old, reference, advantages, mask, weights = random_batch(seed)
    value, gradient, metrics, denominator = value_gradient_metrics(
        objective, log_probabilities, old, reference, advantages, mask, weights
    )

    def wider(array):
        filled = jnp.where(mask, array, garbage)
        return jnp.pad(filled, ((0, 0), (0, 0), (0, 3)), constant_values=garbage)

    wide_value, wide_gradient, wide_metrics, wide_denominator = value_gradient_metrics(
        objective,
        wider(log_probabilities),
        wider(old),
        wider(reference),
        advantages,
        jnp.pad(mask, ((0, 0), (0, 0), (0, 3))),
        wider(weights),
    )
    np.testing.assert_allclose(wide_value, value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(wide_gradient[..., :5], gradient, atol=1e-6)
    assert not np.any(wide_gradient[..., 5:]) and not np.any(np.asarray(gradient)[~np.asarray(mask)])
    assert float(wide_denominator) == float(denominator)
    assert_same_numbers(wide_metrics, metrics)


@pytest.mark.parametrize("objective", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(12)))
def test_the_order_of_completions_changes_nothing(objective, seed, order):
    batch = tuple(array.reshape(12, *array.shape[2:]) for array in random_batch(seed))
    value, gradient, metrics, _ = value_gradient_metrics(objective, *batch)
    shuffled = value_gradient_metrics(objective, *(array[np.array(order)] for array in batch))
    np.testing.assert_allclose(shuffled[0], value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shuffled[1], gradient[np.array(order)], atol=1e-6)
    assert_same_numbers(shuffled[2], metrics)


@pytest.mark.parametrize("objective", VARIANTS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_on_policy_every_variant_is_the_policy_gradient(objective, seed):
    """With ratio 1 and the reference equal to the policy, the gradient is -A, or -A / |completion|."""
    log_probabilities, _, _, advantages, mask, weights = random_batch(seed)
    gradient = value_gradient_metrics(
        objective, log_probabilities, log_probabilities, log_probabilities, advantages, mask, jnp.ones_like(weights)
    )[1]
    lengths = np.maximum(np.asarray(mask).sum(-1, keepdims=True), 1)
    divisor = lengths if objective.aggregation == "sequence_mean" else 1
    np.testing.assert_allclose(gradient, -advantages[..., None] * np.asarray(mask) / divisor, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_refusals():
    for field, value in {
        "ratio": "word",
        "policy_loss": "ppo",
        "kl_placement": "both",
        "kl_estimator": "k4",
        "aggregation": "mean",
        "clip_low": 1.5,
        "clip_high": -0.1,
        "ratio_cap": 0.0,
    }.items():
        with pytest.raises(InputError, match=f"{field} is"):
            GRPOObjective(**{field: value})
    with pytest.raises(InputError, match="constant_length is None"):
        GRPOObjective(aggregation="constant_length")
    with pytest.raises(InputError, match="kl_placement is 'loss'; the reference"):
        sum_and_gradient(GRPOObjective())
    with pytest.raises(InputError, match="old has shape"):
        sum_and_gradient(NO_KL, old=OLD[:, :2])
    with pytest.raises(InputError, match="advantages has shape"):
        sum_and_gradient(NO_KL, advantages=ADVANTAGES[:1])
    with pytest.raises(InputError, match="cap of the importance weights is 0"):
        truncated_importance_weights(OLD, OLD, MASK, cap=0)
    with pytest.raises(InputError, match="level is 'word'"):
        truncated_importance_weights(OLD, OLD, MASK, cap=2.0, level="word")
