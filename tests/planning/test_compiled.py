"""The counters on real programs, compiled for TPUs on a host without one."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from vlaa_jax import sharding
from vlaa_jax.models import splash
from vlaa_jax.models.attention import Causal, attention
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, TextConfig
from vlaa_jax.objectives.log_probabilities import token_log_probabilities
from vlaa_jax.planning.chips import open_topology, read_topology
from vlaa_jax.planning.cost import Cost, cost
from vlaa_jax.planning.hlo import Program, parse
from vlaa_jax.planning.notes import notes
from vlaa_jax.training.state import create_state
from vlaa_jax.training.updates import Updater

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="extra `plan` is not installed")

TEXT = TextConfig(
    vocabulary=2048, width=512, layers=3, query_heads=4, key_value_heads=2, mlp_width=1536, mrope_section=(16, 24, 24)
)
T = 1024
D, H, F, V, L = 512, 128, 1536, 2048, 3
LAYER = D * 4 * H + 2 * D * 2 * H + 4 * H * D + 3 * D * F  # weights of its products
HEAD = V * D


def visited_by_causal_row(length: int) -> tuple[int, int]:
    """Blocks that hold a visible pair, and their side, which the kernel chooses."""
    side = splash._block(("causal",), length)
    visible = np.tril(np.ones((-(-length // side) * side,) * 2, bool))
    starts = range(0, len(visible), side)
    return sum(bool(visible[i : i + side, j : j + side].any()) for i in starts for j in starts), side


BLOCKS, SIDE = visited_by_causal_row(T)
BLOCK = 2 * SIDE**2 * H * 4  # one product of attention in one block, all heads


@dataclasses.dataclass
class Compiled:
    program: Program
    cost: Cost


@functools.cache
def gradient(topology: str, remat: str) -> Compiled:
    """Gradient of one text row of 1,024 tokens a chip, weights split over `fsdp`."""
    chips = read_topology(topology)
    mesh = sharding.make_mesh(open_topology(chips).devices, slices=chips.slices, key_value_heads=2)
    sizes = dataclasses.replace(tiny.SIZES, text=TEXT)
    optimizer = optax.sgd(1e-3)

    def loss(model: Qwen2_5_VL, rows: dict) -> tuple[jax.Array, dict]:
        x = model.embed(rows["tokens"], None, None, jnp.bfloat16)
        states = model.language(x, rows["positions"], Causal(rows["segments"]), remat)
        log_probability, _ = token_log_probabilities(states, model.language.head[...], rows["tokens"], chunk=512)
        return -jnp.sum(log_probability), {}

    def place(tree, where):
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, where)

    model = jax.eval_shape(lambda: Qwen2_5_VL(sizes, nnx.Rngs(0)))
    state = jax.eval_shape(lambda model: create_state(model, optimizer, freeze_vision=True), model)
    state = place(state, sharding.parameter_shardings(state, mesh, sharding.TRAINING))
    integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    rows = {name: integers(chips.chips, T) for name in ("tokens", "segments")}
    rows["positions"] = integers(3, chips.chips, T)
    rows = place(rows, sharding.row_shardings(rows, mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(Updater(loss, optimizer)._gradient).lower(state, rows).compile()
    program = parse(compiled.as_text())
    return Compiled(program, cost(program, chips, mesh))


def test_without_rematerialization_a_text_model_takes_6nd():
    found = gradient("v5e:2x2", "none").cost
    # Attention: two products forward; four back, and three that the kernels make again.
    expected = 6 * (L * LAYER + HEAD) * T + 6 * L * BLOCKS * BLOCK
    assert found.unrepeated_flops == pytest.approx(expected, rel=0.03)
    again = 2 * HEAD * T + 3 * L * BLOCKS * BLOCK
    assert found.flops == pytest.approx(expected + again, rel=0.03)


def test_rematerialized_layers_take_8nd():
    found, plain = gradient("v5e:2x2", "layer").cost, gradient("v5e:2x2", "none").cost
    # The last product of a layer is not made again: nothing behind it in the layer needs its result.
    expected = (8 * L * LAYER - 2 * L * D * F + 8 * HEAD) * T + 11 * L * BLOCKS * BLOCK
    assert found.flops == pytest.approx(expected, rel=0.03)
    assert found.unrepeated_flops == pytest.approx(plain.unrepeated_flops, rel=0.01)


def test_layers_gather_their_weights_once_a_pass_in_bfloat16():
    found = gradient("v5e:2x2", "layer").cost.collectives
    gathered = 2 * (2 * L * LAYER + HEAD) * 3 / 4  # forward and again in the backward pass; the head once
    # Besides, the tokens of all rows for the look-up.
    assert found["all-gather"]["bytes"] == pytest.approx(gathered + 4 * 4 * T * 3 / 4, rel=0.03)
    assert not any("float32" in note for note in notes(gradient("v5e:2x2", "layer").program))


def test_only_gradients_cross_slices():
    one, two = gradient("v5e:2x2", "layer"), gradient("2xv5e:2x2", "layer")
    assert {kind for kind in two.cost.collectives if "slices" in kind} == {"all-reduce between slices"}
    # Each chip sends its part of the float32 gradient; the vectors and the loss are small.
    part = 4 * (L * LAYER + HEAD) / 4
    assert two.cost.collectives["all-reduce between slices"]["bytes"] == pytest.approx(part, rel=0.03)
    gathered = [found.cost.collectives["all-gather"]["bytes"] for found in (one, two)]
    assert gathered[1] == pytest.approx(gathered[0], rel=0.01)


def compile_on_one_chip(function, *arguments: jax.ShapeDtypeStruct) -> Compiled:
    chips = read_topology("v5e:1x1")
    mesh = sharding.make_mesh(open_topology(chips).devices, key_value_heads=2)
    whole = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in arguments]
    with jax.set_mesh(mesh):
        program = parse(jax.jit(function).lower(*arguments).compile().as_text())
    return Compiled(program, cost(program, chips, mesh))


def bfloat16(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


@pytest.mark.parametrize(
    "equation, left, right, flops",
    [
        ("wqnh,wsnh->wnqs", (40, 64, 16, 80), (40, 64, 16, 80), 2 * 40 * 16 * 64 * 64 * 80),  # windows of the tower
        ("bkgqh,bksh->bkgqs", (8, 2, 8, 16, 128), (8, 2, 512, 128), 2 * 8 * 2 * 8 * 16 * 512 * 128),  # decode, prefix
        ("td,dnh->tnh", (4096, 2048), (2048, 16, 128), 2 * 4096 * 2048 * 16 * 128),
    ],
)
def test_batched_products(equation, left, right, flops):
    product = functools.partial(jnp.einsum, equation, preferred_element_type=jnp.float32)
    assert compile_on_one_chip(product, bfloat16(*left), bfloat16(*right)).cost.flops == flops


def test_scan_of_layers_counts_each():
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    found = compile_on_one_chip(layers, bfloat16(256, 512), bfloat16(7, 512, 512))
    assert found.cost.flops == 7 * 2 * 256 * 512 * 512
    # Every layer's weights are read once, and not the whole stack.
    assert found.cost.hbm_traffic_bytes == pytest.approx(2 * 7 * 512 * 512, rel=0.2)


def test_loop_that_may_end_early():
    def decode(x, w):
        def step(carry):
            i, x, _ = carry
            x = x @ w
            return i + 1, x, x[:, 0] > 1

        return jax.lax.while_loop(lambda carry: (carry[0] < 48) & ~jnp.all(carry[2]), step, (0, x, x[:, 0] > 1))[1]

    found = compile_on_one_chip(decode, bfloat16(64, 512), bfloat16(512, 512))
    (loop,) = found.program.loops
    assert (loop.trips, loop.ends_early) == (48, True)
    assert found.cost.flops == 48 * 2 * 64 * 512 * 512


def test_attention_counts_the_blocks_that_its_mask_shows():
    length, heads, width = 1536, 4, 128

    def attend(*arrays):
        run = lambda q, k, v, segments: attention(q, k, v, Causal(segments))  # noqa: E731
        by_row = sharding.row_specs(arrays)
        return sharding.over_rows(run, by_row, by_row[0], split_weights=False)(*arrays)

    row = bfloat16(2, length, heads, width)
    found = compile_on_one_chip(attend, row, row, row, jax.ShapeDtypeStruct((2, length), jnp.int32))
    (scope,) = {
        part
        for _, one, _ in found.program.scheduled()
        for part in one.part.split("/")
        if part.startswith("visited_blocks") and one.opcode == "custom-call"
    }
    blocks, side = visited_by_causal_row(length)
    assert blocks > 1
    assert scope == f"visited_blocks_{blocks}_{blocks}_{blocks}"
    assert found.cost.flops == 2 * 2 * blocks * side**2 * width * heads * 2
