"""Images: decoding, the checkpoint's resize rule, patches. Done once an example; torch is not needed.

Two things that tools around Qwen2.5-VL do differently are decided here, once: the EXIF orientation is applied, as
transformers' `load_image` does (people wrote questions and boxes about the upright picture; `qwen_vl_utils` ignores the
tag), and transparency lies on white, as in transformers' image processor and `qwen_vl_utils`. Pixel coordinates of an
image are those of the upright one.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from vlaa_jax.errors import InputError
from vlaa_jax.processing.vision_plan import Grid

if TYPE_CHECKING:
    from transformers import Qwen2VLImageProcessorPil

# transformers writes the second one when it saves a whole processor.
_CONFIG_FILES = ("preprocessor_config.json", "processor_config.json")


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
          directory: a checkpoint; without a configuration file of the image processor the published defaults hold.
          min_pixels, max_pixels: limits on width x height after resizing; None keeps the checkpoint's.

        Raises:
          InputError: a configuration that cannot be read, one that forbids resizing, or limits that exclude every size.
        """
        processor = _read_processor(epath.Path(directory))
        self.min_pixels = processor.size["shortest_edge"] if min_pixels is None else min_pixels
        self.max_pixels = processor.size["longest_edge"] if max_pixels is None else max_pixels
        if not 0 < self.min_pixels <= self.max_pixels:
            raise InputError(
                f"pixel limits: min_pixels {self.min_pixels} must lie between 1 and max_pixels {self.max_pixels}"
            )
        self._size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        self._processor = processor
        self.factor = processor.patch_size * processor.merge_size
        self.patch_values = 3 * processor.temporal_patch_size * processor.patch_size**2

    def resize(self, original: tuple[int, int]) -> Resize:
        """The resize rule: sides become multiples of `factor`, the aspect is kept, and so are the pixel limits.

        A strip that cannot shrink below one `factor` may stay above `max_pixels`; so may an image where the two limits
        lie closer than one step of `factor`.

        Args:
          original: width, height.

        Raises:
          InputError: one side is more than 200 times the other.
        """
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

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
    """Decodes an image file to upright RGB, transparency on white; of an animation the first frame.

    Values above 8 bits are clipped, not scaled, as transformers' image processor has it.

    Raises:
      InputError: the bytes are no image, or a damaged one.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError:  # whose message names an address in memory
        raise InputError("undecodable image: of no known format") from None
    except Exception as error:  # damaged bytes make Pillow's readers raise almost anything
        raise InputError(f"undecodable image: {error}") from None


def read_size(encoded: bytes) -> tuple[int, int]:
    """Width and height of the image that `decode` returns.

    Raises:
      InputError: as `decode`.
    """
    return decode(encoded).size


def _read_processor(directory: epath.Path) -> Qwen2VLImageProcessorPil:
    from transformers import Qwen2VLImageProcessorPil  # takes seconds, which who only decodes should not wait for

    if not any((directory / name).exists() for name in _CONFIG_FILES):
        return Qwen2VLImageProcessorPil()
    try:
        processor = Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{directory}: the image processor's configuration cannot be read ({error})") from None
    if not processor.do_resize:
        raise InputError(f"{directory}: do_resize is false, but only resized images fall into whole tokens")
    return processor
