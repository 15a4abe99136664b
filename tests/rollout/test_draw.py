"""One token from logits: against sorted definitions and against the softmax itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.rollout.draw import Sampling, _truncate, draw
from vlaa_jax.rollout.random_bits import row_keys, split_draws, uniforms

jitted_draw = jax.jit(draw, static_argnums=2)


def naive_kept(logits, sampling):
    """Boolean row: which tokens may be drawn, by sorting."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = [i for i in order if i not in sampling.banned_tokens]
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = np.exp(np.asarray([logits[i] for i in order], np.float64) / sampling.temperature)
    before = np.cumsum(weights) / weights.sum() - weights / weights.sum()
    kept = np.zeros(len(logits), bool)
    kept[[i for i, mass in zip(order, before, strict=True) if mass < sampling.top_p]] = True
    return kept


@pytest.mark.quick
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7, banned_tokens=(3, 500)),
        Sampling(temperature=1.3, top_k=7),
        Sampling(top_p=0.6, banned_tokens=(0,)),
        Sampling(temperature=0.8, top_k=20, top_p=0.9),
    ],
)
def test_frequencies_pass_chi_square_against_the_softmax(sampling):
    rng = np.random.default_rng(0)
    vocabulary, draws = 600, 10_000
    logits = (2 * rng.standard_normal(vocabulary)).astype(np.float32)
    numbers = ((np.arange(draws) + rng.random()) / draws).astype(np.float32)
    rng.shuffle(numbers)
    # Arguments, not constants: the compiler would work out the whole table before it runs anything.
    out = jitted_draw(np.broadcast_to(logits, (draws, vocabulary)), numbers, sampling)
    tokens = np.asarray(out.tokens)
    kept = naive_kept(logits.tolist(), sampling)
    weights = np.where(kept, np.exp(logits.astype(np.float64) / sampling.temperature), 0)
    expected = weights / weights.sum()
    counts = np.bincount(tokens, minlength=vocabulary)
    assert not counts[~kept].any()
    # Evenly spread numbers: every frequency is within a few draws of its probability, far below chi-square noise.
    assert np.abs(counts - draws * expected).max() < 3
    full = np.exp(logits.astype(np.float64) / sampling.temperature)
    np.testing.assert_allclose(out.sampled_log_probability, np.log(expected[tokens]), atol=1e-4)
    np.testing.assert_allclose(out.log_probability, np.log(full / full.sum())[tokens], atol=1e-4)


@pytest.mark.quick
def test_greedy_takes_the_most_likely_allowed_token():
    logits = jnp.asarray([[1.0, 5.0, 3.0]])
    out = draw(logits, jnp.zeros(1), Sampling(temperature=0, banned_tokens=(1,)))
    assert out.tokens.tolist() == [2]
    np.testing.assert_allclose(out.log_probability, [3 - np.log(np.exp([1, 5, 3]).sum())], rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=700),
    st.floats(0, 1, exclude_max=True, width=32),
    st.sampled_from([0, 1, 5]),
)
def test_a_drawn_token_always_has_probability(logits, number, top_k):
    row = np.full(700, -np.inf, np.float32)  # one shape, one program
    row[: len(logits)] = logits
    out = jitted_draw(row, np.float32(number), Sampling(top_k=top_k))
    token = int(out.tokens)
    assert 0 <= token < len(logits)
    assert np.exp(row[token] - row.max()) > 0
    assert np.isfinite(out.sampled_log_probability)


@functools.partial(jax.jit, static_argnums=1)
def kept_tokens(row, sampling):
    return _truncate(row, sampling) > -jnp.inf


def sorted_kept(row, sampling):
    """The definition, ties at the smallest kept logit included."""
    ordered = np.sort(row.astype(np.float64))[::-1]
    if sampling.top_k:
        ordered = ordered[: sampling.top_k]
        ordered = np.sort(row[row >= ordered[-1]].astype(np.float64))[::-1]
    if sampling.top_p == 1:
        return row >= ordered[-1]
    weights = np.exp(ordered - ordered[0])
    before = np.cumsum(weights) - weights
    return row >= ordered[before < sampling.top_p * weights.sum()][-1]


SETTINGS = [Sampling(top_k=3), Sampling(top_p=0.7), Sampling(top_k=40, top_p=0.99), Sampling(top_p=1e-6)]


@settings(max_examples=150, deadline=None)
@given(
    # Few values, so that many tie; zeros of both signs, and normal numbers with none but subnormal ones between them.
    st.lists(st.sampled_from([-3e38, -80.0, -2e-38, -0.0, 0.0, 2e-38, 0.25, 0.5, 2.0, 2.0000002, 9.0]), min_size=1),
    st.lists(st.floats(-30, 30, width=32), max_size=60),
    st.sampled_from(SETTINGS),
)
def test_truncation_is_that_of_the_sorted_definition(tied, others, sampling):
    values = np.asarray(tied + others, np.float32)
    row = np.full(200, -np.inf, np.float32)
    row[: len(values)] = values[:200]
    expected = sorted_kept(row[: len(values)], sampling)
    np.testing.assert_array_equal(kept_tokens(row, sampling)[: len(values)], expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_truncation_of_a_whole_vocabulary(scale):
    rows = (scale * np.random.default_rng(0).standard_normal((4, 151_936))).astype(np.float32)
    for sampling in (Sampling(top_k=1000), Sampling(top_p=0.95)):
        kept = np.asarray(kept_tokens(rows, sampling))
        for row, found in zip(rows, kept, strict=True):
            expected = sorted_kept(row, sampling)
            if sampling.top_k:
                np.testing.assert_array_equal(found, expected)
            else:  # float32 sums: a token at the very edge may fall on either side
                assert abs(int(found.sum()) - int(expected.sum())) <= 2e-4 * expected.sum() + 1


@pytest.mark.quick
def test_numbers_depend_on_the_name_alone():
    draws = split_draws(np.asarray([5, 2**32 + 5, 7]))
    keys = row_keys(1, 0, jnp.asarray(draws)[:, None], jnp.arange(4))
    together = np.asarray(uniforms(keys, 3))
    alone = np.asarray(uniforms(row_keys(1, 0, jnp.asarray(draws[2:])[:, None], jnp.arange(2)), 3))
    np.testing.assert_array_equal(together[2:, :2], alone)
    # Tokens of their own indices.
    np.testing.assert_array_equal(uniforms(keys[:, 0], np.asarray([3, 3, 9]))[:2], together[:2, 0])
    others = [
        uniforms(row_keys(2, 0, jnp.asarray(draws)[:, None], jnp.arange(4)), 3),
        uniforms(row_keys(1, 1, jnp.asarray(draws)[:, None], jnp.arange(4)), 3),
    ]
    everything = np.concatenate([together.ravel(), *map(np.ravel, others), np.ravel(uniforms(keys, 4))])
    assert len(np.unique(everything)) == everything.size


@pytest.mark.parametrize("field", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_distributions_are_refused(field):
    with pytest.raises(InputError, match=next(iter(field))):
        Sampling(**field)
