"""A checkpoint of the published 3B widths, vocabulary and tokenizer, cut to 2 text and 4 vision layers, and 40 records.

The tokenizer is built from the rank file inside the `dashscope` package, which need not be imported:
`pip install --no-deps dashscope==2.0.2`.
"""

import base64
import dataclasses
import importlib.metadata
import io
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from flax import nnx
from PIL import Image, ImageDraw
from transformers import AddedToken, Qwen2Tokenizer

import data_prep.digit_scenes.tokenizer as demo_tokenizer
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf, preset

_END, _IM_END = 151643, 151645
_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# What ends a completion of random weights after some tens of tokens instead of the 1,024 that are allowed.
_COMMON, _END_PULL = 0.02, 8.6


def write_checkpoint(directory: pathlib.Path, *, seed: int = 0) -> None:
    """Random bfloat16 weights in the published layout."""
    parts = directory.with_name("parts")
    write_tokenizer(parts)
    (parts / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
    (parts / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "eos_token_id": [_IM_END, _END], "pad_token_id": _END, "bos_token_id": _END})
    )
    config = preset("3b")
    config = dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, layers=2),
        vision=dataclasses.replace(config.vision, depth=4, full_attention_layers=(3,)),
    )
    (parts / "config.json").write_text(json.dumps(config.to_hf("bfloat16")))
    model = jax.jit(lambda: Qwen2_5_VL(config, nnx.Rngs(seed)))()
    model.language.embedding[...] = _with_frequent_end(model.language.embedding[...])
    hf.save(model, directory, dataclasses.replace(hf.new_layout(model, ml_dtypes.bfloat16), source=epath.Path(parts)))


def _with_frequent_end(embedding: jax.Array) -> jax.Array:
    """All rows share a small part and the end token has much of it, so every hidden state points there a little."""
    common = _COMMON * jax.random.rademacher(jax.random.key(7), embedding.shape[1:], jnp.float32)
    embedding = 0.02 * embedding / embedding.std() + common
    return embedding.at[_IM_END].add(_END_PULL * common)


def write_tokenizer(directory: pathlib.Path) -> None:
    """Qwen2.5's tokenizer from its byte-pair ranks, with the ids that the published models use."""
    package = importlib.metadata.distribution("dashscope")
    lines = pathlib.Path(package.locate_file("dashscope/resources/qwen.tiktoken")).read_bytes().splitlines()
    ranks = {}
    for line in lines:
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = _byte_letters()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = []
    for token in ranks:
        if len(token) > 1:
            first, second = _split(token, ranks)
            merges.append(("".join(letters[b] for b in first), "".join(letters[b] for b in second)))
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        added_tokens_decoder={
            len(vocabulary) + index: AddedToken(token, special=True, normalized=False)
            for index, token in enumerate(demo_tokenizer.SPECIAL_TOKENS)
        },
    )
    template = pathlib.Path(demo_tokenizer.__file__).with_name("chat_template.jinja")
    tokenizer.chat_template = template.read_text()
    tokenizer.save_pretrained(directory)


def _split(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into this one: byte pairs are joined by rank, as long as they rank below it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        at = int(np.argmin(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    first, second = parts
    return first, second


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def write_questions(folder: pathlib.Path) -> pathlib.Path:
    """A JSONL of 40 questions over the four rule-based verifiers beside their pictures, with traces."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = []
    for number in range(40):
        width, height = (int(side) for side in generator.integers(150, 420, 2))
        x, y = int(generator.integers(10, width // 2)), int(generator.integers(10, height // 2))
        image = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(image).rectangle((x, y, x + 60, y + 50), fill=tuple(generator.integers(0, 200, 3).tolist()))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        (folder / f"{number}.png").write_bytes(buffer.getvalue())
        verifier, question, answer, more = (
            ("digit", "How many rectangles are there?", "1", {}),
            ("mcq", "What is it?\nA. a box\nB. a disc", "A", {"choices": ["a box", "a disc"]}),
            ("math", "Which share of a whole is a half?", r"\frac{1}{2}", {}),
            ("iou", "Where is it?", f"[{x},{y},{x + 60},{y + 50}]", {"box_space": "pixels"}),
        )[number % 4]
        line = {"image": f"{number}.png", "question": question, "answer": answer, "verifier": verifier, **more}
        lines.append(json.dumps(line | {"trace": "I see one coloured rectangle."}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "questions.jsonl"
