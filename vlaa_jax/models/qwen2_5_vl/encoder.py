"""How a checkpoint turns records into arrays."""

import os

from vlaa_jax.models.qwen2_5_vl.config import read_config
from vlaa_jax.processing.conversation import Prompt
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.processing.vision_plan import WindowGeometry


def open_encoder(
    directory: str | os.PathLike[str],
    prompt: Prompt,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Encoder:
    """A checkpoint's tokenizer, image rule and window geometry under a prompt.

    Args:
      directory: a local Hugging Face directory.
      prompt: what surrounds a question.
      min_pixels, max_pixels: limits on an image's size after resizing; None keeps the checkpoint's.

    Raises:
      InputError: a file of the directory is missing or cannot be read.
    """
    sizes = read_config(directory)
    return Encoder(
        Tokenizer(directory),
        ImageProcessor(directory, min_pixels=min_pixels, max_pixels=max_pixels),
        prompt,
        WindowGeometry(sizes.vision.merge, sizes.vision.window_units),
        image_token=sizes.image_token,
    )
