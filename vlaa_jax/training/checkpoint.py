"""Orbax checkpoints of a run: asynchronous, latest and best kept, nothing saved is ever lost to a failed save.

A checkpoint holds the trainable weights, the optimizer's state and a few exact numbers (KL coefficient, prompts drawn).
Frozen weights are those of the start checkpoint and are not written again.
"""

import contextlib
import copy
import logging
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.sharding import row_sharding
from vlaa_jax.storage import is_remote, outage
from vlaa_jax.training.state import TrainState

_BEST = "evaluation_reward"
# The storage library reports what the system says (disk full, file too large, ...) as a ValueError with this mark.
_SYSTEM_ERROR = "os_error_code"
_REFUSED = ("PERMISSION_DENIED", "Forbidden")  # how the clients of a bucket begin
_WAITING = "waiting."  # how the names of arrays begin that are no part of the state
_PARTIAL = ocp.options.PyTreeOptions.Loading(partial_load=True)


class Checkpoints:
    """The `checkpoints` folder of a run, one sub-folder a step."""

    def __init__(self, directory: epath.Path | pathlib.Path, *, keep: int):
        """Opens or makes the folder.

        Args:
          directory: local or in a bucket.
          keep: newest checkpoints that stay; the best by evaluation reward stays beside them.
        """
        logging.getLogger("absl").addFilter(_is_news)
        if is_remote(directory):
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tracebacks of what `_guard` says in a sentence
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda metrics: metrics[_BEST], n=1, keep_checkpoints_without_metrics=False)
        self._checkpointer = ocp.training.Checkpointer(
            directory if is_remote(directory) else directory.absolute(),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        self._directory = directory
        self._missed: _NotReached | None = None

    @property
    def best(self) -> int | None:
        """Step of the best complete checkpoint by evaluation reward; the newest where none was measured."""
        measured = [info for info in self._checkpointer.checkpoints if info.metrics]
        return max(measured, key=lambda info: info.metrics[_BEST]).step if measured else self.latest

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(
        self,
        step: int,
        state: TrainState,
        numbers: dict[str, Any],
        evaluation_reward: float | None,
        waiting: Mapping[str, jax.Array] | None = None,
    ) -> None:
        """Starts to save; returns when the arrays have been copied. The file system works on in the background.

        A bucket that cannot be reached costs this checkpoint, not the run: the next one is tried again, and the last
        one that failed is raised by `wait`.

        Args:
          step: steps done.
          state: its trainable part, optimizer and update count are saved.
          numbers: JSON values that resume exactly.
          evaluation_reward: of this state, if it was measured.
          waiting: arrays of a batch that a later step needs.
        """
        # The caller goes on counting in its own dict while this one waits to be written.
        numbers = copy.deepcopy(numbers)
        metrics = None if evaluation_reward is None else {_BEST: evaluation_reward}

        def start() -> None:
            arrays = _flatten(state) | {f"{_WAITING}{name}": array for name, array in (waiting or {}).items()}
            self._checkpointer.save_async(step, arrays, custom_metadata=numbers, metrics=metrics, force=True)

        for action in (self._checkpointer.wait, start):
            try:
                self._guard(action)
                self._missed = None
            except _NotReached as error:
                self._missed = error
                tqdm.write(f"warning: {error}; the run goes on to its next checkpoint", file=sys.stderr)

    def restore(self, state: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Loads a checkpoint into the shapes, dtypes and shardings of `state`.

        Args:
          state: a fresh state of the same config.
          step: which one; None takes the newest.

        Raises:
          InputError: it holds other arrays than this config's state.
        """
        step = self.latest if step is None else step
        wanted = _flatten(state)
        found = {name: tuple(leaf.shape) for name, leaf in self._arrays(step).items() if not _waits(name)}
        expected = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
        if found != expected:
            odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))[0]
            raise InputError(
                f"checkpoint {self._directory}/{step}: {odd} is {found.get(odd)} there, "
                f"{expected.get(odd)} by the config"
            )
        arrays = self._load(step, jax.tree.map(_abstract, wanted))
        arrays = {name: array if wanted[name].committed else _unbound(array) for name, array in arrays.items()}
        return _unflatten(state, arrays), dict(self._checkpointer.metadata(step).custom_metadata)

    def restore_weights(self, trainable: Qwen2_5_VL, step: int) -> Qwen2_5_VL:
        """Loads the trainable weights alone, as export and evaluation want them.

        Args:
          trainable: shapes, dtypes and shardings; None where frozen.
          step: which checkpoint.
        """
        leaves = jax.tree_util.tree_leaves_with_path(trainable)
        wanted = {f"weights{_name(path)}": _abstract(leaf) for path, leaf in leaves}
        arrays = self._load(step, wanted)
        return jax.tree.unflatten(jax.tree.structure(trainable), [arrays[name] for name in wanted])

    def restore_waiting(self, step: int) -> dict[str, jax.Array]:
        """Loads the arrays that were saved as `waiting`, their rows dealt to the present chips."""
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=row_sharding())
            for name, leaf in self._arrays(step).items()
            if _waits(name)
        }
        return (
            {name.removeprefix(_WAITING): array for name, array in self._load(step, wanted).items()} if wanted else {}
        )

    def _arrays(self, step: int) -> Mapping[str, Any]:
        """Names of a checkpoint's arrays with their shapes and dtypes."""
        return self._checkpointer.metadata(step).metadata

    def _load(self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """All arrays of a checkpoint, or some."""
        some = ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=_PARTIAL))
        with contextlib.nullcontext() if wanted.keys() == self._arrays(step).keys() else some:
            return self._checkpointer.load(step, wanted)

    def wait(self) -> None:
        """Until what was begun is on disk."""
        self._guard(self._checkpointer.wait)
        if self._missed is not None:
            raise self._missed

    def close(self) -> None:
        self._guard(self._checkpointer.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finishes a save in progress, whatever ended the run."""
        # A failed save was raised before, or matters less than what is being raised now.
        with contextlib.suppress(InputError) if kind else contextlib.nullcontext():
            self.close()

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            text = f"saving to {self._directory} failed ({{}}); earlier checkpoints are untouched"
            if outage(error):
                raise _NotReached(text.format(outage(error))) from None
            refused = str(error).startswith(_REFUSED)
            if not isinstance(error, OSError) and not refused and _SYSTEM_ERROR not in str(error):
                raise
            for partial in self._directory.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(partial, ignore_errors=True)  # none in a bucket, where a last file marks the whole ones
            raise InputError(text.format("access was refused (403)" if refused else _reason(error))) from None


class _NotReached(InputError):
    """The bucket could not be reached for a while."""


def _reason(error: Exception) -> str:
    """The system's words: `No space left on device`."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return re.sub(r"\s*\[.*", "", str(error).rpartition(": ")[2], flags=re.DOTALL)


def _is_news(record: logging.LogRecord) -> bool:
    """False for a failed write: Orbax logs it with a traceback from every thread it passes; `_guard` says it once."""
    error = (record.exc_info or (None,) * 3)[1]
    return not outage(error) and all(_SYSTEM_ERROR not in text for text in (record.getMessage(), str(error)))


def _waits(name: str) -> bool:
    return name.startswith(_WAITING)


def _saved(state: TrainState) -> tuple:
    return state.trainable, state.optimizer, state.updates


def _flatten(state: TrainState) -> dict[str, jax.Array]:
    """Path -> array, so that a checkpoint can be read without our classes."""
    leaves = jax.tree_util.tree_leaves_with_path(_saved(state))
    return {f"{('weights', 'optimizer', 'updates')[path[0].idx]}{_name(path[1:])}": leaf for path, leaf in leaves}


def _unflatten(state: TrainState, arrays: dict[str, jax.Array]) -> TrainState:
    structure = jax.tree.structure(_saved(state))
    trainable, optimizer, updates = jax.tree.unflatten(structure, [arrays[name] for name in _flatten(state)])
    return TrainState(trainable, state.frozen, optimizer, updates)


def _unbound(array: jax.Array) -> jax.Array:
    """One that is bound to its device makes other programs of all it reaches than those of a fresh start."""
    return jnp.array(np.asarray(array))


def _name(path: tuple) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    return f".{name}" if name else ""


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
