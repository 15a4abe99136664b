"""Random checkpoints of Qwen2.5-VL and Qwen2-VL written by transformers: what our model is compared with."""

import json

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from vlaa_jax.models.qwen2_5_vl import ModelConfig, TextConfig, VisionConfig
from vlaa_jax.models.qwen2_5_vl.config import QWEN2, QWEN2_5, qwen2_vision

IMAGE, VIDEO, START, END = 7, 8, 5, 6


def draw_config(rng: np.random.Generator, *, tied: bool | None = None, model_type: str = QWEN2_5) -> ModelConfig:
    """A small architecture; every size is drawn."""
    heads = int(rng.choice([2, 4]))
    head_width = int(rng.choice([8, 16]))
    section = (head_width // 2 - 2 * (head_width // 6), head_width // 6, head_width // 6)
    depth = int(rng.integers(2, 5))
    text = TextConfig(
        vocabulary=int(rng.integers(200, 400)),
        width=heads * head_width,
        layers=int(rng.integers(2, 4)),
        query_heads=heads,
        key_value_heads=int(rng.choice([1, 2])),
        mlp_width=int(rng.integers(40, 90)),
        mrope_section=section,
        tied_head=bool(rng.integers(2)) if tied is None else tied,
    )
    width = 2 * int(rng.choice([8, 16]))
    if model_type == QWEN2:
        vision = qwen2_vision(depth, width, 2, int(rng.integers(2, 5)), text.width, patch=4)
        return ModelConfig(text, vision, IMAGE, VIDEO, START, END)
    vision = VisionConfig(
        depth=depth,
        width=width,
        heads=2,
        mlp_width=int(rng.integers(30, 70)),
        output_width=text.width,
        full_attention_layers=tuple(sorted(rng.choice(depth, int(rng.integers(1, depth)), replace=False).tolist())),
        patch=4,
        window=int(rng.choice([16, 24])),
    )
    return ModelConfig(text, vision, IMAGE, VIDEO, START, END)


def random_checkpoint(
    directory, config: ModelConfig, seed: int, *, dtype: torch.dtype = torch.float32, **save
) -> PreTrainedModel:
    """Writes a checkpoint with random weights, scaled so that greedy text varies, and returns transformers' model."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config.to_hf())).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.copy_(0.2 * torch.randn_like(weight))
            elif "norm" in name or "ln_q" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            else:
                weight.mul_(12)
    model.to(dtype).save_pretrained(directory, **save)
    return model


def write_tokenizer(directory) -> None:
    """A byte-level tokenizer of 266 tokens whose vision tokens have the ids of `draw_config`, with a chat template."""
    names = {START: "<|vision_start|>", END: "<|vision_end|>", IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>"}
    special = [names.get(i, f"<|extra_{i}|>") for i in range(10)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (directory / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    )


def random_row(
    rng: np.random.Generator, config: ModelConfig, grids: list[tuple[int, int, int]], video: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens with one run of placeholders a grid between text of random length, and their patches."""
    text = lambda: rng.integers(10, config.text.vocabulary, int(rng.integers(1, 6))).tolist()  # noqa: E731
    tokens = text()
    for frames, rows, columns in grids:
        count = frames * rows * columns // config.vision.merge**2
        tokens += [START, *[VIDEO if video else IMAGE] * count, END, *text()]
    patches = sum(int(np.prod(grid)) for grid in grids)
    return np.asarray(tokens), rng.standard_normal((patches, config.vision.patch_values)).astype(np.float32)
