"""Finds or makes what the demo presets name: shards, and the shipped policy."""

import pathlib

from ml_collections import ConfigDict

from data_prep.digit_scenes import builder
from vlaa_jax.errors import InputError
from vlaa_jax.storage import cache_folder

SHIPPED_POLICY = pathlib.Path(__file__).parent / "demo_policy"
SCORER = "data_prep.digit_scenes.facts:FactScorer"
_SEED = 0  # of the shards: another seed of a run means other draws, not other data


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy of the config with the demo's names replaced by paths; what is missing is built in the cache folder."""
    config = config.copy_and_resolve_references()  # ConfigDict(config) would share the sections
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
    """`demo` as the policy in this package; any other name as it is."""
    return str(SHIPPED_POLICY) if name == "demo" else name


def shards(split: str) -> pathlib.Path:
    """Folder with one split of the digit scenes."""
    path = cache_folder() / f"digit_scenes-{builder.VERSION}-seed{_SEED}-{split}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            builder.build(path, seed=_SEED, splits={split: builder.SPLITS[split]})
        except (InputError, OSError):
            # Another process may have made the same bytes meanwhile.
            if not path.exists():
                raise
    return path
