"""Which pictures a question is shown: its own, another record's in the same size, or grey ones."""

import io

import numpy as np
import pytest
from PIL import Image

from vlaa_jax.evaluation.evaluate import Evaluator
from vlaa_jax.processing.images import decode
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.records import Record


def png(size: tuple[int, int], shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def record(name: str, *images: bytes) -> Record:
    return Record(name, images, "?", "1", "digit")


SOURCE = [
    record("a", png((40, 40), 10)),
    record("broken", b"no picture"),
    record("two", png((40, 40), 20), png((40, 40), 21)),
    record("wide", png((80, 40), 30)),
    record("b", png((40, 40), 40)),
]


def shown(images: str, place: int, bad: tuple[int, ...] = (1,)) -> list[Image.Image]:
    zeros = np.zeros(len(SOURCE), np.int32)
    problems = np.asarray(["undecodable" if i in bad else "" for i in range(len(SOURCE))])
    index = Index(zeros, zeros, zeros, zeros, np.asarray([r.id for r in SOURCE]), problems)
    evaluator = Evaluator(SOURCE, index, None, batch=1, images=images)
    return [decode(image) for image in evaluator._record(place).images]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("images", "place", "bad", "size", "colour"),
    [
        ("own", 0, (1,), (40, 40), (10, 0, 0)),
        ("blank", 3, (1,), (80, 40), (128, 128, 128)),
        ("swapped", 0, (1,), (40, 40), (40, 0, 0)),  # past the broken one and the wide one
        ("swapped", 4, (1,), (40, 40), (10, 0, 0)),  # around the end
        ("swapped", 3, (1,), (80, 40), (40, 0, 0)),  # none is as wide: scaled
        ("swapped", 0, (1, 3, 4), (40, 40), (10, 0, 0)),  # there is no other
    ],
)
def test_pictures(images, place, bad, size, colour):
    (image,) = shown(images, place, bad)
    assert image.size == size
    assert image.getpixel((5, 5)) == colour
