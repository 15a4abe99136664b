"""What the demo's SFT starts from: tokenizer, configuration, a tower that finds digits, random language weights."""

import dataclasses
import json
import os
import pathlib
import uuid

import jax
import numpy as np
from etils import epath
from flax import nnx

from data_prep.digit_scenes.tokenizer import build_tokenizer
from data_prep.digit_scenes.tower import train_tower
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf, preset
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.processing.tokenizer import Tokenizer

_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 56 * 56,
    "max_pixels": 448 * 448,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_policy(directory: str | os.PathLike[str], *, tower_updates: int, seed: int = 0) -> None:
    """Writes the checkpoint that the demo's SFT starts from.

    Args:
      directory: made by this call; must not exist yet.
      tower_updates: how long the vision tower is trained.
      seed: of the weights and of the tower's pictures.

    Raises:
      InputError: the directory exists.
    """
    directory = pathlib.Path(directory)
    if directory.exists():
        raise InputError(f"{directory} exists already: nothing was written")
    parts = directory.with_name(f"{directory.name}.parts-{uuid.uuid4().hex[:8]}")
    build_tokenizer(parts)
    (parts / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n")
    tokenizer = Tokenizer(parts)
    special = {name: tokenizer.encode(f"<|{name}|>")[0] for name in ("im_end", "endoftext")}
    ends = [special["im_end"], special["endoftext"]]
    (parts / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "eos_token_id": ends, "pad_token_id": special["endoftext"]}, indent=2) + "\n"
    )
    config = preset("demo")
    config = dataclasses.replace(
        config,
        # Rows beyond the tokenizer's are never a target; a multiple of 64 keeps matrix tiles whole.
        text=dataclasses.replace(config.text, vocabulary=-(-len(tokenizer) // 64) * 64),
        image_token=tokenizer.encode("<|image_pad|>")[0],
        video_token=tokenizer.encode("<|video_pad|>")[0],
        vision_start_token=tokenizer.encode("<|vision_start|>")[0],
        vision_end_token=tokenizer.encode("<|vision_end|>")[0],
    )
    model = jax.jit(lambda: Qwen2_5_VL(config, nnx.Rngs(seed)))()
    model = train_tower(model, ImageProcessor(parts), updates=tower_updates, seed=seed)
    # transformers falls back to the ids of the published vocabulary where these are missing.
    ids = {"bos_token_id": special["endoftext"], "eos_token_id": special["im_end"]}
    (parts / "config.json").write_text(json.dumps(config.to_hf() | ids, indent=2) + "\n")
    layout = dataclasses.replace(hf.new_layout(model, np.float32), source=epath.Path(parts))
    hf.save(model, directory, layout)
    for file in parts.iterdir():
        file.unlink()
    parts.rmdir()
