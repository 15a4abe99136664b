"""A policy's own likelihood as a judge: the mean log-probability of each step's tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.evaluation.judges.model_judge import AT_ONCE, LONGEST_ROW, ModelJudge
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.shared_prompt import completion_log_probabilities, lay_out
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.solutions import Solutions
from vlaa_jax.processing.steps import cut_steps
from vlaa_jax.sharding import ROWS, TRAINING, P, over_rows, row_specs, specs

_CHUNK = 1024  # tokens whose logits exist at once


class LikelihoodJudge(ModelJudge):
    """Scores by a policy, asked as it is asked to answer: with the verifier's instruction, at temperature 1.

    Attributes:
      name, whole, problems: see `Judge`.
      model: the policy; in the training layout, on the chips, whenever the judge is called.
    """

    def __init__(
        self,
        model: Qwen2_5_VL,
        encoder: Encoder,
        *,
        name: str = "likelihood",
        dtype: jax.typing.DTypeLike | None = None,
        rows: int = AT_ONCE,
        longest: int = LONGEST_ROW,
    ):
        """Compiles nothing yet.

        Args:
          model: the policy, in the training layout.
          encoder, name, rows, longest: see `ModelJudge`.
          dtype: of the computation; by default that of the embedding.
        """
        super().__init__(encoder, name=name, whole=False, rows=rows, longest=longest)
        self.model = model
        self._dtype = jnp.dtype(dtype or model.language.embedding[...].dtype).name

    def shown(self, record: Record) -> Record:
        return record

    def written(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The text as it stands, with the end token: that of the last step."""
        tokens = [self._encoder.completion(step) for step in cut_steps(text)]
        tokens = [*(own[:-1] for own in tokens[:-1]), tokens[-1]]
        return np.concatenate(tokens), np.cumsum([len(own) for own in tokens], dtype=np.int32) - 1

    def program(self, batch: Solutions) -> jax.Array:
        return solution_log_probabilities(self.model, batch, dtype=self._dtype)

    def read(self, values: np.ndarray, ends: np.ndarray) -> np.ndarray:
        sums = np.cumsum(values)[ends]
        return np.diff(sums, prepend=0) / np.diff(ends, prepend=-1)


@functools.partial(jax.jit, static_argnames="dtype")
def solution_log_probabilities(model: Qwen2_5_VL, batch: Solutions, *, dtype: str) -> jax.Array:
    """`[B, G, C]` of every solution's tokens, over the mesh."""

    def of_own_rows(model: Qwen2_5_VL, batch: Solutions) -> jax.Array:
        features = model.vision(batch.prompts.vision, jnp.dtype(dtype))
        rows = lay_out(batch.prompts, None, batch.tokens, batch.lengths, batch.length)
        return completion_log_probabilities(
            model, rows, features, temperature=1.0, dtype=jnp.dtype(dtype), remat="layer", chunk=_CHUNK
        )[0]

    inputs = specs(model, TRAINING), row_specs(batch)
    return over_rows(of_own_rows, inputs, P(ROWS), split_weights=True)(model, batch)
