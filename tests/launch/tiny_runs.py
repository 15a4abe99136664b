"""A small start checkpoint, shards of five records, and a run of one step whose weights differ from its start."""

import dataclasses
import importlib.util
import io
import json
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
from ml_collections import ConfigDict
from oracle import draw_config, random_checkpoint, write_tokenizer
from PIL import Image

from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import write_records
from vlaa_jax.training import settings
from vlaa_jax.training.checkpoint import Checkpoints
from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.state import create_state

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|extra_9|>{% endfor %}"
)


def write_checkpoint(directory: pathlib.Path, *, tied: bool, seed: int) -> pathlib.Path:
    """A checkpoint with everything that a published one has; its generation config punishes repetition."""
    config = draw_config(np.random.default_rng(seed), tied=tied)
    random_checkpoint(
        directory, dataclasses.replace(config, text=dataclasses.replace(config.text, vocabulary=300)), seed
    )
    write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(_TEMPLATE)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 9, "repetition_penalty": 1.7}))
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "temporal_patch_size": 2}
    processor |= {"merge_size": 2, "min_pixels": 64, "max_pixels": 4096}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


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
