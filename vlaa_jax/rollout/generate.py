"""From encoded prompts to completions: bucketed shapes around the jitted sampler."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vlaa_jax.processing.batches import Rows, bucket, pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.random_bits import split_draws
from vlaa_jax.rollout.sampler import Completions, Prefix, SamplingWeights, decode, prefill


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What a batch of prompts gave.

    Attributes:
      rows: `[B, P]` the prompts as they ran.
      prefix: caches and vision features.
      completions: `[B, G, C]`.
    """

    rows: Rows
    prefix: Prefix
    completions: Completions


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples groups at a fixed list of shapes.

    Attributes:
      sampling: the distribution.
      group: G.
      new_tokens: C, bound on a completion's length.
      prompt_buckets: lengths P that programs are compiled for.
      window_buckets: numbers of windows W likewise.
      seed: of the run.
      stream: `random_bits.TRAINING`, ...
    """

    sampling: Sampling
    group: int
    new_tokens: int
    prompt_buckets: tuple[int, ...]
    window_buckets: tuple[int, ...]
    seed: int
    stream: int

    def shape(self, prompts: Sequence[EncodedPrompt]) -> tuple[int, int]:
        """(P, W) of the program that these prompts need."""
        length = bucket(max(len(p.tokens) for p in prompts), self.prompt_buckets, "a prompt's length")
        windows = bucket(max(len(p.vision.frames) for p in prompts), self.window_buckets, "a prompt's window count")
        return length, windows

    def __call__(self, weights: SamplingWeights, prompts: Sequence[EncodedPrompt], draws: Sequence[int]) -> Rollout:
        """Samples G completions of each prompt.

        Args:
          weights: the policy.
          prompts: B of them.
          draws: `[B]` numbers that name their random bits.
        """
        rows = pad_prompts(prompts, *self.shape(prompts))
        prefix = prefill(weights, rows)
        completions = decode(
            weights,
            prefix,
            jnp.uint32(self.seed),
            jnp.uint32(self.stream),
            jnp.asarray(split_draws(np.asarray(draws))),
            group=self.group,
            new_tokens=self.new_tokens,
            sampling=self.sampling,
        )
        return Rollout(rows, prefix, completions)
