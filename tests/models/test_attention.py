"""Masks against their meaning, and block-wise attention against the dense form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from kernels import draw as draw_all

from vlaa_jax.models import attention as attention_module
from vlaa_jax.models.attention import Causal, Mask, Segments, SharedPrompt, attend, attention, merge


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def plain(queries, keys, values, visible):
    """Softmax attention in float64, one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (queries, keys, values))
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for n in range(q.shape[2]):
            shared = n // (q.shape[2] // k.shape[2])
            scores = q[b, :, n] @ k[b, :, shared].T / np.sqrt(q.shape[-1])
            scores = np.where(visible[b], scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, n] = weights / weights.sum(-1, keepdims=True) @ v[b, :, shared]
    return out


@pytest.mark.quick
def test_masks_mean_what_they_say():
    segments = jnp.asarray([[0, 1, 1, 2, 2]])
    assert Causal(segments).dense()[0].astype(int).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert Segments(segments).dense()[0].astype(int).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    assert SharedPrompt(jnp.asarray([[1, 1, 0, 2, 2, 3, 0]])).dense()[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["causal", "segments", "shared"])
def test_values_equal_plain_softmax(kind, monkeypatch):
    monkeypatch.setattr(attention_module, "_QUERIES_AT_ONCE", 8)  # of 19: more than one part, the last one smaller
    total = 19
    q, k, v = draw((2, total, 6, 8), 0), draw((2, total, 2, 8), 1), draw((2, total, 2, 8), 2)
    packed = np.repeat([[1, 2, 0], [1, 0, 2]], [9, 8, 2], axis=1)
    shared = np.stack([np.repeat([1, 2, 3, 4, 0], [7, 2, 4, 3, 3]), np.repeat([1, 0, 2, 0, 3], [5, 3, 1, 3, 7])])
    mask = {
        "causal": Causal(jnp.asarray(packed)),
        "segments": Segments(jnp.asarray(packed)),
        "shared": SharedPrompt(jnp.asarray(shared)),
    }[kind]
    dense = np.asarray(mask.dense())
    out = np.asarray(jax.jit(attention)(q, k, v, mask))
    real = dense.any(-1)
    assert real.sum() > 20
    np.testing.assert_allclose(out[real], plain(q, k, v, dense | ~dense.any(-1, keepdims=True))[real], atol=2e-6)


@pytest.mark.quick
def test_merge_is_attention_to_the_union():
    q, k, v = draw((2, 5, 8), 0), draw((2, 9, 8), 1), draw((2, 9, 8), 2)
    everything = jnp.ones((5, 9), bool)
    whole, _ = attend(q, k, v, everything)
    parts = [attend(q, k[:, s], v[:, s], everything[:, s]) for s in (slice(0, 3), slice(3, 9))]
    np.testing.assert_allclose(merge(*parts), whole, atol=1e-6)
    # A part that sees nothing changes nothing.
    blind = attend(q, k[:, :3], v[:, :3], jnp.zeros((5, 3), bool))
    np.testing.assert_allclose(merge(parts[1], blind), parts[1][0], atol=1e-6)


def rows_of_presets() -> list[Mask]:
    """Every mask and length of the `3b` presets, but for the windows of the vision tower."""
    recipe, sft = tiny.grpo_mixed.get_config("3b"), tiny.sft.get_config("3b")
    ones = lambda length: jnp.ones((1, length), jnp.int32)  # noqa: E731
    rows = [Causal(ones(sft.updates.row_tokens)), Segments(ones(sft.updates.row_windows * 64))]
    rows += [Segments(ones(windows * 64)) for windows in (20, 80, recipe.rollout.most_windows)]
    rows += [Causal(ones(prompt)) for prompt in (256, 1000, recipe.rollout.longest_prompt)]
    rows += [SharedPrompt(ones(length)) for length in (512, 1000, 3000, 2048 + 4 * 1024)]
    return rows


def kernel_of(mask: Mask) -> str:
    """Which implementation a program for the current platform gets."""
    rows, length = jax.tree.leaves(mask)[0].shape
    arrays = draw_all(rows, length, heads=2, shared=1, width=16)
    text = str(jax.make_jaxpr(lambda *arrays: attention(*arrays, mask))(*arrays))  # a new function: traces are kept
    return "splash" if "splash_mha_fwd" in text else "triton" if "mha_forward" in text else "reference"


@pytest.mark.parametrize("platform, expected", [("tpu", "splash"), ("gpu", "triton"), ("cpu", "reference")])
def test_every_row_of_the_presets_reaches_the_platforms_kernel(platform, expected, monkeypatch):
    monkeypatch.setattr(attention_module, "platform", lambda: platform)
    rows = rows_of_presets()
    assert len(rows) == 12
    for mask in rows:
        without = platform == "gpu" and isinstance(mask, SharedPrompt)
        assert kernel_of(mask) == ("reference" if without else expected)


def test_what_the_kernels_are_not_for(monkeypatch):
    ones = jnp.ones((3, 64), jnp.int32)
    for platform in ("tpu", "gpu"):
        monkeypatch.setattr(attention_module, "platform", lambda name=platform: name)
        assert kernel_of(Segments(ones)) == "reference"  # windows
        assert kernel_of(Causal(ones)) == "reference"
    monkeypatch.setattr(attention_module, "platform", lambda: "tpu")
    assert kernel_of(SharedPrompt(jnp.ones((1, 448), jnp.int32))) == "splash"
    assert kernel_of(Causal(jnp.ones((1, 300), jnp.int32))) == "splash"  # not a multiple of a block
