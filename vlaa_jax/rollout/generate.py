"""From encoded prompts to completions: bucketed shapes around the jitted sampler."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.processing.batches import Rows, bucket, pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.random_bits import split_draws
from vlaa_jax.rollout.sampler import Completions, SamplingWeights, decode, encode_images, prefill
from vlaa_jax.sharding import chunks_of_rows, join_rows, own_rows, place_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """What a batch of prompts gave.

    Attributes:
      rows: `[B, P]` the prompts as they ran; of a frozen tower without patches.
      features: `[B, slots, D]` of a frozen tower: they serve reference and update too. None of one that trains.
      completions: `[B, G, C]`.
    """

    rows: Rows
    features: jax.Array | None
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
      batch: prompts that run at once; 0 for all. It divides the prompts of a call where these are more.
      frozen_vision: whether a rollout keeps features in place of patches.
    """

    sampling: Sampling
    group: int
    new_tokens: int
    prompt_buckets: tuple[int, ...]
    window_buckets: tuple[int, ...]
    seed: int
    stream: int
    batch: int = 0
    frozen_vision: bool = True

    def shape(self, lengths: Sequence[int], windows: Sequence[int]) -> tuple[int, int]:
        """(P, W) of the program that prompts of these lengths and numbers of windows need."""
        length = bucket(int(max(lengths)), self.prompt_buckets, "a prompt's length")
        return length, bucket(int(max(windows)), self.window_buckets, "a prompt's window count")

    def __call__(
        self,
        weights: SamplingWeights,
        prompts: Sequence[EncodedPrompt],
        draws: Sequence[int],
        shape: tuple[int, int] | None = None,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Rollout:
        """Samples G completions of each of B prompts.

        Args:
          weights: the policy.
          prompts: those of this process's rows (`sharding.own_rows`).
          draws: `[B]` numbers that name their random bits.
          shape: (P, W) for all B of them; by default for `prompts`, where these are all.
          check_stop: called before every chunk of prompts; it may raise.
        """
        if shape is None:
            shape = self.shape([len(p.tokens) for p in prompts], [len(p.vision.frames) for p in prompts])
        return join([part for _, part in self.chunks(weights, prompts, draws, shape, check_stop)])

    def chunks(
        self,
        weights: SamplingWeights,
        prompts: Sequence[EncodedPrompt],
        draws: Sequence[int],
        shape: tuple[int, int],
        check_stop: Callable[[], None],
    ) -> Iterator[tuple[np.ndarray, Rollout]]:
        """What a call does, chunk by chunk; `join` makes one rollout of them. Arguments as those of a call.

        Yields:
          `[b]` places of a chunk's prompts among the B, and their rollout, which has only been started: the chunk
          before is finished then, and its completions may be looked at while the chips work.
        """
        draws, own = np.asarray(draws), own_rows(len(draws))
        part = None
        for rows in chunks_of_rows(len(draws), self.batch or len(draws)):
            mine = rows[own_rows(len(rows))]
            chunk = pad_prompts([prompts[place] for place in np.searchsorted(own, mine)], *shape)
            jax.block_until_ready(part)  # the caches of two chunks need not fit at once
            check_stop()
            part = self._sample(weights, chunk, draws[mine])
            yield rows, part

    def _sample(self, weights: SamplingWeights, rows: Rows, draws: np.ndarray) -> Rollout:
        rows = place_rows(rows)
        features = encode_images(weights, rows.vision)
        text = dataclasses.replace(rows, vision=None)
        if self.frozen_vision:
            rows = text  # the patches have served
        completions = decode(
            weights,
            prefill(weights, text, features),
            jnp.uint32(self.seed),
            jnp.uint32(self.stream),
            place_rows(split_draws(draws)),
            group=self.group,
            new_tokens=self.new_tokens,
            sampling=self.sampling,
        )
        return Rollout(rows, features if self.frozen_vision else None, completions)


def join(chunks: Sequence[Rollout]) -> Rollout:
    """All chunks of a call in one."""
    return chunks[0] if len(chunks) == 1 else join_rows(chunks)
