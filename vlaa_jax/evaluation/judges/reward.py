"""A reward model as a judge."""

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.evaluation.judges.model_judge import AT_ONCE, LONGEST_ROW, ModelJudge
from vlaa_jax.models.reward_model import Kind, RewardModel
from vlaa_jax.objectives.step_scores import score_steps
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.solutions import Solutions, question_of
from vlaa_jax.processing.steps import split_steps


class RewardJudge(ModelJudge):
    """Scores by a head: every step with a process model, the end alone with an outcome model.

    Attributes:
      name, whole, problems: see `Judge`.
      model: backbone and head; in the training layout, on the chips, whenever the judge is called.
      kind: what it was trained on.
    """

    def __init__(
        self,
        model: RewardModel,
        kind: Kind,
        encoder: Encoder,
        *,
        name: str = "",
        dtype: jax.typing.DTypeLike | None = None,
        rows: int = AT_ONCE,
        longest: int = LONGEST_ROW,
        logits: bool = False,
    ):
        """Compiles nothing yet.

        Args:
          model, kind: see the attributes.
          encoder, rows, longest: see `ModelJudge`.
          name: `kind` by default.
          dtype: of the computation; by default that of the embedding.
          logits: are given in place of their sigmoids.
        """
        super().__init__(encoder, name=name or kind, whole=kind == "outcome", rows=rows, longest=longest)
        self.model, self.kind = model, kind
        self._dtype = jnp.dtype(dtype or model.language.embedding[...].dtype).name
        self._logits = logits

    def shown(self, record: Record) -> Record:
        return question_of(record)

    def written(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self._encoder.solution(split_steps(text))

    def program(self, batch: Solutions) -> jax.Array:
        return score_steps(self.model, batch, dtype=self._dtype)

    def read(self, values: np.ndarray, ends: np.ndarray) -> np.ndarray:
        steps = len(ends)
        logits = values[steps - 1 : steps] if self.whole else values[:steps]
        return logits if self._logits else 1 / (1 + np.exp(-logits))
