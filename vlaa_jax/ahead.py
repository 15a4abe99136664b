"""Programs that are compiled before they are called, several at once, from the shapes of their arguments.

A jitted function that is called with arrays of the same shapes and layouts finds what `lower(...).compile()` made.
"""

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import jax

from vlaa_jax.sharding import P, Rules, cache_shardings, parameter_shardings, row_axis, row_shardings

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

    def results(self) -> Any:
        """Shapes of what it gives, without layouts."""
        return jax.eval_shape(lambda *arguments: self.function(*arguments, **self.static), *self.arguments)


def distinct(programs: Iterable[Program]) -> list[Program]:
    """Each once: not every program depends on every bucket."""

    def key(program: Program) -> tuple:
        leaves, structure = jax.tree.flatten(program.arguments)
        described = tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
        return program.function, structure, described, tuple(sorted(program.static.items()))

    return list({key(program): program for program in programs}.values())


class Compiling:
    """Programs that are being compiled, or read from the persistent cache, by threads."""

    def __init__(self, pool: ThreadPoolExecutor, programs: Sequence[Program], say: Callable[[str], None]):
        """Begins, in the order of `programs`."""
        mesh, numbers = jax.sharding.get_mesh(), itertools.count(1)

        def compile(program: Program) -> None:
            began = time.perf_counter()
            with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh):  # threads begin without
                program.function.lower(*program.arguments, **program.static).compile()
            seconds = time.perf_counter() - began
            say(f"program {next(numbers)} of {len(programs)} is ready: {program.name} ({seconds:.1f} s)")

        self._begun = [pool.submit(compile, program) for program in programs]

    def wait(self, check_stop: Callable[[], None] = lambda: None) -> None:
        """Until all are ready; `check_stop` is called after every program and may raise."""
        for done in as_completed(self._begun):
            done.result()
            check_stop()


@contextlib.contextmanager
def compiling(programs: Sequence[Program], say: Callable[[str], None]) -> Iterator[Compiling]:
    """Compiles programs beside the block; what has not begun when it ends is left.

    Args:
      programs: in the order in which to begin.
      say: shows a line; called from other threads.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            yield Compiling(pool, programs, say)
        finally:
            pool.shutdown(cancel_futures=True)


# Shapes of arguments, with the layouts that the arrays will have. Without a mesh none: such arrays are not bound to a
# device.


def rows_of(tree: Tree) -> Tree:
    """Of the arrays of a batch, as `place_rows` and programs of rows leave them."""
    mesh = jax.sharding.get_mesh()
    return _shapes(tree, None if mesh.empty else row_shardings(tree, mesh))


def caches_of(tree: Tree) -> Tree:
    """Of the arrays of a batch with keys and values among them, as `keep_caches` leaves them."""
    mesh = jax.sharding.get_mesh()
    return _shapes(tree, None if mesh.empty else cache_shardings(tree, mesh))


def weights_of(tree: Tree, rules: Rules) -> Tree:
    """Of weights or their gradients in a layout."""
    mesh = jax.sharding.get_mesh()
    return _shapes(tree, None if mesh.empty else parameter_shardings(tree, mesh, rules))


def whole(tree: Tree) -> Tree:
    """Of arrays that are the same on every chip."""
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


def resized(rows: Tree, count: int) -> Tree:
    """Of a batch with `count` rows in place of those it has."""

    def shape(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sizes = list(leaf.shape)
        sizes[row_axis(path)] = count
        return jax.ShapeDtypeStruct(tuple(sizes), leaf.dtype)

    return rows_of(jax.tree_util.tree_map_with_path(shape, rows))


def _shapes(tree: Tree, shardings: Tree | None) -> Tree:
    def shape(leaf: Any, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype), sharding=sharding)

    return jax.tree.map(shape, tree) if shardings is None else jax.tree.map(shape, tree, shardings)
