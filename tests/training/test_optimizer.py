"""The schedule by hand, the decay mask, moments in other dtypes and memories."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vlaa_jax.errors import InputError
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.training.optimizer import adamw, learning_rate_schedule, warmup_updates
from vlaa_jax.training.state import create_state
from vlaa_jax.training.updates import Updater

pytestmark = pytest.mark.quick


def test_the_papers_schedule_by_hand():
    """392 updates, 12 of them warm-up, peak 1e-6, floor 5e-7."""
    rate = learning_rate_schedule(1e-6, 5e-7, 0.03, 392)
    assert warmup_updates(0.03, 392) == 12
    np.testing.assert_allclose(rate(0), 1e-6 / 12, rtol=1e-6)
    np.testing.assert_allclose(rate(5), 0.5e-6, rtol=1e-6)
    np.testing.assert_allclose(rate(11), 1e-6, rtol=1e-6)
    np.testing.assert_allclose(rate(12), 1e-6, rtol=1e-6)
    np.testing.assert_allclose(rate(12 + 190), 7.5e-7, rtol=1e-6)  # half of the cosine
    np.testing.assert_allclose(rate(391), 5e-7 + 2.5e-7 * (1 + math.cos(math.pi * 379 / 380)), rtol=1e-6)
    assert 5e-7 < float(rate(391)) < 5.0001e-7


@pytest.mark.parametrize(("share", "updates", "warmup"), [(0.03, 392, 12), (0.10, 392, 40), (0.0, 50, 0), (0.5, 3, 2)])
def test_warmup_is_rounded_up(share, updates, warmup):
    assert warmup_updates(share, updates) == warmup


def test_a_schedule_to_zero_and_one_without_warmup():
    assert float(learning_rate_schedule(1e-3, 0.0, 0.0, 10)(0)) == pytest.approx(1e-3)
    assert float(learning_rate_schedule(1e-3, 0.0, 0.0, 10)(10)) == 0
    # One update in all: it is the warm-up.
    assert float(learning_rate_schedule(1e-3, 0.0, 0.03, 1)(0)) == pytest.approx(1e-3)


@pytest.mark.parametrize(("peak", "floor", "share"), [(1e-6, 2e-6, 0.1), (1e-6, -1e-9, 0.1), (1e-6, 0.0, 1.0)])
def test_impossible_schedules_are_refused(peak, floor, share):
    with pytest.raises(InputError, match=r"config\.optimizer\.(floor|warmup_share) is"):
        learning_rate_schedule(peak, floor, share, 10)


def test_weight_decay_acts_on_matrices_alone():
    """Two runs that differ in the decay differ where there is decay; gradients are zero."""
    model = hf.abstract_model(tiny.SIZES)
    trainable = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), model)
    optimizer = adamw(lambda _: 1.0, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    change, _ = jax.jit(optimizer.update)(zeros, optimizer.init(trainable), trainable)
    decayed = {}
    leaves = zip(jax.tree_util.tree_leaves_with_path(change), jax.tree.leaves(trainable), strict=True)
    for (path, step), weight in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        decayed[name] = bool(np.any(np.asarray(step)))
        if decayed[name]:
            np.testing.assert_allclose(step, -0.5 * weight, rtol=1e-6)
    assert sorted(name for name, moved in decayed.items() if moved) == [
        "language.embedding",
        "language.layers.down",
        "language.layers.gate",
        "language.layers.key",
        "language.layers.output",
        "language.layers.query",
        "language.layers.up",
        "language.layers.value",
        "vision.blocks.down",
        "vision.blocks.gate",
        "vision.blocks.output",
        "vision.blocks.qkv",
        "vision.blocks.up",
        "vision.merger_in",
        "vision.merger_out",
        "vision.patch_embedding",
    ]


def test_the_first_moment_may_be_bfloat16():
    optimizer = adamw(lambda _: 1e-3, weight_decay=0.0, first_moment_dtype="bfloat16")
    moments = [leaf.dtype for leaf in jax.tree.leaves(optimizer.init({"a": jnp.zeros(3)})) if leaf.shape]
    assert moments == [jnp.bfloat16, jnp.float32]
    with pytest.raises(InputError, match="first_moment_dtype is 'float16': expected 'float32' or 'bfloat16'"):
        adamw(lambda _: 1e-3, weight_decay=0.0, first_moment_dtype="float16")


def test_moments_on_the_host_step_as_those_on_the_chip():
    """On a model of stacked layers and an embedding, three updates, the second of which is not finite."""
    optimizer = adamw(lambda count: 1e-2 / (1 + count), weight_decay=0.1)

    def loss(model, batch):
        out = model.language(batch, jnp.zeros((3, 2, 4), jnp.int32), Causal(jnp.ones((2, 4), jnp.int32)))
        return jnp.sum(out * model.language.embedding[...][:4]), {}

    batches = [jax.random.normal(jax.random.key(i), (2, 4, tiny.SIZES.text.width)) for i in range(3)]
    batches[1] = batches[1].at[0].set(jnp.nan)
    ends = []
    for host in (False, True):
        updater = Updater(loss, optimizer, clip_norm=0.5, moments_on_host=host)
        model = jax.tree.map(jnp.copy, tiny.model())
        state = create_state(model, optimizer, freeze_vision=True, moments_on_host=host)
        finite = []
        for batch in batches:
            state, outcome, _ = updater.apply(state, updater.first(state, batch), jnp.float32(1))
            finite.append(bool(outcome.finite))
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim}
        assert (kinds == {"pinned_host"}) == host
        assert finite == [True, False, True] and int(state.updates) == 2
        ends.append([np.asarray(leaf) for leaf in jax.tree.leaves((state.trainable, state.optimizer))])
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-6, atol=1e-9)
