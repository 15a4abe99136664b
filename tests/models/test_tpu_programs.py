"""What the TPU compiler makes of a small model's forward and backward pass. Needs libtpu, and no TPU."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from jax.experimental import topologies
from jax.sharding import Mesh

from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.objectives.grpo import GRPOObjective
from vlaa_jax.objectives.shared_prompt import SharedRows
from vlaa_jax.processing.batches import Rows
from vlaa_jax.processing.vision_plan import VisionArrays
from vlaa_jax.sharding import TRAINING, make_mesh, parameter_shardings, row_shardings
from vlaa_jax.training.grpo import Policy, Scored, group_loss
from vlaa_jax.training.state import create_state
from vlaa_jax.training.updates import Updater

pytest.importorskip("libtpu")

# A row of the language model is 832 tokens, one of the tower 20 windows of 16 patches, 320: sizes of nothing else.
B, TOKENS, G, C, WINDOWS = 4, 832, 2, 64, 20
PATCHES = WINDOWS * tiny.SIZES.vision.window_slots


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return make_mesh(topologies.get_topology_desc("v5e:2x2", platform="tpu").devices, key_value_heads=1)


def compiled_gradient(mesh: Mesh, remat: str) -> str:
    """The text of the loss's gradient for a micro-batch, tower included and frozen."""
    array = jax.ShapeDtypeStruct
    slots, patch = tiny.SIZES.vision.window_slots, tiny.SIZES.vision.patch_values
    vision = VisionArrays(
        array((B, WINDOWS, slots, patch), jnp.float32),
        array((B, WINDOWS, slots), jnp.bool_),
        array((B, WINDOWS, slots, 2), jnp.int32),
        array((B, WINDOWS), jnp.int32),
    )
    tokens, numbers = array((B, TOKENS), jnp.int32), array((B, G, C), jnp.float32)
    rows = Rows(tokens, tokens, array((3, B, TOKENS), jnp.int32), tokens, vision)
    shared = SharedRows(rows, None, array((B, G, C), jnp.int32), array((B, G), jnp.int32))
    scored = Scored(numbers, numbers, array((B, G), jnp.float32), array((B, G, C), jnp.bool_), None)
    batch = (shared, scored, array((), jnp.float32))
    optimizer = optax.sgd(1.0)
    state = jax.eval_shape(lambda m: create_state(m, optimizer, freeze_vision=True), hf.abstract_model(tiny.SIZES))

    place = functools.partial(jax.tree.map, lambda leaf, where: array(leaf.shape, leaf.dtype, sharding=where))
    state = place(state, parameter_shardings(state, mesh, TRAINING))
    batch = place(batch, row_shardings(batch, mesh))
    loss = functools.partial(group_loss, policy=Policy(0.8, "bfloat16", remat, 64), objective=GRPOObjective())
    with jax.set_mesh(mesh):
        return jax.jit(Updater(loss, optimizer)._gradient).lower(state, batch).compile().as_text()


@pytest.mark.parametrize(
    "remat, kernels",
    [
        # The tower's full layer; forward, gradient of queries, gradient of keys and values; forward again.
        ("layer", 1 + 3 + 1),
        ("attention", 1 + 3),
    ],
)
def test_attention_runs_in_kernels_and_no_scores_are_stored(mesh, remat, kernels):
    text = compiled_gradient(mesh, remat)
    shapes = {tuple(map(int, shape.split(","))) for shape in re.findall(r"\w\[([\d,]+)\]", text)}
    assert any(TOKENS in shape for shape in shapes) and any(PATCHES in shape for shape in shapes)
    assert not [shape for shape in shapes if any(shape.count(size) > 1 for size in (TOKENS, PATCHES))]
    assert text.count('custom_call_target="tpu_custom_call"') == kernels
