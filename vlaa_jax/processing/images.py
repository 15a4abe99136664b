"""Images: decoding, the checkpoint's resize rule, patches. Done once an example; torch is not needed."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from vlaa_jax.errors import InputError
from vlaa_jax.processing.vision_plan import Grid


@dataclasses.dataclass(frozen=True)
class Resize:
    """How one image was scaled: `(width, height)` in pixels before and after."""

    original: tuple[int, int]
    resized: tuple[int, int]


class ImageProcessor:
    """The checkpoint's `preprocessor_config.json` at work, with pixel limits that a config may override."""

    def __init__(self, directory: str | epath.Path, *, min_pixels: int | None = None, max_pixels: int | None = None):
        """Reads the configuration.

        Args:
          directory: a checkpoint; without `preprocessor_config.json` the published defaults hold.
          min_pixels, max_pixels: limits on width x height after resizing; None keeps the checkpoint's.
        """
        directory = epath.Path(directory)
        known = (directory / "preprocessor_config.json").exists()
        processor = Qwen2VLImageProcessorPil.from_pretrained(directory) if known else Qwen2VLImageProcessorPil()
        self.min_pixels = min_pixels or processor.size["shortest_edge"]
        self.max_pixels = max_pixels or processor.size["longest_edge"]
        self._size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        self._processor = processor
        self.factor = processor.patch_size * processor.merge_size
        self.patch_values = 3 * processor.temporal_patch_size * processor.patch_size**2

    def resize(self, original: tuple[int, int]) -> Resize:
        """The resize rule: sides become multiples of `factor`, their product keeps the limits, the aspect is kept.

        Args:
          original: width, height.

        Raises:
          InputError: one side is more than 200 times the other.
        """
        try:
            height, width = smart_resize(original[1], original[0], self.factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise InputError(f"image of {original[0]}x{original[1]} pixels: {error}") from None
        return Resize(tuple(original), (width, height))

    def grid(self, resize: Resize) -> Grid:
        """Frames, rows and columns in patches."""
        patch = self._processor.patch_size
        return (1, resize.resized[1] // patch, resize.resized[0] // patch)

    def patches(self, images: Sequence[Image.Image]) -> np.ndarray:
        """`[patches of all images, patch values]` float32, in the order that `vision_plan.plan` expects."""
        return self._processor(list(images), size=self._size, return_tensors="np")["pixel_values"]


def decode(encoded: bytes) -> Image.Image:
    """Decodes an image file to RGB.

    Raises:
      InputError: the bytes are no image, or a damaged one.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"undecodable image: {error}") from None


def read_size(encoded: bytes) -> tuple[int, int]:
    """Width and height from the header alone.

    Raises:
      InputError: the bytes are no image.
    """
    try:
        return Image.open(io.BytesIO(encoded)).size
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"undecodable image: {error}") from None
