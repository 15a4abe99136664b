"""Shards of five records, and a run of one step whose weights differ from its start."""

import dataclasses
import importlib.util
import pathlib
from types import SimpleNamespace

import jax
from ml_collections import ConfigDict
from tiny_checkpoint import picture

from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import write_records
from vlaa_jax.training import settings
from vlaa_jax.training.checkpoint import Checkpoints
from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.state import create_state

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_shards(directory: pathlib.Path, *extra: Record) -> pathlib.Path:
    records = [
        Record(f"r{i}", (picture(i),), f"How many dots {i}?", str(i), "digit", metadata={"kind": f"kind{i % 2}"})
        for i in range(5)
    ]
    write_records(directory, {"test": [*records, *extra]}, name="tiny", version="1.0.0")
    return directory


def demo_config(name: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def write_run(directory: pathlib.Path, checkpoint: pathlib.Path, *, freeze_vision: bool) -> SimpleNamespace:
    """A run of SFT that was stopped after its first step."""
    config = demo_config("sft")
    with config.unlocked():
        config.model.checkpoint = str(checkpoint)
        config.model.freeze_vision = freeze_vision
        config.data.min_pixels, config.data.max_pixels = 256, 1024
        config.rollout.new_tokens = 12
        config.prompt.instructions = {"digit": "One number."}
    folder = RunFolder(directory)
    encoder = settings.load_encoder(config)
    folder.begin(config.to_dict(), prompt_sha256=encoder.prompt.sha256(encoder.tokenizer.chat_template))
    for step, reward in ((0, 0.25), (1, 0.5)):
        folder.write_metrics(step, {"evaluation/reward": reward})
    folder.close()
    model, _ = settings.load_policy(config)
    state = create_state(model, settings.optimizer(config, 1)[0], freeze_vision=freeze_vision)
    state = dataclasses.replace(state, trainable=jax.tree.map(lambda leaf: leaf * 1.05 + 0.01, state.trainable))
    checkpoints = Checkpoints(folder.checkpoints, keep=1)
    checkpoints.save(1, state, {}, 0.5)
    checkpoints.close()
    return SimpleNamespace(folder=folder, config=config, state=state)
