"""The mesh, and where every array lies on it. No other file names a mesh axis.

Axes: `slice` (between the slices of a TPU pod, over the data-centre network), `fsdp` (inside a slice: rows of a batch,
and the weights and moments of training), `tensor` (attention heads and the hidden width of the MLP).

There are two layouts of weights. In *training* every matrix is split over `fsdp` and gathered layer by layer, in
compute dtype, while the layer runs. For the *rollout* it is whole on every chip but for `tensor`. Vectors (norms,
biases) are whole everywhere: together they are a ten-thousandth of the weights.
"""

import contextvars
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from vlaa_jax.errors import InputError

Tree = TypeVar("Tree")
Rules = Sequence[tuple[str, P]]

AXES = ("slice", "fsdp", "tensor")
ROWS = ("slice", "fsdp")  # what the rows of a batch are split over

# (pattern of the last parts of a parameter's path, axes of its last dimensions); the first match counts. Stacked
# parameters have a leading axis of layers, which is never split: a scan takes one layer after the other.
TRAINING: Rules = (
    (r"vision\.patch_embedding", P(None, "fsdp")),
    (r"vision\.blocks\.qkv", P("fsdp", None, None, None)),
    (r"vision\.blocks\.output", P(None, None, "fsdp")),
    (r"vision\.blocks\.(gate|up)", P("fsdp", None)),
    (r"vision\.blocks\.down", P(None, "fsdp")),
    (r"vision\.(blocks\.mlp|merger)_(in|out)", P("fsdp", None)),
    (r"language\.(embedding|untied_head)", P("tensor", "fsdp")),
    (r"layers\.(query|key|value)", P("fsdp", "tensor", None)),
    (r"layers\.output", P("tensor", None, "fsdp")),
    (r"layers\.(gate|up)", P("fsdp", "tensor")),
    (r"layers\.down", P("tensor", "fsdp")),
    (r"(bias|norm\d?|reward_head\.weight)", P()),
)
ROLLOUT: Rules = tuple((pattern, P(*(None if axis == "fsdp" else axis for axis in spec))) for pattern, spec in TRAINING)


def make_mesh(
    devices: Sequence[jax.Device], *, slices: int = 1, fsdp: int = -1, tensor: int = 1, key_value_heads: int
) -> Mesh:
    """The mesh of a run.

    Args:
      devices: all of them, of all processes.
      slices: TPU slices.
      fsdp: chips of a slice that share the weights; -1 for as many as there are.
      tensor: chips that share one copy of the rollout weights.
      key_value_heads: of the policy, K.

    Raises:
      InputError: the axes do not multiply to the number of devices, or `tensor` does not divide K.
    """
    count = len(devices)
    if tensor < 1 or key_value_heads % tensor or count % tensor:
        fitting = _divisors(math.gcd(key_value_heads, count))
        raise InputError(
            f"config.mesh.tensor is {tensor}: expected a divisor of the policy's {key_value_heads} key/value heads and "
            f"of the {count} devices, nearest {_nearest(tensor, fitting)}"
        )
    if slices < 1 or count // tensor % slices:
        raise InputError(
            f"config.mesh.slices is {slices}: expected a divisor of {count // tensor} ({count} devices, tensor "
            f"{tensor}), nearest {_nearest(slices, _divisors(count // tensor))}"
        )
    rest = count // (slices * tensor)
    if fsdp not in (-1, rest):
        raise InputError(
            f"config.mesh.fsdp is {fsdp}: expected {rest} ({count} devices, slices {slices}, tensor {tensor}) or -1"
        )
    ordered = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0) or 0, device.id))
    shape = (slices, rest, tensor)
    if slices == 1 and ordered[0].platform == "tpu":
        grid = jax.experimental.mesh_utils.create_device_mesh(shape, ordered)
    else:
        grid = np.asarray(ordered).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _nearest(wanted: int, fitting: Sequence[int]) -> int:
    return min(fitting, key=lambda size: (abs(size - wanted), size))


def row_shards() -> int:
    """Parts that the rows of a batch are dealt to."""
    mesh = jax.sharding.get_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ROWS)


