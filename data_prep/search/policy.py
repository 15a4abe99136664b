"""Our own policy under search: the jitted sampler behind what each question left behind, which is run once a tree."""

import functools
from collections.abc import Sequence

import numpy as np

from data_prep.search.rounds import Completion, Start
from vlaa_jax.processing.batches import bucket
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.images import Resize
from vlaa_jax.processing.records import Record
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.sampler import SamplingWeights
from vlaa_jax.sharding import fetch_all

_REMEMBERED = 65_536  # steps


class SamplerPolicy:
    """A `rounds.Policy`.

    The tower and the prompt of a question run when its tree begins; a round runs the tokens of the partial solutions
    behind the keys and values that are kept. Each step becomes tokens by itself, so a partial solution has the same
    tokens in every tree that holds it.
    """

    def __init__(
        self,
        generator: Generator,
        weights: SamplingWeights,
        encoder: Encoder,
        *,
        questions: int,
        process_buckets: Sequence[int],
    ):
        """Runs nothing yet.

        Args:
          generator: the distribution and the shapes; its group is the rollouts of a start.
          weights: the policy.
          encoder: its tokenizer, image rule and conversation.
          questions: Q of every program; fewer are filled up.
          process_buckets: tokens of a partial solution that programs are compiled for.
        """
        self._generator, self._weights, self._encoder = generator, weights, encoder
        self._questions, self._buckets = questions, tuple(process_buckets)
        self._step_tokens = functools.lru_cache(_REMEMBERED)(lambda step: tuple(encoder.tokenizer.encode(step)))
        self._kept, self._begun = None, 0

    def begin(self, records: Sequence[Record]) -> list[Sequence[Resize]]:
        """See `Policy.begin`."""
        self._kept = None  # the memory is for the next ones
        prompts = [self._encoder.encode(record) for record in records]
        lengths = [len(prompt.tokens) for prompt in prompts]
        shape = self._generator.shape(lengths, [len(prompt.vision.frames) for prompt in prompts])
        filled = prompts + prompts[:1] * (self._questions - len(prompts))
        self._kept = self._generator.keep(self._weights, filled, self._questions, shape)
        self._begun = len(prompts)
        return [prompt.resizes for prompt in prompts]

    def fits(self, texts: Sequence[str]) -> bool:
        """See `Policy.fits`."""
        return len(self._tokens(texts)) <= max(self._buckets)

    def sample(self, starts: Sequence[Start]) -> list[list[Completion]]:
        """See `Policy.sample`."""
        each = len(starts) // self._begun
        filled = [*starts, *list(starts[:each]) * (self._questions - self._begun)]
        partial = [self._tokens(start.texts) for start in filled]
        length = bucket(max(map(len, partial)), self._buckets, "a partial solution's length")
        draws = [start.draw for start in filled]
        found, _ = self._generator.go_on(self._weights, self._kept, partial, draws, length)
        tokens, lengths, ended = fetch_all((found.tokens, found.lengths, found.ended))
        return [
            [
                Completion(self._encoder.tokenizer.decode(row[:count].tolist()), int(count), not end)
                for row, count, end in zip(tokens[place], lengths[place], ended[place], strict=True)
            ]
            for place in range(len(starts))
        ]

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray([token for step in texts for token in self._step_tokens(step)], np.int32)
