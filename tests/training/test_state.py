"""A frozen vision tower: no gradient, no moments, no saved activations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.processing.batches import pad_prompts
from vlaa_jax.training.state import combine, create_state, partition

pytestmark = pytest.mark.quick


def names(tree) -> set[str]:
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("freeze", [True, False])
def test_partition_and_combine(freeze):
    model = hf.abstract_model(tiny.SIZES)
    trainable, frozen = partition(model, freeze_vision=freeze)
    assert names(combine(trainable, frozen)) == names(model)
    assert not names(trainable) & names(frozen)
    assert any("vision" in name for name in names(trainable)) != freeze
    assert all("vision" in name for name in names(frozen))
    assert bool(names(frozen)) == freeze


def test_a_reward_model_has_no_moments_of_its_word_head():
    sizes = dataclasses.replace(tiny.SIZES, text=dataclasses.replace(tiny.SIZES.text, tied_head=False))
    make = {kind: nnx.eval_shape(lambda kind=kind: kind(sizes, nnx.Rngs(0))) for kind in (RewardModel, Qwen2_5_VL)}
    frozen = {kind: names(partition(model, freeze_vision=False)[1]) for kind, model in make.items()}
    assert not frozen[Qwen2_5_VL] and ["untied_head" in name for name in frozen[RewardModel]] == [True]


def test_no_moments_of_a_frozen_tower():
    model = hf.abstract_model(tiny.SIZES)
    state = jax.eval_shape(lambda m: create_state(m, optax.adam(1e-3), freeze_vision=True), model)
    assert not any("vision" in name for name in names((state.trainable, state.optimizer)))
    assert sum("embedding" in name for name in names(state.optimizer)) == 2


@pytest.mark.parametrize("freeze", [True, False])
def test_saved_activations(freeze):
    """What the backward pass keeps holds no array of the tower's width, its patches or its windows if it is frozen."""
    windows = 5
    rows = pad_prompts([tiny.prompt(np.random.default_rng(0), [3, (1, 4, 6), 2])], 16, windows)
    model = hf.abstract_model(tiny.SIZES)
    state = jax.eval_shape(lambda m: create_state(m, optax.sgd(1.0), freeze_vision=freeze), model)

    def loss(frozen, trainable):
        model = combine(trainable, frozen)
        features = model.vision(rows.vision, jnp.float32, "none")
        states = model(rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index, remat="none")
        return jnp.sum(states)

    # The vjp is a pytree of what it keeps.
    kept = jax.eval_shape(lambda t, f: jax.vjp(functools.partial(loss, f), t)[1], state.trainable, state.frozen)
    vision = tiny.SIZES.vision
    of_the_tower = {
        vision.width,
        3 * vision.width,
        vision.mlp_width,
        vision.patch_values,
        windows * vision.window_slots,
    }
    found = [leaf.shape for leaf in jax.tree.leaves(kept) if of_the_tower & set(leaf.shape)]
    assert bool(found) != freeze, found
