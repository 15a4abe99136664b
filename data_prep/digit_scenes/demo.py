"""Finds or makes what the demo presets name: shards, the shipped policy, the untrained one."""

import contextlib
import pathlib

from ml_collections import ConfigDict

from data_prep.digit_scenes import builder
from data_prep.digit_scenes.policy import write_untrained_policy
from vlaa_jax.processing.index import cache_folder

SHIPPED_POLICY = pathlib.Path(__file__).parent / "demo_policy"
_SEED = 0  # of shards and untrained weights: another seed of a run means other draws, not other data


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy of the config with the demo's names replaced by paths; what is missing is built in the cache folder.

    `demo` as a checkpoint is the policy in this package, `untrained` the one before SFT; `demo:SPLIT` are shards.
    """
    config = ConfigDict(config)
    with config.unlocked():
        for field in ("train", "evaluation"):
            name, _, split = config.data[field].partition(":")
            if name == "demo":
                config.data[field] = f"{shards(split)}:{split}"
        if config.model.checkpoint == "demo":
            config.model.checkpoint = str(SHIPPED_POLICY)
        elif config.model.checkpoint == "untrained":
            config.model.checkpoint = str(untrained_policy())
    return config


def shards(split: str) -> pathlib.Path:
    """Folder with one split of the digit scenes."""
    path = cache_folder() / f"digit_scenes-{builder.VERSION}-seed{_SEED}-{split}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        builder.build(path, seed=_SEED, splits={split: builder.SPLITS[split]})
    return path


def untrained_policy() -> pathlib.Path:
    """Checkpoint folder of the demo policy with random weights."""
    path = cache_folder() / f"untrained-{builder.VERSION}-seed{_SEED}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            write_untrained_policy(path, seed=_SEED)
    return path
