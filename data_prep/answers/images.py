"""Pictures as chat endpoints take them."""

import base64
import contextlib
import io
from collections.abc import Iterator

import PIL.Image

from vlaa_jax.errors import InputError

# First bytes of the formats that endpoints read; those of a WebP file hold its length.
_FIRST_BYTES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}

# GPT-4o scales a picture into 2048 x 2048 with a short side of at most 768, and counts 85 and 170 a tile of 512 x 512.
_MOST_TILED = 85 + 170 * 8
# Qwen2.5-VL, the most of those that count by area, has one a square of so many pixels a side.
_SQUARE = 28


def data_url(image: bytes) -> str:
    """The picture in a URL with its media type; a format that endpoints do not read goes as PNG.

    Raises:
      InputError: the bytes are no picture.
    """
    kind = next((name for start, name in _FIRST_BYTES.items() if image.startswith(start)), None)
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        out = io.BytesIO()
        with _opened(image) as picture:
            picture.convert("RGB").save(out, "PNG")
        kind, image = "image/png", out.getvalue()
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def image_tokens(image: bytes) -> int:
    """Bound on the tokens of a picture: the most that GPT-4o counts, or one for each 28 x 28 pixels, whatever is more.

    Models with dearer pictures (GPT-4o mini counts 33 times as many at a lower price) need a budget with room for them.

    Raises:
      InputError: the bytes are no picture.
    """
    with _opened(image) as picture:
        width, height = picture.size
    return max(_MOST_TILED, (width // _SQUARE + 1) * (height // _SQUARE + 1))


@contextlib.contextmanager
def _opened(image: bytes) -> Iterator[PIL.Image.Image]:
    try:
        with PIL.Image.open(io.BytesIO(image)) as picture:
            yield picture
    except Exception as error:  # damaged bytes make Pillow's readers raise almost anything
        raise InputError(f"undecodable image: {error}") from None
