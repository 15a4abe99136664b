"""What training changes: trainable weights, optimizer state, number of updates."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.sharding import TRAINING, keep_parameters

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One policy in training.

    Attributes:
      trainable: the model with None in place of every frozen weight.
      frozen: the model with None in place of every trainable weight.
      optimizer: optax state of the trainable weights alone.
      updates: optimizer updates done so far.
    """

    trainable: Qwen2_5_VL
    frozen: Qwen2_5_VL
    optimizer: optax.OptState
    updates: jax.Array

    @property
    def model(self) -> Qwen2_5_VL:
        return combine(self.trainable, self.frozen)


def create_state(
    model: Qwen2_5_VL,
    optimizer: optax.GradientTransformation,
    *,
    freeze_vision: bool,
    moments_on_host: bool = False,
) -> TrainState:
    """A fresh state; a frozen vision tower gets no moments."""
    trainable, frozen = partition(model, freeze_vision=freeze_vision)

    @jax.jit
    def create(weights: Qwen2_5_VL) -> tuple[optax.OptState, jax.Array]:
        moments, updates = keep_parameters((optimizer.init(weights), jnp.zeros((), jnp.int32)), TRAINING)
        return to_host(moments) if moments_on_host else moments, updates

    return TrainState(trainable, frozen, *create(trainable))


def to_host(moments: optax.OptState) -> optax.OptState:
    """Inside a program: moments that it leaves in the host's memory; counts of updates stay on the chip."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Host) if leaf.ndim else leaf, moments)


def partition(model: Tree, *, freeze_vision: bool) -> tuple[Tree, Tree]:
    """Splits a model into a trainable and a frozen tree of the same structure, None where the other has the weight.

    A reward model does not use its word head: one that is not tied to the embedding is frozen, and has no moments.
    """

    def is_frozen(path: tuple) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        unused = isinstance(model, RewardModel) and name.startswith("language.untied_head")
        return unused or (freeze_vision and name.startswith("vision."))

    def keep(frozen: bool) -> Tree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if is_frozen(path) == frozen else None, model)

    return keep(False), keep(True)


def combine(trainable: Tree, frozen: Tree) -> Tree:
    """The inverse of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None)
