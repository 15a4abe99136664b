"""Reward models as Hugging Face directories with a head."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from flax import nnx

from vlaa_jax.errors import InputError
from vlaa_jax.models import reward_model
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.sharding import place_parameter


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("policy") / "policy"
    hf.save(tiny.model(), directory, hf.new_layout(tiny.model(), np.float32))
    return directory


def test_what_was_saved_is_loaded(policy, tmp_path):
    model = reward_model.new_model(hf.load(policy), seed=1, place=place_parameter)
    assert float(np.std(model.reward_head.weight[...])) > 0.05
    model.reward_head.bias[...] = model.reward_head.bias[...] + 0.5
    out = tmp_path / "process"
    reward_model.save(model, "process", out, dataclasses.replace(hf.read_layout(policy), source=None))
    loaded, kind = reward_model.load(out)
    assert kind == "process" and isinstance(loaded, reward_model.RewardModel)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), model, loaded)
    assert all(jax.tree.leaves(same)) and len(jax.tree.leaves(model)) == len(jax.tree.leaves(tiny.model())) + 2
    # The backbone alone is a policy like any other.
    alone = hf.load(out)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, alone, reward_model.without_head(loaded))))
    assert (out / reward_model.HEAD).stat().st_mode == (out / "config.json").stat().st_mode
    assert [path.name for path in tmp_path.iterdir()] == ["process"]
    with pytest.raises(InputError, match="exists already"):
        reward_model.save(model, "process", out, hf.read_layout(policy))


def test_heads_differ_by_seed_and_not_by_call(policy):
    weights = [
        np.asarray(reward_model.new_model(tiny.model(), seed=seed, place=place_parameter).reward_head.weight[...])
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])


def test_a_policy_is_no_reward_model(policy):
    with pytest.raises(InputError, match=r"no reward model: expected reward_head\.safetensors"):
        reward_model.load(policy)


@pytest.mark.parametrize(
    "head, metadata, message",
    [
        ({"weight": np.zeros(31, np.float32), "bias": np.float32(0)}, {"kind": "process"}, r"\(31,\)"),
        ({"weight": np.zeros(32, np.float32)}, {"kind": "process"}, "bias"),
        ({"weight": np.zeros(32, np.float32), "bias": np.float32(0)}, {"kind": "dense"}, "kind 'dense'"),
        ({"weight": np.zeros(32, np.float32), "bias": np.float32(0)}, None, "kind None"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(policy, tmp_path, head, metadata, message):
    out = tmp_path / "damaged"
    reward_model.save(
        reward_model.with_head(tiny.model(), reward_model.RewardHead(32, nnx.Rngs(0))),
        "outcome",
        out,
        dataclasses.replace(hf.read_layout(policy), source=None),
    )
    arrays = {name: np.asarray(value) for name, value in head.items()}
    safetensors.numpy.save_file(arrays, out / reward_model.HEAD, metadata=metadata)
    with pytest.raises(InputError, match=message):
        reward_model.load(out)


def test_a_damaged_head_is_named(policy, tmp_path):
    (tmp_path / reward_model.HEAD).write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"reward_head\.safetensors is damaged"):
        reward_model.load(tmp_path)