def evenly(count: int) -> int:
    """The smallest number of rows, at least `count`, that the chips share evenly."""
    shards = row_shards()
    return -(-count // shards) * shards


def parameter_shardings(tree: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """Where each leaf of a tree of parameters lies: a model, its moments, its gradients.

    Scalars (counts of updates) and vectors are whole everywhere.

    Args:
      tree: arrays or their shapes; its paths end in the names of `models`.
      mesh: of the run.
      rules: `TRAINING` or `ROLLOUT`.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec(_name("", path), leaf.ndim, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def _name(path: str, place: tuple) -> str:
    """Path of a leaf in the model, of a tree that stands there at `path`."""
    return ".".join(filter(None, (path, jax.tree_util.keystr(place, simple=True, separator="."))))


def _spec(path: str, dimensions: int, rules: Rules) -> P:
    if dimensions == 0:
        return P()
    # The leaves of an unstacked layer are named layers.7.query.
    path = re.sub(r"layers\.\d+\.", "layers.", path)
    for pattern, spec in rules:
        if re.search(rf"(^|\.|_){pattern}(\.value)?$", path):
            return P(*(None,) * (dimensions - len(spec)), *spec) if len(spec) else P()
    raise ValueError(f"no sharding rule matches parameter {path}")


def row_shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Where the arrays of a batch lie: rows are dealt to all chips; positions count their rows on the second axis."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _row_spec(path, leaf.ndim))

    return jax.tree_util.tree_map_with_path(place, tree)


def _row_spec(path: tuple, dimensions: int) -> P:
    if dimensions == 0:
        return P()
    return P(*(None,) * row_axis(path), ROWS)


def row_axis(path: tuple) -> int:
    """Which axis of an array of a batch counts its rows."""
    return 1 if jax.tree_util.keystr(path[-1:], simple=True) == "positions" else 0


# From the host. Without a mesh (`jax.set_mesh`) arrays go to the default device.


def place_parameter(path: str, array: np.ndarray) -> jax.Array:
    """Puts one weight, named by its path in the model, where training wants it. All processes have the whole of it."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(array)
    sharding = NamedSharding(mesh, _spec(path, array.ndim, TRAINING))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def own_rows(count: int) -> np.ndarray:
    """Places, rising, of the rows of a batch of `count` that the chips of this process hold; each process has some."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return np.arange(count)
    places = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in places]))


def place_rows(tree: Tree) -> Tree:
    """Puts the arrays of a batch; every process gives its own rows (`own_rows`)."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(tree)
    return jax.make_array_from_process_local_data(row_shardings(tree, mesh), tree)


def row_sharding() -> Sharding:
    """Where an array of a batch lies, whose rows are first."""
    mesh = jax.sharding.get_mesh()
    return SingleDeviceSharding(jax.devices()[0]) if mesh.empty else NamedSharding(mesh, P(ROWS))


def fetch_rows(array: jax.Array) -> np.ndarray:
    """The rows of a batch's array that this process holds (`own_rows`)."""
    own = own_rows(len(array))
    out = np.empty((len(own), *array.shape[1:]), array.dtype)
    for shard in array.addressable_shards:
        start = np.searchsorted(own, shard.index[0].start or 0)
        out[(slice(start, start + len(shard.data)), *shard.index[1:])] = shard.data
    return out


def fetch_all(tree: Tree) -> Tree:
    """Small arrays of a batch, all of their rows on every process."""
    if jax.process_count() > 1:
        tree = _copy_to_all(jax.sharding.get_mesh())(tree)
    return jax.tree.map(np.asarray, tree)


@functools.cache
def _copy_to_all(mesh: Mesh) -> Callable[[Tree], Tree]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))


def meet(mesh: Mesh) -> None:
    """A first tiny collective over every set of axes that programs use.

    The processes connect there: while they compile they drift apart by more than a first connection waits.
    """
    for axes in (*AXES, ROWS, AXES):
        jax.block_until_ready(
            jax.jit(jax.shard_map(lambda axes=axes: jax.lax.psum(1.0, axes), mesh=mesh, in_specs=(), out_specs=P()))()
        )


