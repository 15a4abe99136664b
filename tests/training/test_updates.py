"""One update from micro-batches, on a model of two numbers whose gradients are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlaa_jax.objectives.accumulation import Maximum, WeightedSum, summarise
from vlaa_jax.training.state import combine, create_state
from vlaa_jax.training.updates import Updater

pytestmark = pytest.mark.quick


def loss(model, batch):
    """`sum over examples of weight * x`, plus what the frozen part says."""
    values = model["language"]["w"] * batch
    return jnp.sum(values) + model["vision"]["v"] * 0, {
        "value": WeightedSum(jnp.sum(values), jnp.float32(batch.size)),
        "largest": Maximum(jnp.max(jnp.abs(batch))),
    }


def fresh(optimizer, *, freeze_vision=True):
    model = {"language": {"w": jnp.float32(2.0)}, "vision": {"v": jnp.float32(5.0)}}
    return create_state(model, optimizer, freeze_vision=freeze_vision)


@pytest.mark.parametrize("cut", [[[1.0, 2.0, 6.0]], [[1.0, 2.0], [6.0]], [[6.0], [2.0], [1.0]]])
def test_sums_are_divided_once(cut):
    updater = Updater(loss, optax.sgd(0.5))
    state = fresh(optax.sgd(0.5))
    total = updater.first(state, jnp.asarray(cut[0]))
    for batch in cut[1:]:
        total = updater.add(state, total, jnp.asarray(batch))
    assert float(total.gradient["language"]["w"]) == 9.0
    state, outcome, metrics = updater.apply(state, total, jnp.float32(3))
    assert float(outcome.loss) == 6.0
    assert float(outcome.gradient_norm) == 3.0
    assert float(state.trainable["language"]["w"]) == 2.0 - 0.5 * 3.0
    assert int(state.updates) == 1 and bool(outcome.finite)
    assert summarise(metrics) == {"value": 6.0, "largest": 6.0}


@pytest.mark.parametrize("cut", [[[1.0, 2.0, 6.0]], [[1.0, 2.0], [6.0]], [[6.0], [2.0], [1.0]]])
def test_a_whole_update(cut):
    updater, state = Updater(loss, optax.sgd(0.5)), fresh(optax.sgd(0.5))
    count = lambda batch: jnp.float32(batch.size)  # noqa: E731
    state, metrics = updater.run(state, map(jnp.asarray, cut), count)
    assert metrics == {"update/value": 6.0, "update/largest": 6.0, "loss": 6.0, "gradient_norm": 3.0}
    assert float(state.trainable["language"]["w"]) == 2.0 - 0.5 * 3.0
    state, metrics = updater.run(state, [jnp.asarray([1.0]), jnp.asarray([np.nan])], count)
    assert metrics == {} and float(state.trainable["language"]["w"]) == 0.5 and int(state.updates) == 1
    # Nothing is counted: the sum is divided by 1.
    _, metrics = updater.run(state, [jnp.asarray([4.0])], lambda batch: jnp.float32(0))
    assert metrics["gradient_norm"] == 4.0


def test_a_large_gradient_is_clipped_as_a_whole():
    def two_numbers(model, batch):
        return jnp.sum(model["language"]["w"] * batch), {}

    model = {"language": {"w": jnp.zeros(2)}, "vision": {"v": jnp.float32(5.0)}}
    updater = Updater(two_numbers, optax.sgd(1.0), clip_norm=1.0)
    for gradient, step in (([30.0, 40.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        state = create_state(jax.tree.map(jnp.copy, model), optax.sgd(1.0), freeze_vision=True)
        batch = jnp.asarray(gradient)
        state, outcome, _ = updater.apply(state, updater.first(state, batch), jnp.float32(1))
        np.testing.assert_allclose(-state.trainable["language"]["w"], step, rtol=1e-6)
        np.testing.assert_allclose(outcome.gradient_norm, np.hypot(*gradient), rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_changes_nothing(poison):
    optimizer = optax.adam(0.1)
    updater = Updater(loss, optimizer)
    state = fresh(optimizer)
    state, _, _ = updater.apply(state, updater.first(state, jnp.asarray([1.0])), jnp.float32(1))
    before = jax.tree.map(np.asarray, (state.trainable, state.optimizer, state.updates))
    state, outcome, _ = updater.apply(state, updater.first(state, jnp.asarray([poison])), jnp.float32(1))
    assert not bool(outcome.finite)
    for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves((state.trainable, state.optimizer, state.updates)), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    # And the next one goes on as if nothing had been.
    state, outcome, _ = updater.apply(state, updater.first(state, jnp.asarray([1.0])), jnp.float32(1))
    assert bool(outcome.finite) and int(state.updates) == 2


def test_a_frozen_part_has_no_gradient_and_no_moments():
    optimizer = optax.adam(0.1)
    updater = Updater(loss, optimizer)
    state = fresh(optimizer)
    total = updater.first(state, jnp.asarray([1.0]))
    assert jax.tree.leaves(total.gradient["vision"]) == []
    assert len(jax.tree.leaves(state.optimizer)) == 3  # count, mean and square of one number
    state, _, _ = updater.apply(state, total, jnp.float32(1))
    assert float(combine(state.trainable, state.frozen)["vision"]["v"]) == 5.0
    trained = fresh(optimizer, freeze_vision=False)
    assert len(jax.tree.leaves(Updater(loss, optimizer).first(trained, jnp.asarray([1.0])).gradient)) == 2


def test_one_program_for_each_shape_of_a_batch():
    traced = []

    def counted(model, batch):
        traced.append(batch.shape)
        return loss(model, batch)

    updater = Updater(counted, optax.sgd(0.5))
    state = fresh(optax.sgd(0.5))
    for sizes in ([2, 3], [3, 2], [2, 2, 3]):
        total = updater.first(state, jnp.ones(sizes[0]))
        for size in sizes[1:]:
            total = updater.add(state, total, jnp.ones(size))
        state, _, _ = updater.apply(state, total, jnp.float32(1))
    assert updater.add._cache_size() == 2
    assert updater.apply._cache_size() == 1
    assert len(traced) == 3  # once more for the shapes of the zeros
