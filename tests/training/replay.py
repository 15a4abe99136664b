"""`resumable.py` that keeps what a run sampled, or goes by what another run sampled; `test_processes.py` starts it.

REPLAY is a folder. A run that finds no `rollout-1.npz` there writes its rollouts, one a step, and `gradient.npz`, that
of its first update before clipping. Else its steps learn from those rollouts; what it samples itself in step 1, and its
gradient, go into the folder REPLAY_OWN.
"""

import dataclasses
import os
import pathlib
import runpy

import jax
import numpy as np

from vlaa_jax.rollout.decode import Completions
from vlaa_jax.rollout.generate import Ended, Generator
from vlaa_jax.rollout.random_bits import TRAINING
from vlaa_jax.sharding import fetch_all, fetch_rows, own_rows, place_rows
from vlaa_jax.training.updates import Updater

_NAMES = ("tokens", "lengths", "ended", "log_probability", "sampled_log_probability")


def save(path: pathlib.Path, arrays: dict[str, jax.Array]) -> None:
    whole = fetch_all(arrays)
    if jax.process_index() == 0:
        np.savez(path, **whole)


def install(source: pathlib.Path, own: pathlib.Path | None) -> None:
    """Wraps sampler and update."""
    start, begin, steps = Generator.start, Updater.__init__, 0

    def replayed(self, *args):
        run = start(self, *args)
        return run if self.stream != TRAINING else Replayed(run)

    class Replayed:
        """A run whose groups all end at once, after it."""

        def __init__(self, run):
            self._run = run

        def __iter__(self):
            for _ in self._run:
                pass
            self.rollout = replace(self._run.rollout)
            found = self.rollout.completions
            yield Ended(own_rows(len(found.tokens)), *map(fetch_rows, (found.tokens, found.lengths, found.ended)))

    def replace(rollout):
        nonlocal steps
        steps += 1
        arrays = {name: getattr(rollout.completions, name) for name in _NAMES}
        if own is None:
            save(source / f"rollout-{steps}.npz", arrays)
            return rollout
        if steps == 1:
            save(own / "rollout-1.npz", arrays)
        with np.load(source / f"rollout-{steps}.npz") as stored:
            rows = own_rows(len(stored["tokens"]))
            completions = Completions(**{name: place_rows(stored[name][rows]) for name in _NAMES})
        return dataclasses.replace(rollout, completions=completions)

    def begin_and_spy(self, *args, **fields):
        begin(self, *args, **fields)
        step = self.apply

        def spy(state, total, denominator):
            self.apply = step
            leaves = jax.tree_util.tree_leaves_with_path(total.gradient)
            gradient = {jax.tree_util.keystr(path): leaf / denominator for path, leaf in leaves}
            save((own or source) / "gradient.npz", gradient)
            return step(state, total, denominator)

        spy.lower = step.lower  # it is compiled ahead
        self.apply = spy

    Generator.start, Updater.__init__ = replayed, begin_and_spy


if __name__ == "__main__":
    source = pathlib.Path(os.environ["REPLAY"])
    install(source, pathlib.Path(os.environ["REPLAY_OWN"]) if (source / "rollout-1.npz").exists() else None)
    runpy.run_path(str(pathlib.Path(__file__).with_name("resumable.py")), run_name="__main__")
