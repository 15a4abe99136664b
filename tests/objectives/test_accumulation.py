import jax
import jax.numpy as jnp
import pytest

from vlaa_jax.objectives.accumulation import Maximum, WeightedSum, merge_metrics, summarise


@pytest.mark.quick
def test_a_mean_of_micro_batches_is_the_mean_of_all():
    first = {"loss": WeightedSum(jnp.float32(6), jnp.float32(3)), "largest": Maximum(jnp.float32(2))}
    second = {"loss": WeightedSum(jnp.float32(30), jnp.float32(30)), "largest": Maximum(jnp.float32(1.5))}
    # The mean of the two means would be 1.5.
    assert summarise(merge_metrics(first, second)) == {"loss": pytest.approx(36 / 33), "largest": 2.0}


@pytest.mark.quick
def test_zeros_start_an_accumulation_inside_a_scan():
    stacked = {
        "loss": WeightedSum(jnp.array([6.0, 30.0]), jnp.array([3.0, 30.0])),
        "largest": Maximum(jnp.array([2, 1.5])),
    }
    zeros = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), stacked)
    total, _ = jax.jit(
        lambda stacked: jax.lax.scan(lambda sums, one: (merge_metrics(sums, one), None), zeros, stacked)
    )(stacked)
    assert summarise(total) == {"loss": pytest.approx(36 / 33), "largest": 2.0}


@pytest.mark.quick
def test_a_mean_over_nothing_has_no_key():
    assert summarise({"kl": WeightedSum(jnp.float32(0), jnp.float32(0))}) == {}
