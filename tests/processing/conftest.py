"""A small checkpoint folder without weights: a trained byte-level tokenizer under Qwen's rules and chat template."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_prep.digit_scenes.tokenizer import build_tokenizer
from vlaa_jax.processing.conversation import load_prompt
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.processing.vision_plan import WindowGeometry


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    build_tokenizer(directory, records=100)
    limits = {"min_pixels": 56 * 56, "max_pixels": 224 * 224}
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor", **limits})
    )
    return directory


@pytest.fixture(scope="session")
def tokenizer(checkpoint):
    return Tokenizer(checkpoint)


@pytest.fixture(scope="session")
def encoder(checkpoint, tokenizer):
    """Windows of 2 x 2 merged tokens (56 pixels)."""
    (image_token,) = tokenizer.encode("<|image_pad|>")
    return Encoder(tokenizer, ImageProcessor(checkpoint), load_prompt(), WindowGeometry(2, 2), image_token=image_token)


@pytest.fixture(scope="session")
def png():
    """`png(width, height, seed)`: bytes of an image of random pixels."""

    def make(width: int, height: int, seed: int = 0) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make
