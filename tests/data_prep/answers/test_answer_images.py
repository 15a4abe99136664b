"""Pictures as endpoints take them: the bound on their tokens, and damage."""

import io

import pytest
from PIL import Image

from data_prep.answers.images import data_url, image_tokens
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick


def encoded(size, kind="PNG"):
    out = io.BytesIO()
    Image.new("1", size).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((1, 1), 1445),  # eight tiles of GPT-4o, whatever it would really count
        ((2048, 768), 74 * 28),
        ((2800, 2800), 101 * 101),
    ],
)
def test_bound_on_tokens(size, tokens):
    assert image_tokens(encoded(size)) == tokens


@pytest.mark.parametrize("image", [b"", b"text", b"RIFF1234WAVE", encoded((9, 9), "BMP")[:30]])
def test_what_is_no_picture(image):
    with pytest.raises(InputError, match="undecodable image"):
        data_url(image)
    with pytest.raises(InputError, match="undecodable image"):
        image_tokens(image)
