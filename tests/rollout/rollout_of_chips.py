"""A rollout on several virtual CPU devices and on one: `python rollout_of_chips.py FILE` writes them as .npz.

A process of its own, because the number of devices is fixed when jax starts.
"""

import dataclasses
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

from vlaa_jax.ahead import compiling, distinct, resized
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.batches import pad_prompts
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.programs import RolloutPrograms, weights_shapes
from vlaa_jax.rollout.sampler import sampling_weights
from vlaa_jax.sharding import TRAINING, make_mesh, parameter_shardings

SIZES = dataclasses.replace(
    tiny.SIZES,
    text=dataclasses.replace(tiny.SIZES.text, query_heads=4, key_value_heads=2, mrope_section=(1, 1, 2)),
)
COMPILED = "/jax/core/compile/backend_compile_duration"
MESHES = {"fsdp 4": {"fsdp": 4}, "tensor 2": {"fsdp": 1, "tensor": 2}}


def rollout(model: Qwen2_5_VL, **changes: int) -> dict[str, np.ndarray]:
    """32 prompts of four completions, one record among them twice; one token in sixteen ends a completion."""
    rng = np.random.default_rng(0)
    prompts = [tiny.prompt(rng, [5, (1, 4, 4), n % 5 + 1]) for n in range(31)]
    prompts += prompts[:1]
    sampling = Sampling(3.0, end_tokens=tuple(range(10, 50)))
    generator = Generator(sampling, 4, 40, (), (), seed=3, stream=0, **changes)
    some = resized(pad_prompts(prompts[:1], 16, 4), generator.batch or 32)
    described = RolloutPrograms(generator, weights_shapes(model, jnp.float32), some, 32)
    ahead = distinct(described.all()) if generator.batch else []  # one chip that waits for its rows needs few
    with compiling(ahead, lambda line: None) as programs:
        programs.wait()
    names = {program.function.__name__ for program in ahead}
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, fun_name="", **__: compiled.append(fun_name[4:-1]) if event == COMPILED else None
    )
    out = generator(sampling_weights(model, jnp.float32), prompts, range(32), (16, 4))
    found = {field.name: getattr(out.completions, field.name) for field in dataclasses.fields(out.completions)}
    found |= {"features": out.features, "texts": out.rows.tokens, "positions": out.rows.positions}
    jax.block_until_ready(found)
    again = [name for name in compiled if name in names]
    numbers = {"row_steps": out.row_steps.ran, "ahead": len(ahead), "again": len(again)}
    return {name: np.asarray(leaf) for name, leaf in found.items()} | numbers


def main() -> None:
    assert len(jax.devices()) == 4
    model = jax.jit(lambda: Qwen2_5_VL(SIZES, nnx.Rngs(0)))()
    model = jax.tree.map(lambda leaf: leaf * 1.5 if leaf.ndim > 2 else leaf, model)
    found = {"one": rollout(model, segment=40)}
    for name, axes in MESHES.items():
        mesh = make_mesh(jax.devices()[: math.prod(axes.values())], key_value_heads=2, **axes)
        with jax.set_mesh(mesh):
            placed = jax.device_put(model, parameter_shardings(model, mesh, TRAINING))
            found[name] = rollout(placed, segment=5, batch=16)
    np.savez(sys.argv[1], **{f"{run}|{name}": leaf for run, leaves in found.items() for name, leaf in leaves.items()})


if __name__ == "__main__":
    main()
