"""What segments, compaction and refill save where lengths have a long tail, against a loop for the longest row.

Random weights give nearly every token the same probability, so that end tokens that are one in so many make lengths
geometric.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, TextConfig, VisionConfig
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.processing.positions import mrope_positions
from vlaa_jax.processing.vision_plan import WindowGeometry, plan
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator, Rollout
from vlaa_jax.rollout.random_bits import SEARCH
from vlaa_jax.rollout.sampler import sampling_weights

SIZES = ModelConfig(
    text=TextConfig(
        vocabulary=151_936, width=512, layers=8, query_heads=8, key_value_heads=2, mlp_width=1376,
        mrope_section=(8, 12, 12),
    ),
    vision=VisionConfig(depth=1, width=32, heads=2, mlp_width=32, output_width=512, full_attention_layers=(0,)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LongTail:
    """Two ways to sample the same completions.

    Attributes:
      seconds, cpu_seconds: of each round, `plain` and `segments`; CPU seconds are those of this process.
      row_steps: rows times steps that ran.
      wasted: share of them.
      lengths: mean and longest.
      same: share of completions with the same tokens.
    """

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]
    row_steps: dict[str, int]
    wasted: dict[str, float]
    lengths: tuple[float, int]
    same: float

    @property
    def ratio(self) -> float:
        """Of the medians of the seconds: how often the segments are as fast."""
        return float(np.median(self.seconds["plain"]) / np.median(self.seconds["segments"]))


def measure(
    sizes: ModelConfig = SIZES,
    *,
    rounds: int = 5,
    prompts: int = 16,
    group: int = 8,
    prompt_tokens: int = 64,
    mean: int = 64,
    cap: int = 512,
) -> LongTail:
    """Alternating runs after one of each that compiles.

    Args:
      sizes: of the policy, float32.
      rounds: of both.
      prompts, group: B and G.
      prompt_tokens: P.
      mean, cap: of the lengths.
    """
    model = jax.jit(lambda: Qwen2_5_VL(sizes, nnx.Rngs(0)))()
    weights = sampling_weights(model, jnp.float32)
    rng = np.random.default_rng(0)
    encoded = [_text(rng, sizes, prompt_tokens) for _ in range(prompts)]
    ends = tuple(range(0, sizes.text.vocabulary, mean))
    plain = Generator(Sampling(1.0, end_tokens=ends), group, cap, (prompt_tokens,), (1,), 0, SEARCH, segment=cap)
    generators = {"plain": plain, "segments": dataclasses.replace(plain, segment=Generator.segment)}

    def run(name: str) -> Rollout:
        return jax.block_until_ready(generators[name](weights, encoded, range(prompts), (prompt_tokens, 1)))

    out = {name: run(name) for name in generators}
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in generators}
    for _ in range(rounds):
        for name in generators:
            began, cpu = time.perf_counter(), time.process_time()
            run(name)
            seconds[name].append(time.perf_counter() - began)
            cpu_seconds[name].append(time.process_time() - cpu)
    tokens = [np.asarray(out[name].completions.tokens) for name in generators]
    lengths = np.asarray(out["plain"].completions.lengths)
    return LongTail(
        seconds,
        cpu_seconds,
        {name: rollout.row_steps.ran for name, rollout in out.items()},
        {name: rollout.row_steps.wasted for name, rollout in out.items()},
        (float(lengths.mean()), int(lengths.max())),
        float((tokens[0] == tokens[1]).all(axis=-1).mean()),
    )


def _text(rng: np.random.Generator, sizes: ModelConfig, tokens: int) -> EncodedPrompt:
    """A prompt of random text."""
    no_image = np.zeros((0, sizes.vision.patch_values), np.float32)
    vision, _ = plan(no_image, [], WindowGeometry(sizes.vision.merge, sizes.vision.window_units))
    ids = rng.integers(10, min(sizes.text.vocabulary, 150_000), tokens).astype(np.int32)
    is_image = np.zeros(tokens, bool)
    return EncodedPrompt(ids, mrope_positions(is_image, [], merge=2), np.full(tokens, -1), vision, ())
