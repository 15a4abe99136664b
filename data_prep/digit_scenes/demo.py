"""Finds or makes what the demo presets name: shards, the shipped policy, the untrained one."""

import contextlib
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from data_prep.digit_scenes import builder
from data_prep.digit_scenes.policy import write_untrained_policy
from vlaa_jax.errors import InputError
from vlaa_jax.processing.index import cache_folder

SHIPPED_POLICY = pathlib.Path(__file__).parent / "demo_policy"
SCORER = "data_prep.digit_scenes.facts:FactScorer"
_SEED = 0  # of shards and untrained weights: another seed of a run means other draws, not other data


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy of the config with the demo's names replaced by paths; what is missing is built in the cache folder."""
    config = ConfigDict(config)
    with config.unlocked():
        for field in ("train", "evaluation"):
            config.data[field] = data(config.data[field])
        config.model.checkpoint = checkpoint(config.model.checkpoint)
    return config


def data(location: str) -> str:
    """`demo:SPLIT` as `DIRECTORY:SPLIT`; any other location as it is.

    Raises:
      InputError: the demo has no such split.
    """
    name, _, split = location.partition(":")
    if name != "demo":
        return location
    if split not in builder.SPLITS:
        raise InputError(f"the demo has no split {split!r}: expected demo:SPLIT with {', '.join(builder.SPLITS)}")
    return f"{shards(split)}:{split}"


def checkpoint(name: str) -> str:
    """`demo` as the policy in this package, `untrained` as the one before SFT; any other name as it is."""
    if name == "demo":
        return str(SHIPPED_POLICY)
    return str(untrained_policy()) if name == "untrained" else name


def shards(split: str) -> pathlib.Path:
    """Folder with one split of the digit scenes."""
    path = cache_folder() / f"digit_scenes-{builder.VERSION}-seed{_SEED}-{split}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unless_made(path):
            builder.build(path, seed=_SEED, splits={split: builder.SPLITS[split]})
    return path


def untrained_policy() -> pathlib.Path:
    """Checkpoint folder of the demo policy with random weights."""
    path = cache_folder() / f"untrained-{builder.VERSION}-seed{_SEED}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unless_made(path):
            write_untrained_policy(path, seed=_SEED)
    return path


@contextlib.contextmanager
def _unless_made(path: pathlib.Path) -> Iterator[None]:
    """Forgives a builder that found the folder there at the end: another process made the same bytes meanwhile."""
    try:
        yield
    except (InputError, OSError):
        if not path.exists():
            raise
