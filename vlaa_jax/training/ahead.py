"""Programs that are compiled before the first step, several at once, from the shapes of their arguments.

A jitted function that is called with arrays of the same shapes and layouts finds what `lower(...).compile()` made.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from vlaa_jax.processing.batches import pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.sharding import TRAINING, P, Rules, parameter_shardings, row_shardings
from vlaa_jax.training.state import TrainState
from vlaa_jax.training.updates import Updater

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Program:
    """A call that is to come.

    Attributes:
      name: what it does and at which sizes.
      function: jitted.
      arguments: arrays, or shapes with the layouts that the arrays will have.
      static: its static arguments.
    """

    name: str
    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]
    static: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def compile_ahead(
    programs: Sequence[Program], say: Callable[[str], None], check_stop: Callable[[], None] = lambda: None
) -> None:
    """Compiles all of them, or reads them from the persistent cache.

    Args:
      programs: in the order in which to begin.
      say: shows a line.
      check_stop: called after every program; it may raise, and what has not begun is left then.
    """
    mesh = jax.sharding.get_mesh()

    def compile(program: Program) -> float:
        began = time.perf_counter()
        with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh):  # threads begin without
            program.function.lower(*program.arguments, **program.static).compile()
        return time.perf_counter() - began

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        names = {pool.submit(compile, program): program.name for program in programs}
        try:
            for number, done in enumerate(as_completed(names), 1):
                say(f"program {number} of {len(programs)} is ready: {names[done]} ({done.result():.1f} s)")
                check_stop()
        finally:
            pool.shutdown(cancel_futures=True)


# Shapes of arguments, with the layouts that the arrays will have. Without a mesh none: such arrays are not bound to a
# device.


def rows_of(tree: Tree) -> Tree:
    """Of the arrays of a batch, as `place_rows` and programs of rows leave them."""
    mesh = jax.sharding.get_mesh()
    return _shapes(tree, None if mesh.empty else row_shardings(tree, mesh))


def weights_of(tree: Tree, rules: Rules) -> Tree:
    """Of weights or their gradients in a layout."""
    mesh = jax.sharding.get_mesh()
    return _shapes(tree, None if mesh.empty else parameter_shardings(tree, mesh, rules))


def whole(tree: Tree) -> Tree:
    """Of numbers that programs leave, the same on every chip."""
    mesh = jax.sharding.get_mesh()
    everywhere = jax.sharding.NamedSharding(mesh, P()) if not mesh.empty else None
    return _shapes(tree, None if mesh.empty else jax.tree.map(lambda _: everywhere, tree))


def on_device(tree: Tree) -> Tree:
    """Of arrays that may wait in the host's memory."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind("device") if leaf.committed else None
        ),
        tree,
    )


def _shapes(tree: Tree, shardings: Tree | None) -> Tree:
    def shape(leaf: Any, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype), sharding=sharding)

    return jax.tree.map(shape, tree) if shardings is None else jax.tree.map(shape, tree, shardings)


def prompt_rows(nothing: EncodedPrompt, count: int, length: int, windows: int) -> Tree:
    """Shapes of `count` prompts that are padded to P = `length` and W = `windows`; `nothing` is one without tokens."""
    one = pad_prompts([nothing], length, windows)
    longer = lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
    rows = jax.tree.map(longer, one)
    positions = jax.ShapeDtypeStruct((3, count, length), one.positions.dtype)
    return rows_of(dataclasses.replace(rows, positions=positions))


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