def move(tree: Tree, memory: str) -> Tree:
    """Puts arrays into a kind of memory, `device` or `pinned_host`, laid out as they are."""

    def put(leaf: jax.Array) -> jax.Array:
        # One that is there stays what it is: put again it would be bound to its device, and a program that reads it
        # would be another one.
        there = leaf.sharding.memory_kind == memory
        return leaf if there else jax.device_put(leaf, leaf.sharding.with_memory_kind(memory))

    return jax.tree.map(put, tree)


def chunks_of_rows(count: int, size: int) -> list[np.ndarray]:
    """Rows `[0, count)` in chunks of `size`: each chip's part of a chunk is one of its rows of the whole.

    So `join_rows` moves nothing between chips.

    Raises:
      ValueError: `size` does not divide `count`, or the chips do not divide `size`.
    """
    shards = row_shards()
    if count % size or size % shards:
        raise ValueError(f"{count} rows in chunks of {size} on {shards} chips")
    return list(np.arange(count).reshape(shards, count // size, size // shards).swapaxes(0, 1).reshape(-1, size))


@jax.jit
def join_rows(chunks: Sequence[Tree]) -> Tree:
    """The batch whose `chunks_of_rows` these are."""
    outputs = row_specs(chunks[0])

    def join(*parts: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(lambda path, *leaves: jnp.concatenate(leaves, row_axis(path)), *parts)

    return over_rows(join, (outputs,) * len(chunks), outputs, split_weights=False)(*chunks)


@functools.partial(jax.jit, donate_argnums=0)
def replace_rows(batch: Tree, other: Tree, source: jax.Array) -> Tree:
    """A batch of B rows in which rows of another one stand in some places.

    Args:
      batch: is used up.
      other: of any number of rows.
      source: `[B]` rows of `other`; -1 where the batch's own row stays.
    """

    def replace(path: tuple, old: jax.Array, new: jax.Array) -> jax.Array:
        axis = row_axis(path)
        stays = jnp.expand_dims(source < 0, [i for i in range(old.ndim) if i != axis])
        return jnp.where(stays, old, jnp.take(new, source, axis=axis))

    return keep_rows(jax.tree_util.tree_map_with_path(replace, batch, other))


# Inside the programs. Without a mesh in context (`jax.set_mesh`) these do nothing.
#
# A pass of the model runs on every chip's own rows (`over_rows`): each chip is told what to fetch and what to add up,
# and no compiler has to guess it. Only `tensor` is left to the compiler.


def over_rows(function: Callable[..., Any], inputs: Sequence[Any], outputs: Any, *, split_weights: bool) -> Callable:
    """Runs a function on every chip's own rows.

    Args:
      function: of trees.
      inputs: for each argument its specs (`specs`, `row_specs`, or one `P()` for what all chips hold whole).
      outputs: those of the result.
      split_weights: whether weights come in the training layout; the model then gathers each where it is used.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function

    def run(*arguments: Any) -> Any:
        token = _SPLIT_WEIGHTS.set(split_weights)
        try:
            return function(*arguments)
        finally:
            _SPLIT_WEIGHTS.reset(token)

    # What is summed is said in the functions below; the check of it does not know our kernels.
    return jax.shard_map(run, in_specs=tuple(inputs), out_specs=outputs, axis_names=set(ROWS), check_vma=False)


_SPLIT_WEIGHTS: contextvars.ContextVar[bool] = contextvars.ContextVar("split_weights", default=False)


def specs(tree: Tree, rules: Rules, path: str = "") -> Tree:
    """Of parameters, for `over_rows`: its own axes alone; `path` is that of `tree` in the model."""
    if jax.sharding.get_abstract_mesh().empty:
        return P()

    def own(place: tuple, leaf: Any) -> P:
        return P(*(axis if axis in ROWS else None for axis in _spec(_name(path, place), leaf.ndim, rules)))

    return jax.tree_util.tree_map_with_path(own, tree)


def row_specs(tree: Tree) -> Tree:
    """Of a batch, for `over_rows`; scalars are whole."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _row_spec(path, leaf.ndim), tree)


def take_rows(tree: Tree, places: jax.Array) -> Tree:
    """Some rows of a batch; inside `over_rows`, of a chip's own."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.take(leaf, places, row_axis(path)), tree)


def gather(weights: Tree, dtype: jax.typing.DTypeLike, path: str) -> Tree:
    """Weights that are about to be multiplied with, in compute dtype and whole but for `tensor`.

    The cast comes first, so that half the bytes travel. The gradient is summed over the chips and split again on its
    way back. Vectors are whole already and keep their dtype.

    Args:
      weights: one layer, without the stacked axis, or other parameters.
      dtype: compute dtype.
      path: of `weights` in the model, for the rules.
    """
    if not _SPLIT_WEIGHTS.get():
        return weights

    def fetch(place: tuple, leaf: jax.Array) -> jax.Array:
        spec = _spec(_name(path, place), leaf.ndim, TRAINING)
        if "fsdp" not in spec:
            return leaf
        return jax.lax.all_gather(leaf.astype(dtype), "fsdp", axis=spec.index("fsdp"), tiled=True)

    return jax.tree_util.tree_map_with_path(fetch, weights)


def look_up(embedding: jax.Array, indices: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Rows `[B, T, D]` of an embedding `[V, D]` for `[B, T]` indices.

    A split embedding is not gathered: every chip looks up its columns for the rows of all, then columns are exchanged
    for rows.
    """
    if not _SPLIT_WEIGHTS.get():
        return embedding.astype(dtype)[indices]
    found = embedding.astype(dtype)[jax.lax.all_gather(indices, "fsdp", axis=0, tiled=True)]
    return jax.lax.all_to_all(found, "fsdp", split_axis=0, concat_axis=2, tiled=True)


def sum_gradients(gradients: Tree) -> Tree:
    """Gradients of the chips' own rows, added up; `gather` has summed what it splits over `fsdp`."""

    def add(path: tuple, leaf: jax.Array) -> jax.Array:
        spec = _spec(_name("", path), leaf.ndim, TRAINING)
        return jax.lax.psum(leaf, ("slice",) if "fsdp" in spec else ROWS)

    return jax.tree_util.tree_map_with_path(add, gradients) if _by_chip() else gradients


def sum_rows(x: jax.Array) -> jax.Array:
    """Sums of the chips' own rows, added up."""
    return jax.lax.psum(x, ROWS) if _by_chip() else x


def max_rows(x: jax.Array) -> jax.Array:
    return jax.lax.pmax(x, ROWS) if _by_chip() else x


def _by_chip() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def keep_parameters(tree: Tree, rules: Rules, path: str = "") -> Tree:
    """Results of a program that are weights, gradients or moments lie as the rules say."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree

    def keep(place: tuple, leaf: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(leaf, _spec(_name(path, place), leaf.ndim, rules))

    return jax.tree_util.tree_map_with_path(keep, tree)


def keep_rows(tree: Tree) -> Tree:
    """Results of a program that belong to a batch stay with its rows."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(leaf, _row_spec(path, leaf.ndim)), tree
    )


def cache_shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Where keys and values `[rows, K, T, H]` lie; other arrays of a batch as `row_shardings`."""
    by_heads = NamedSharding(mesh, P(ROWS, "tensor"))
    place = lambda leaf, rows: by_heads if leaf.ndim == 4 else rows  # noqa: E731
    return jax.tree.map(place, tree, row_shardings(tree, mesh))


def keep_caches(tree: Tree) -> Tree:
    """Inside `over_rows`: keys and values `[rows, K, T, H]` stay with the chips of their heads."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    keep = lambda leaf: jax.lax.with_sharding_constraint(leaf, P(None, "tensor")) if leaf.ndim == 4 else leaf  # noqa: E731
    return jax.tree.map(keep, tree)


def platform() -> str:
    """What the program being traced will run on: `tpu`, `gpu` or `cpu`."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def over_heads(function: Callable[..., jax.Array], axis: int) -> Callable[..., jax.Array]:
    """Runs a kernel on every chip's own heads, inside `over_rows` or without a mesh.

    Args:
      function: of arrays of which those with more than `axis` axes have heads there, and so its result.
      axis: of the heads.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function

    def run(*arrays: jax.Array) -> jax.Array:
        by_heads = P(*(None,) * axis, "tensor")
        inputs = tuple(by_heads if array.ndim > axis else P() for array in arrays)
        return jax.shard_map(function, in_specs=inputs, out_specs=by_heads, axis_names={"tensor"}, check_vma=False)(
            *arrays
        )

    return run
