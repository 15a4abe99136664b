"""Gradients of a small model on four virtual CPU devices and on one: `python sharded.py FILE` writes them as .npz.

A process of its own, because the number of devices is fixed when jax starts.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from vlaa_jax.models.attention import SharedPrompt, splash_attention
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf
from vlaa_jax.objectives.grpo import GRPOObjective
from vlaa_jax.objectives.shared_prompt import SharedRows
from vlaa_jax.processing.batches import pad_prompts
from vlaa_jax.sharding import TRAINING, make_mesh, over_rows, parameter_shardings, place_rows, row_specs
from vlaa_jax.training.grpo import Groups, Policy, Scored, group_loss, take_groups
from vlaa_jax.training.state import create_state
from vlaa_jax.training.updates import Updater

MESHES = {
    "slice 2, fsdp 2": {"slices": 2, "fsdp": 2},
    "fsdp 4": {"fsdp": 4},
    "fsdp 2, tensor 2": {"fsdp": 2, "tensor": 2},
}
G, C = 2, 6
SIZES = dataclasses.replace(
    tiny.SIZES,
    text=dataclasses.replace(tiny.SIZES.text, query_heads=4, key_value_heads=2, mrope_section=(1, 1, 2)),
)


def batch() -> tuple[SharedRows, Scored, jax.Array]:
    """Four prompts, some with images, two completions each; unequal lengths."""
    generator = np.random.default_rng(0)
    prompts = [tiny.prompt(generator, parts) for parts in ([(1, 4, 6), 5], [9, (1, 2, 4)], [2, (1, 4, 4), 3], [6])]
    shape = (4, G, C)
    lengths = generator.integers(1, C, shape[:2])
    near = lambda: (-6.5 + 0.3 * generator.standard_normal(shape)).astype(np.float32)  # noqa: E731
    tokens = generator.integers(10, SIZES.text.vocabulary, shape).astype(np.int32)
    groups = Groups(pad_prompts(prompts, 16, 5), None, tokens, lengths.astype(np.int32))
    advantages = generator.standard_normal(shape[:2]).astype(np.float32)
    scored = Scored(near(), near(), advantages, np.arange(C) < lengths[..., None], None)
    return *take_groups(groups, scored, np.arange(4), length=32), np.float32(0.05)


def gradients(weights: Qwen2_5_VL) -> dict[str, np.ndarray]:
    """Loss and gradient of every parameter, the tower's too, by the updater's own program."""
    optimizer = optax.sgd(1.0)
    policy = Policy(temperature=0.8, dtype="float32", remat="attention", chunk=8)
    updater = Updater(functools.partial(group_loss, policy=policy, objective=GRPOObjective()), optimizer)
    total = updater.first(create_state(weights, optimizer, freeze_vision=False), place_rows(batch()))
    leaves = jax.tree_util.tree_leaves_with_path(total.gradient)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
    return named | {"loss": np.asarray(total.loss)}


def kernel_gradients() -> dict[str, np.ndarray]:
    """Gradients of the queries, keys and values through the interpreted TPU kernel."""
    generator = np.random.default_rng(1)
    arrays = [generator.standard_normal((4, 256, heads, 16)).astype(np.float32) for heads in (4, 2, 2)]
    part = 1 + np.searchsorted([100, 164], np.arange(256), side="right")
    mask = SharedPrompt(jnp.asarray(np.where(np.arange(4)[:, None] * 9 + np.arange(256) < 250, part, 0)))

    def of_own_rows(*arguments):
        attend = lambda q, k, v: jnp.sin(splash_attention(q, k, v, arguments[3], interpret=True)).sum()  # noqa: E731
        return jax.grad(attend, (0, 1, 2))(*arguments[:3])

    specs = (*row_specs(arrays), row_specs(mask))
    run = lambda *a: over_rows(of_own_rows, specs, specs[:3], split_weights=False)(*a)  # noqa: E731
    return dict(zip(("q", "k", "v"), map(np.asarray, jax.jit(run)(*place_rows(arrays), place_rows(mask))), strict=True))


def main() -> None:
    assert len(jax.devices()) == 4
    generator = np.random.default_rng(2)
    draw = lambda leaf: jnp.asarray(0.2 * generator.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    weights = jax.tree.map(draw, hf.abstract_model(SIZES))
    found = {"one": gradients(weights) | kernel_gradients()}
    for name, axes in MESHES.items():
        mesh = make_mesh(jax.devices(), key_value_heads=2, **axes)
        with jax.set_mesh(mesh):
            placed = jax.device_put(weights, parameter_shardings(weights, mesh, TRAINING))
            found[name] = gradients(placed)
            if "tensor" in axes:
                found[name] |= kernel_gradients()
    np.savez(sys.argv[1], **{f"{run}|{name}": leaf for run, leaves in found.items() for name, leaf in leaves.items()})


if __name__ == "__main__":
    main()
