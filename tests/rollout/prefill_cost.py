"""What keeping the questions of a search saves: `python tests/rollout/prefill_cost.py [--sizes=demo|cpu]`.

A round of a search prefills the partial solutions of all its questions. That is measured behind kept questions and as
whole prompts with their images, without any decoding. Seconds are of all cores together, so that others on the machine
count little.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_prep.digit_scenes import demo
from vlaa_jax.benchmark.presets import PRESETS
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL
from vlaa_jax.models.qwen2_5_vl.config import read_config
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.processing.positions import mrope_positions
from vlaa_jax.processing.vision_plan import WindowGeometry, plan
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.sampler import sampling_weights

ROUNDS = 6  # of a search


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Questions of one picture, text before and behind it, and mean and bound of a partial solution's tokens."""

    model: ModelConfig
    questions: int
    image: tuple[int, int]
    text: int
    partial: tuple[int, int]


def all_sizes() -> dict[str, Sizes]:
    cpu = PRESETS["cpu"]
    return {
        "demo": Sizes(read_config(demo.SHIPPED_POLICY), 64, (140, 168), 60, (50, 128)),
        "cpu": Sizes(cpu.model, 16, (cpu.image, cpu.image), cpu.text, (64, 128)),
    }


def question(sizes: Sizes, generator: np.random.Generator) -> EncodedPrompt:
    vision = sizes.model.vision
    grid = (1, sizes.image[0] // vision.patch, sizes.image[1] // vision.patch)
    image = [sizes.model.image_token] * (grid[1] * grid[2] // vision.merge**2)
    tokens = np.asarray([*[1] * (sizes.text // 2), *image, *[2] * (sizes.text - sizes.text // 2)], np.int32)
    is_image = tokens == sizes.model.image_token
    patches = generator.standard_normal((grid[1] * grid[2], vision.patch_values)).astype(np.float32)
    arrays, slots = plan(patches, [grid], WindowGeometry(vision.merge, vision.window_units))
    index = np.full(len(tokens), -1, np.int32)
    index[is_image] = slots
    return EncodedPrompt(tokens, mrope_positions(is_image, [grid], merge=vision.merge), index, arrays, ())


def behind(prompt: EncodedPrompt, tokens: np.ndarray) -> EncodedPrompt:
    """The whole prompt."""
    after = np.broadcast_to(prompt.positions.max() + 1 + np.arange(len(tokens)), (3, len(tokens)))
    return dataclasses.replace(
        prompt,
        tokens=np.concatenate([prompt.tokens, tokens]).astype(np.int32),
        positions=np.concatenate([prompt.positions, after], 1).astype(np.int32),
        feature_index=np.concatenate([prompt.feature_index, np.full(len(tokens), -1)]).astype(np.int32),
    )


def core_seconds(function: Callable[[], object], times: int = 5) -> float:
    """The least of a few runs, after one that compiles."""
    jax.block_until_ready(function())
    found = []
    for _ in range(times):
        began = time.process_time()
        jax.block_until_ready(function())
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=("demo", "cpu"), default="demo")
    sizes = all_sizes()[parser.parse_args().sizes]
    rng = np.random.default_rng(0)
    weights = sampling_weights(jax.jit(lambda: Qwen2_5_VL(sizes.model, nnx.Rngs(0)))(), jnp.float32)
    questions = [question(sizes, rng) for _ in range(sizes.questions)]
    mean, length = sizes.partial
    partial = [rng.integers(10, 500, min(rng.poisson(mean), length)) for _ in questions]
    generator = Generator(Sampling(1.0), 4, 1, (), (), seed=0, stream=2)
    draws, shape = range(len(questions)), (len(questions[0].tokens), len(questions[0].vision.frames))
    whole = [behind(*pair) for pair in zip(questions, partial, strict=True)]
    kept = generator.keep(weights, questions, len(questions), shape)
    begin = core_seconds(lambda: generator.keep(weights, questions, len(questions), shape))
    each = core_seconds(lambda: generator.go_on(weights, kept, partial, draws, length)[0])
    again = core_seconds(lambda: generator(weights, whole, draws, (shape[0] + length, shape[1])).completions)
    print(f"{len(questions)} questions of {shape[0]} tokens, {shape[1]} windows; partial solutions of {mean} tokens")
    print(f"whole prompts: {again:.2f} s a round; kept: {begin:.2f} s once and {each:.2f} s a round (of all cores)")
    print(f"{ROUNDS} rounds: {ROUNDS * again:.1f} s against {begin + ROUNDS * each:.1f} s,", end=" ")
    print(f"{ROUNDS * again / (begin + ROUNDS * each):.1f} times as much")


if __name__ == "__main__":
    main()
