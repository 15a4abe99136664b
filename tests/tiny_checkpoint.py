"""A small checkpoint with random weights and everything that a published one has, and a picture."""

import dataclasses
import io
import json
import pathlib

import numpy as np
from oracle import draw_config, random_checkpoint, write_tokenizer
from PIL import Image

from vlaa_jax.models.qwen2_5_vl.config import QWEN2_5

_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|extra_9|>{% endfor %}"
)


def write_checkpoint(directory: pathlib.Path, *, tied: bool, seed: int, model_type: str = QWEN2_5) -> pathlib.Path:
    """A checkpoint with everything that a published one has; its generation config punishes repetition."""
    config = draw_config(np.random.default_rng(seed), tied=tied, model_type=model_type)
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
