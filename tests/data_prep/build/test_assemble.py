"""Records from drafts, and pictures within a bound."""

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep.build.assemble import make_record, order, shrink
from data_prep.drafts import Draft
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record

pytestmark = pytest.mark.quick

DRAFT = Draft(
    id="arxivqa-1",
    source="arxivqa",
    image="1.jpg",
    question="Which?",
    gold="B",
    verifier="mcq",
    choices=("one", "two"),
    caption="Two dots.",
    distilled="<think>\nThe caption: wait, two.\n</think>\n\nB",
    rewritten="<think>\nThe image: wait, two.\n</think>\n\nThe answer is B.",
    metadata={"paper": "x", "models": {"caption": "c"}},
)


def test_the_rewritten_reasoning_is_the_trace_and_the_gold_the_answer():
    assert make_record(DRAFT, b"picture") == Record(
        id="arxivqa-1",
        images=(b"picture",),
        question="Which?",
        answer="B",
        verifier="mcq",
        choices=("one", "two"),
        trace="The image: wait, two.",
        source="arxivqa",
        metadata={
            "paper": "x",
            "models": {"caption": "c"},
            "image": "1.jpg",
            "caption": "Two dots.",
            "final": "The answer is B.",
        },
    )


def test_what_is_taken_as_it_is_and_what_has_no_reasoning():
    as_is = make_record(dataclasses.replace(DRAFT, source="coco", rewritten="", caption=""), None)
    assert (as_is.images, as_is.trace, as_is.metadata["final"]) == ((), "The caption: wait, two.", "B")
    rl_only = make_record(dataclasses.replace(DRAFT, distilled="", rewritten="", caption="", metadata={}), b"p")
    assert (rl_only.trace, rl_only.metadata) == ("", {"image": "1.jpg"})


def noise(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_is_encoded_again_only_above_the_bound():
    picture = noise((64, 48))
    assert shrink(picture, 0) is picture and shrink(picture, len(picture)) is picture
    small = shrink(picture, len(picture) // 2)
    assert len(small) <= len(picture) // 2 and small == shrink(picture, len(picture) // 2)
    image = Image.open(io.BytesIO(small))
    assert (image.format, image.size) == ("JPEG", (64, 48))  # gold boxes are in pixels
    with pytest.raises(InputError, match="64x48 pixels do not fit into 100 bytes"):
        shrink(picture, 100)


def test_records_are_drawn_into_full_shards():
    chosen = {f"a-{i}": "sft" for i in range(5)} | {f"b-{i}": "rl" for i in range(2)}
    places = order(chosen, {}, seed=0, records_per_shard=2).places
    assert sorted(places[id] for id in chosen if id < "b") == [
        ("sft", 0, 0), ("sft", 0, 1), ("sft", 1, 0), ("sft", 1, 1), ("sft", 2, 0),
    ]  # fmt: skip
    assert sorted(places[f"b-{i}"] for i in range(2)) == [("rl", 0, 0), ("rl", 0, 1)]
    assert order(dict(reversed(chosen.items())), {}, seed=0, records_per_shard=2).places == places
    assert order(chosen, {}, seed=1, records_per_shard=2).places != places


def test_writing_imports_nothing_of_tfds(tmp_path):
    """While TFDS imports parts of itself, the imports of a runner's other threads go wrong."""
    code = f"""
import pathlib, sys
import data_prep.build.assemble
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import write_shard

before = set(sys.modules)
write_shard(pathlib.Path({str(tmp_path)!r}), "train", 0, [Record("a", (b"x",), "?", "1", "digit", ("1",))])
late = [name for name in set(sys.modules) - before if name.startswith(("tensorflow_datasets", "etils"))]
assert not late, min(late)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
