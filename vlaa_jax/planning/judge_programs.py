"""The judges of a GRPO run that are models on its chips, compiled as `programs` compiles the rest of a step.

A rubric judge asks elsewhere, and a class of one's own is not known here: neither is planned.
"""

import dataclasses

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vlaa_jax.ahead import Program, weights_of
from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.likelihood import solution_log_probabilities
from vlaa_jax.evaluation.judges.model_judge import AT_ONCE, LONGEST_ROW
from vlaa_jax.evaluation.judges.open import check_judge
from vlaa_jax.evaluation.judges.rows import largest_shape
from vlaa_jax.evaluation.judges.spec import HEADS, LIKELIHOOD, read_spec
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, hf
from vlaa_jax.models.qwen2_5_vl.config import preset
from vlaa_jax.models.qwen2_5_vl.config import read_config as read_sizes
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.objectives.step_scores import score_steps
from vlaa_jax.planning.shapes import solutions_shapes
from vlaa_jax.processing.solutions import Solutions, SolutionShape
from vlaa_jax.sharding import TRAINING, evenly
from vlaa_jax.training.batch_sizes import longest_prompt, most_windows

_STEPS = 32  # of a completion: nobody knows before, and they weigh nothing


@dataclasses.dataclass(frozen=True)
class PlannedJudge:
    """A judge at the largest batch that it is given.

    Attributes:
      sizes: of its model.
      kind: of `judges.spec`.
      dtype: of the weights as they are stored, and of the computation.
      weights: shapes with layouts.
      rows: B.
      shape: of the rows.
    """

    sizes: ModelConfig
    kind: str
    dtype: np.dtype
    weights: Qwen2_5_VL
    rows: int
    shape: SolutionShape

    @property
    def batch(self) -> Solutions:
        return solutions_shapes(self.sizes, self.rows, self.shape)

    @property
    def program(self) -> Program:
        function = solution_log_probabilities if self.kind == LIKELIHOOD else score_steps
        return Program("", function, (self.weights, self.batch), {"dtype": self.dtype.name})


def planned_judge(config: ConfigDict, field: str) -> PlannedJudge | None:
    """The judge that `config.rewards.scorer` or `.process` names; None where it is no model on the chips.

    Args:
      config: of the run.
      field: `scorer` or `process`.

    Raises:
      InputError: the name of its model is neither a directory nor that of a preset; as `check_judge`.
    """
    name = config.rewards[field]
    if not is_planned(name):
        return None
    kind, place = read_spec(name)
    sizes, dtype = _model(name, place)
    shape = largest_shape(
        longest_prompt(config),
        most_windows(config),
        config.rollout.group_size,
        config.rollout.new_tokens,
        _STEPS,
        longest=LONGEST_ROW,
    )
    return PlannedJudge(sizes, kind, dtype, _weights(sizes, dtype, kind), evenly(AT_ONCE), shape)


def is_planned(judge: str) -> bool:
    """Whether a judge is a model on the chips of the run, by its name."""
    return judge.partition(":")[0] in (*HEADS, LIKELIHOOD)


def _model(name: str, place: str) -> tuple[ModelConfig, np.dtype]:
    """Sizes and the dtype of the weights: of a directory, else of a preset."""
    folder = hf.local_folder(place)
    if folder.is_dir():
        check_judge(name, policy=False)
        stored = hf.read_layout(folder).tensors.values()
        return read_sizes(folder), next(iter(stored)).dtype
    try:
        return preset(place), np.dtype(ml_dtypes.bfloat16)
    except InputError as error:
        raise InputError(f"judge {name!r}: {place} is no directory, and {error}") from None


def _weights(sizes: ModelConfig, dtype: np.dtype, kind: str) -> Qwen2_5_VL:
    architecture = Qwen2_5_VL if kind == LIKELIHOOD else RewardModel
    model = jax.eval_shape(lambda: architecture(sizes, nnx.Rngs(0)))
    stored = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype)  # noqa: E731
    model.vision, model.language = jax.tree.map(stored, (model.vision, model.language))  # a head is float32
    return weights_of(model, TRAINING)
