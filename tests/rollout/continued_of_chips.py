"""Sampling behind kept questions on several virtual CPU devices and on one: `... continued_of_chips.py FILE`, .npz.

A process of its own, because the number of devices is fixed when jax starts.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx
from rollout_of_chips import COMPILED, SIZES

from vlaa_jax.ahead import compiling, distinct, resized
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.batches import pad_prompts
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.programs import ContinuedPrograms, weights_shapes
from vlaa_jax.rollout.sampler import sampling_weights
from vlaa_jax.sharding import TRAINING, make_mesh, parameter_shardings


def continued(model: Qwen2_5_VL) -> dict[str, np.ndarray]:
    """Eight questions of two partial solutions each, two completions of each of these."""
    rng = np.random.default_rng(0)
    questions = [tiny.prompt(rng, [5, (1, 4, 4), n % 5 + 1]) for n in range(8)]
    partial = [rng.integers(50, 640, n % 7) for n in range(16)]
    generator = Generator(Sampling(3.0, end_tokens=tuple(range(10, 50))), 2, 16, (), (), seed=3, stream=2, segment=5)
    rows = resized(pad_prompts(questions[:1], 16, 4), 8)
    ahead = distinct(ContinuedPrograms(generator, weights_shapes(model, jnp.float32), rows, 2, 8).all())
    with compiling(ahead, lambda line: None) as programs:
        programs.wait()
    names, compiled = {program.function.__name__ for program in ahead}, []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, fun_name="", **__: compiled.append(fun_name[4:-1]) if event == COMPILED else None
    )
    weights = sampling_weights(model, jnp.float32)
    kept = generator.keep(weights, questions, 8, (16, 4))
    out, row_steps = generator.go_on(weights, kept, partial, range(16), 8)
    found = {name: np.asarray(getattr(out, name)) for name in ("tokens", "lengths", "ended", "log_probability")}
    again = [name for name in compiled if name in names]
    return found | {"row_steps": row_steps.ran, "ahead": len(ahead), "again": len(again)}


def main() -> None:
    assert len(jax.devices()) == 4
    model = jax.jit(lambda: Qwen2_5_VL(SIZES, nnx.Rngs(0)))()
    model = jax.tree.map(lambda leaf: leaf * 1.5 if leaf.ndim > 2 else leaf, model)
    found = {"one": continued(model)}
    mesh = make_mesh(jax.devices(), key_value_heads=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        found["four"] = continued(jax.device_put(model, parameter_shardings(model, mesh, TRAINING)))
    np.savez(sys.argv[1], **{f"{run}|{name}": leaf for run, leaves in found.items() for name, leaf in leaves.items()})


if __name__ == "__main__":
    main()
