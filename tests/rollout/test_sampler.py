"""The group sampler against a naive one that replicates the prompt and runs every token anew."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.batches import pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.decode import Completions
from vlaa_jax.rollout.draw import Sampling, draw
from vlaa_jax.rollout.generate import Generator, Rollout
from vlaa_jax.rollout.random_bits import row_keys, split_draws, uniforms
from vlaa_jax.rollout.sampler import sampling_weights


@dataclasses.dataclass
class Case:
    model: Qwen2_5_VL
    prompts: list[EncodedPrompt]


@functools.cache
def sharper_model() -> Qwen2_5_VL:
    """Random weights whose next tokens differ in probability."""
    return jax.tree.map(lambda leaf: leaf * 1.5 if leaf.ndim > 2 else leaf, tiny.model())


def make_case(seed=0, parts=([3, (1, 6, 10), 2], [8], [2, (1, 4, 4), 1, (1, 2, 8), 3])) -> Case:
    rng = np.random.default_rng(seed)
    return Case(sharper_model(), [tiny.prompt(rng, part) for part in parts])


def rollout(case, sampling, *, group=4, new_tokens=12, draws=(10, 11, 2**33), shape=(25, 6), **changes) -> Rollout:
    weights = sampling_weights(case.model, jnp.float32)
    generator = Generator(sampling, group, new_tokens, (), (), seed=3, stream=0, **changes)
    return generator(weights, case.prompts, draws, shape)


def completions(*args, **changes) -> Completions:
    return jax.tree.map(np.asarray, rollout(*args, **changes).completions)


def naive_logits(model, prompt, completion):
    """Logits `[len(completion) + 1, V]` that predict each next token, by one full forward pass."""
    tokens = np.concatenate([prompt.tokens, completion]).astype(np.int32)
    after = prompt.positions.max() + 1 + np.arange(len(completion))
    positions = np.concatenate([prompt.positions, np.broadcast_to(after, (3, len(completion)))], axis=1)
    index = np.concatenate([prompt.feature_index, np.full(len(completion), -1)])
    rows = pad_prompts([dataclasses.replace(prompt, tokens=tokens, positions=positions, feature_index=index)], 64, 20)
    return np.asarray(_forward(model, rows))[len(prompt.tokens) - 1 : len(tokens)]


jitted_draw = jax.jit(draw, static_argnums=2)


@jax.jit
def _forward(model, rows):
    features = model.vision(rows.vision, jnp.float32)
    states = model(rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index)
    return states[0] @ model.language.head[...].T


@pytest.mark.parametrize(
    "sampling", [Sampling(0.8, 0, 1.0, (11, 12), (7, 8)), Sampling(1.0, 50, 0.95, (11,), (7, 8)), Sampling(0.0)]
)
def test_equals_a_naive_sampler_with_the_same_bits(sampling):
    case = make_case()
    out = completions(case, sampling)
    draws = (10, 11, 2**33)
    keys = row_keys(3, 0, jnp.asarray(split_draws(np.asarray(draws)))[:, None], jnp.arange(4))
    for b, prompt in enumerate(case.prompts):
        for g in range(2):
            completion = []
            for t in range(int(out.lengths[b, g])):
                logits = naive_logits(case.model, prompt, np.asarray(completion, np.int32))[-1]
                expected = jitted_draw(logits, uniforms(keys[b, g : g + 1], t)[0], sampling)
                assert int(expected.tokens) == out.tokens[b, g, t], (b, g, t)
                np.testing.assert_allclose(out.log_probability[b, g, t], expected.log_probability, atol=1e-4)
                np.testing.assert_allclose(
                    out.sampled_log_probability[b, g, t], expected.sampled_log_probability, atol=1e-4
                )
                completion.append(int(expected.tokens))
    assert not (np.isin(out.tokens, sampling.banned_tokens) & (np.arange(12) < out.lengths[..., None])).any()


def test_log_probabilities_equal_a_fresh_forward_pass():
    case = make_case(5)
    out = completions(case, Sampling(0.7, end_tokens=(20, 21, 22)))
    for b, prompt in enumerate(case.prompts):
        for g in range(4):
            tokens = out.tokens[b, g, : out.lengths[b, g]]
            logits = naive_logits(case.model, prompt, tokens)[:-1]
            scaled = logits.astype(np.float64) / 0.7
            fresh = scaled[np.arange(len(tokens)), tokens] - np.log(np.exp(scaled).sum(axis=1))
            np.testing.assert_allclose(out.log_probability[b, g, : len(tokens)], fresh, atol=1e-4)


@pytest.mark.quick
def test_rows_end_at_any_end_token_and_stay_ended():
    case = make_case(1)
    out = completions(case, Sampling(3.0, end_tokens=tuple(range(400))), new_tokens=16)
    assert 1 < out.lengths.min() + 1 and out.lengths.max() < 16
    for tokens, length, ended in zip(out.tokens.reshape(-1, 16), out.lengths.ravel(), out.ended.ravel(), strict=True):
        assert ended and tokens[length - 1] < 400 and (tokens[: length - 1] >= 400).all()
        assert not tokens[length:].any()
    assert not out.log_probability[np.arange(16) >= out.lengths[..., None]].any()


def test_samples_do_not_depend_on_the_batch_or_the_group():
    """One record four times gives four different groups; alone, in company or with fewer samples it gives the same."""
    case = make_case(2, parts=([4, (1, 4, 6), 3],) * 4)
    case.prompts = case.prompts[:1] * 4
    sampling = Sampling(1.0, end_tokens=(11,))
    together = completions(case, sampling, draws=(0, 1, 2, 3), shape=(24, 8)).tokens
    assert len({tokens.tobytes() for tokens in together}) == 4
    case.prompts = case.prompts[:1]
    for name in range(4):
        single = completions(case, sampling, draws=(name,), shape=(40, 9), group=2).tokens
        np.testing.assert_array_equal(single[0], together[name, :2])


LONG_TAILED = Sampling(3.0, end_tokens=tuple(range(10, 50)))  # one token in sixteen ends a completion


def many_prompts() -> Case:
    """Twelve prompts, one record among them four times."""
    case = make_case(4, parts=[[5, (1, 4, 4), n % 5 + 1] for n in range(9)])
    case.prompts += case.prompts[:1] * 3
    return case


@functools.cache
def plain_loop() -> tuple[Completions, int, int]:
    """All at once; every row waits for the longest."""
    out = rollout(many_prompts(), LONG_TAILED, draws=range(12), new_tokens=40, segment=40)
    return jax.tree.map(np.asarray, out.completions), out.row_steps.ran, out.row_steps.used


@pytest.mark.parametrize("changes", [{"segment": 4}, {"segment": 7, "batch": 4}, {"segment": 16, "batch": 1}])
def test_segments_and_refill_change_no_sample(changes):
    expected, plain_steps, plain_used = plain_loop()
    lengths = expected.lengths
    assert plain_used == (lengths - 1).sum() and plain_steps == 48 * (lengths.max() - 1)
    assert lengths.min() < 4 and 30 < lengths.max(), "long-tailed"
    out = rollout(many_prompts(), LONG_TAILED, draws=range(12), new_tokens=40, **changes)
    for name in ("tokens", "lengths", "ended"):
        np.testing.assert_array_equal(getattr(out.completions, name), getattr(expected, name), err_msg=name)
    for name in ("log_probability", "sampled_log_probability"):
        np.testing.assert_allclose(getattr(out.completions, name), getattr(expected, name), atol=1e-5, err_msg=name)
    assert out.row_steps.used == plain_used and out.row_steps.ran < 0.8 * plain_steps


def test_wasted_row_steps_by_hand():
    """One prompt, two completions: rows run until the longer has ended, the first tokens need no step."""
    case = make_case(1, parts=([8],))
    out = rollout(case, LONG_TAILED, draws=(5,), group=2, new_tokens=40)
    short, long = sorted(np.asarray(out.completions.lengths).ravel().tolist())
    assert short < long
    assert (out.row_steps.ran, out.row_steps.used) == (2 * (long - 1), short + long - 2)
    assert out.row_steps.wasted == pytest.approx((long - short) / (2 * (long - 1)))


def test_a_bound_of_one_token_runs_no_step():
    out = rollout(make_case(), Sampling(1.0), new_tokens=1)
    assert out.completions.lengths.tolist() == [[1] * 4] * 3
    assert (out.row_steps.ran, out.row_steps.wasted) == (0, 0)
