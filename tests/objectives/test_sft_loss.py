import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.accumulation import summarise
from vlaa_jax.objectives.sft import sft_loss, sft_loss_denominator, sft_weights

# One row of 8: example 1 has 1 answer token of 3, example 2 has 3 of 4, then padding.
MASK = jnp.array([[0, 0, 1, 0, 1, 1, 1, 0]])
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
LOG_PROBABILITIES = jnp.array([[-9.0, jnp.nan, -4.0, -9.0, -1.0, -2.0, -3.0, -jnp.inf]])


@pytest.mark.quick
def test_weights_by_hand():
    np.testing.assert_array_equal(sft_weights(MASK, SEGMENTS), [[0, 0, 1, 0, 1, 1, 1, 0]])
    third = np.float32(1 / 3)
    per_example = sft_weights(MASK, SEGMENTS, normalisation="per_example")
    np.testing.assert_allclose(per_example, [[0, 0, 1, 0, third, third, third, 0]])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("normalisation", "denominator", "loss", "gradient"),
    [
        ("tokens", 4.0, 2.5, [0, 0, -0.25, 0, -0.25, -0.25, -0.25, 0]),  # (4 + 1 + 2 + 3) / 4
        ("per_example", 2.0, 3.0, [0, 0, -0.5, 0, -1 / 6, -1 / 6, -1 / 6, 0]),  # (4 + (1 + 2 + 3) / 3) / 2
    ],
)
def test_loss_and_gradient_by_hand(normalisation, denominator, loss, gradient):
    weights = sft_weights(MASK, SEGMENTS, normalisation=normalisation)
    assert float(sft_loss_denominator(weights)) == pytest.approx(denominator)

    def mean_loss(log_probabilities):
        loss_sum, metrics = sft_loss(log_probabilities, weights)
        return loss_sum / sft_loss_denominator(weights), metrics

    (value, metrics), derivative = jax.value_and_grad(mean_loss, has_aux=True)(LOG_PROBABILITIES)
    assert float(value) == pytest.approx(loss)
    np.testing.assert_allclose(derivative, [gradient], rtol=1e-6)
    assert summarise(metrics) == {"negative_log_likelihood": pytest.approx(2.5)}


@pytest.mark.quick
def test_an_example_without_answer_tokens_counts_as_nothing():
    mask, segments = jnp.array([[0, 0, 1, 1]]), jnp.array([[1, 1, 2, 2]])
    weights = sft_weights(mask, segments, normalisation="per_example")
    np.testing.assert_array_equal(weights, [[0, 0, 0.5, 0.5]])
    assert float(sft_loss_denominator(weights)) == 1.0


@functools.partial(jax.jit, static_argnames="normalisation")
def loss_and_gradient(log_probabilities, mask, segments, normalisation):
    def loss(log_probabilities):
        weights = sft_weights(mask, segments, normalisation=normalisation)
        return sft_loss(log_probabilities, weights)[0] / jnp.maximum(sft_loss_denominator(weights), 1.0)

    return jax.value_and_grad(loss)(log_probabilities)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    normalisation=st.sampled_from(["tokens", "per_example"]),
)
def test_packing_changes_nothing(lengths, seed, normalisation):
    """One row an example, padded to 8, against all examples in one row."""
    random = np.random.default_rng(seed)
    examples = [(random.normal(size=n) - 2, random.random(n) < 0.6) for n in lengths]

    def batch(shape, places):
        """Arrays of `shape` with each example's tokens at its place: (row, first column, segment)."""
        log_probabilities, mask, segments = (
            np.zeros(shape, np.float32),
            np.zeros(shape, bool),
            np.zeros(shape, np.int32),
        )
        for (values, answer), (row, column, segment) in zip(examples, places, strict=True):
            columns = slice(column, column + len(values))
            log_probabilities[row, columns], mask[row, columns], segments[row, columns] = values, answer, segment
        return log_probabilities, mask, segments

    starts = np.cumsum([0, *lengths[:-1]])
    single = batch((6, 8), [(row, 0, 1) for row in range(len(lengths))])
    packed = batch((1, 40), [(0, start, 1 + index) for index, start in enumerate(starts)])

    value, gradient = loss_and_gradient(*single, normalisation)
    packed_value, packed_gradient = loss_and_gradient(*packed, normalisation)
    np.testing.assert_allclose(packed_value, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(packed_gradient[packed[2] > 0], gradient[single[2] > 0], atol=1e-6)


@pytest.mark.quick
def test_refusals():
    with pytest.raises(InputError, match="normalisation is 'words'"):
        sft_weights(MASK, SEGMENTS, normalisation="words")
    with pytest.raises(InputError, match="differ"):
        sft_weights(MASK, SEGMENTS[:, :4])
    with pytest.raises(InputError, match="differ"):
        sft_loss(LOG_PROBABILITIES, sft_weights(MASK, SEGMENTS)[:, :4])
