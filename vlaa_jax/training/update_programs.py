"""The programs of an update, as calls to come."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from vlaa_jax.ahead import Program, weights_of, whole
from vlaa_jax.sharding import TRAINING
from vlaa_jax.training.state import TrainState
from vlaa_jax.training.updates import Updater

Tree = TypeVar("Tree")


def update_program(updater: Updater, state: TrainState, batch: Tree, sizes: str) -> Program:
    """The gradient of a micro-batch, added to those before it."""
    return Program(f"update {sizes}", updater.add, (state, _total(updater, state, batch), batch))


def step_program(updater: Updater, state: TrainState, batch: Tree) -> Program:
    """The step of the optimizer; of the micro-batch only the kinds of metrics count."""
    denominator = whole(jax.ShapeDtypeStruct((), jnp.float32))
    return Program("step of the optimizer", updater.apply, (state, _total(updater, state, batch), denominator))


def _total(updater: Updater, state: TrainState, batch: Tree) -> Tree:
    total = jax.eval_shape(updater.zeros(state, batch))
    return dataclasses.replace(whole(total), gradient=weights_of(total.gradient, TRAINING))
