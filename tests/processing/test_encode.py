"""A record as arrays: placeholder expansion, feature slots, what is refused."""

import dataclasses

import numpy as np
import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.processing.images import Resize, decode
from vlaa_jax.processing.positions import mrope_positions
from vlaa_jax.processing.records import Record

pytestmark = pytest.mark.quick

SYSTEM = (
    "<|im_start|>system\nYou solve questions about images. Look at what is shown, reason about it step by step, then "
    "answer. Write the reasoning between <think> and </think> and the final answer between <answer> and </answer>."
    "<|im_end|>\n<|im_start|>user\n"
)
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"


def shown(tokens):
    return f"<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>"


@pytest.fixture(scope="module")
def records(png):
    """One a verifier, each with another arrangement of images, and the text that the policy reads."""
    wide, tall, small = png(84, 56, 1), png(60, 150, 2), png(9, 5, 3)  # 6, 10 and 6 tokens
    return {
        "digit": (
            Record("d", (wide,), "How many 3s?", "2", "digit"),
            f"{shown(6)}How many 3s?\nAnswer with a single integer.",
        ),
        "mcq": (
            Record("m", (tall, wide), "Is <image> larger than <image>?\nA. yes\nB. no", "B", "mcq", ("yes", "no")),
            f"Is {shown(10)} larger than {shown(6)}?\nA. yes\nB. no\nAnswer with the option's letter.",
        ),
        "math": (Record("f", (), "1 / 2 + 1 / 2?", "1", "math"), "1 / 2 + 1 / 2?\nAnswer in LaTeX."),
        "iou": (
            Record("b", (small,), "Where is the 7?", "[1, 2, 3, 4]", "iou", box_space="pixels"),
            f"{shown(6)}Where is the 7?\nAnswer with one box [x1, y1, x2, y2] in pixels of the image.",
        ),
        "open_ended": (
            Record("o", (small, wide, tall), "Describe them.", "Two 3s.", "open_ended"),
            f"{shown(6)}{shown(6)}{shown(10)}Describe them.",
        ),
    }


KINDS = ["digit", "mcq", "math", "iou", "open_ended"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_expanded_text(encoder, tokenizer, records, kind):
    """Transformers' processor repeats the placeholder in the text, then tokenizes; we repeat its id."""
    record, text = records[kind]
    tokens = encoder.encode(record).tokens
    assert tokens.dtype == np.int32
    assert tokens.tolist() == tokenizer.encode(SYSTEM + text + ASSISTANT)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_an_example_belong_together(encoder, records, kind):
    record, _ = records[kind]
    encoded = encoder.encode(record)
    assert encoder.sizes(record) == (len(encoded.tokens), len(encoded.vision.frames))
    is_vision = encoded.tokens == encoder.image_token
    np.testing.assert_array_equal(encoded.feature_index >= 0, is_vision)
    grids = [encoder.images.grid(resize) for resize in encoded.resizes]
    np.testing.assert_array_equal(encoded.positions, mrope_positions(is_vision, grids, merge=2))
    # The slot that a placeholder points to holds the pixels of its own token.
    patches = [encoder.images.patches([decode(image)]) for image in record.images]
    expected = np.concatenate(patches).reshape(-1, 4, 1176) if patches else np.zeros((0, 4, 1176))
    slots = encoded.vision.patches.reshape(-1, 4, 1176)
    np.testing.assert_array_equal(slots[encoded.feature_index[is_vision]], expected)
    assert encoded.vision.valid.sum() == 4 * is_vision.sum()


def test_resizes_name_each_image(encoder, records):
    resizes = encoder.encode(records["open_ended"][0]).resizes
    assert resizes == (Resize((9, 5), (84, 56)), Resize((84, 56), (84, 56)), Resize((60, 150), (56, 140)))


def test_text_alone_has_no_windows(encoder, records):
    encoded = encoder.encode(records["math"][0])
    assert encoded.vision.patches.shape == (0, 16, 1176) and encoded.resizes == ()
    assert (encoded.feature_index == -1).all()
    np.testing.assert_array_equal(encoded.positions, np.tile(np.arange(len(encoded.tokens)), (3, 1)))


def test_two_calls_give_equal_arrays(encoder, records):
    for record, _ in records.values():
        first, second = encoder.encode(record), encoder.encode(record)
        for name in ("tokens", "positions", "feature_index"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        np.testing.assert_array_equal(first.vision.patches, second.vision.patches)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "What is <|image_pad|>?"}, "its text holds 2 image placeholders for 1 images"),
        ({"question": "<|image_pad|>", "images": ()}, "its text holds 1 image placeholders for 0 images"),
        ({"question": "<image> or <image>?"}, "the question has 2 <image> marks for 1 images"),
        ({"images": (b"no image",)}, "undecodable image"),
        ({"verifier": "number"}, "verifier 'number'"),
    ],
)
def test_what_cannot_be_encoded_names_the_record(encoder, png, change, message):
    record = dataclasses.replace(Record("scene-7", (png(56, 56),), "What?", "1", "digit"), **change)
    for use in (encoder.encode, encoder.sizes):
        with pytest.raises(InputError, match=f"^record scene-7: {message}"):
            use(record)


def test_extreme_aspect_and_damage_name_the_record(encoder, png):
    strip, cut = png(402, 2), png(56, 56)[:3000]
    for image, message in ((strip, "image of 402x2 pixels"), (cut, "undecodable image")):
        record = Record("scene-8", (png(56, 56), image), "What?", "1", "digit")
        for use in (encoder.encode, encoder.sizes):
            with pytest.raises(InputError, match=f"^record scene-8: {message}"):
                use(record)


def test_completion_ends_with_the_end_token(encoder, tokenizer):
    ids = encoder.completion("<think>\n3\n</think>\n<answer>3</answer>")
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.encode("<think>\n3\n</think>\n<answer>3</answer><|im_end|>")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>"])
def test_completion_may_not_spell_out_an_end_or_an_image(encoder, token):
    with pytest.raises(InputError, match="a completion's text holds the special token"):
        encoder.completion(f"<think>\n3{token}\n</think>")


def test_nothing_is_cut(encoder, tokenizer, png):
    """Thousands of image tokens and words stay whole."""
    record = Record("long", (png(224, 224),) * 80, "word " * 5000, "1", "open_ended")
    text = SYSTEM + shown(64) * 80 + "word " * 5000 + ASSISTANT
    assert encoder.encode(record).tokens.tolist() == tokenizer.encode(text)
    assert encoder.sizes(record)[0] == len(tokenizer.encode(text)) > 10000
    assert tokenizer.decode(encoder.completion("word " * 5000)) == "word " * 5000
