"""Sizes of a Qwen2.5-VL, from a preset or from a checkpoint's `config.json`."""

import dataclasses
import json
from typing import Any

from etils import epath

from vlaa_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Language model sizes; the axis letter of each size in brackets."""

    vocabulary: int  # [V]
    width: int  # [D]
    layers: int  # [L]
    query_heads: int  # [N]
    key_value_heads: int  # [K]
    mlp_width: int  # [F]
    mrope_section: tuple[int, int, int]  # rotary frequencies that follow time, height and width; they sum to H / 2
    norm_epsilon: float = 1e-6
    rope_theta: float = 1e6
    tied_head: bool = True

    @property
    def head_width(self) -> int:
        """H."""
        return self.width // self.query_heads


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Vision tower sizes. A patch is `patch`^2 pixels of `temporal_patch` frames, `merge`^2 patches make a token."""

    depth: int
    width: int
    heads: int
    mlp_width: int
    output_width: int  # D of the language model
    full_attention_layers: tuple[int, ...]
    patch: int = 14  # pixels
    temporal_patch: int = 2  # frames
    merge: int = 2  # patches
    window: int = 112  # pixels
    channels: int = 3
    tokens_per_second: float = 2
    norm_epsilon: float = 1e-6
    rope_theta: float = 1e4

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels x frames x pixels."""
        return self.channels * self.temporal_patch * self.patch**2

    @property
    def window_units(self) -> int:
        """Side of a window in merged tokens."""
        return self.window // self.merge // self.patch

    @property
    def window_slots(self) -> int:
        """M: patch slots of a full window."""
        return (self.window_units * self.merge) ** 2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model. Token ids mark where vision features go."""

    text: TextConfig
    vision: VisionConfig
    image_token: int = 151655
    video_token: int = 151656
    vision_start_token: int = 151652
    vision_end_token: int = 151653

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """`config.json` in the published flat layout."""
        text, vision = self.text, self.vision
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "torch_dtype": dtype,
            "vocab_size": text.vocabulary,
            "hidden_size": text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.query_heads,
            "num_key_value_heads": text.key_value_heads,
            "intermediate_size": text.mlp_width,
            "hidden_act": "silu",
            "rms_norm_eps": text.norm_epsilon,
            "rope_theta": text.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
            "tie_word_embeddings": text.tied_head,
            "max_position_embeddings": 128000,
            "use_sliding_window": False,
            "image_token_id": self.image_token,
            "video_token_id": self.video_token,
            "vision_start_token_id": self.vision_start_token,
            "vision_end_token_id": self.vision_end_token,
            "vision_config": {
                "depth": vision.depth,
                "hidden_size": vision.width,
                "num_heads": vision.heads,
                "intermediate_size": vision.mlp_width,
                "out_hidden_size": vision.output_width,
                "fullatt_block_indexes": list(vision.full_attention_layers),
                "hidden_act": "silu",
                "in_chans": vision.channels,
                "patch_size": vision.patch,
                "spatial_patch_size": vision.patch,
                "temporal_patch_size": vision.temporal_patch,
                "spatial_merge_size": vision.merge,
                "window_size": vision.window,
                "tokens_per_second": vision.tokens_per_second,
            },
        }


def preset(name: str) -> ModelConfig:
    """`demo`, `3b` or `7b`. The published sizes are those of the released `config.json` files."""
    if name == "demo":
        return ModelConfig(
            text=TextConfig(
                vocabulary=640,
                width=128,
                layers=4,
                query_heads=4,
                key_value_heads=2,
                mlp_width=448,
                mrope_section=(4, 6, 6),
            ),
            vision=VisionConfig(
                depth=4,
                width=96,
                heads=3,
                mlp_width=256,
                output_width=128,
                full_attention_layers=(1, 3),
                window=56,
            ),
        )
    published = {
        "3b": TextConfig(151936, 2048, 36, 16, 2, 11008, (16, 24, 24)),
        "7b": TextConfig(152064, 3584, 28, 28, 4, 18944, (16, 24, 24), tied_head=False),
    }
    if name not in published:
        raise InputError(f"model preset {name!r} does not exist: expected demo, 3b or 7b")
    text = published[name]
    return ModelConfig(text, VisionConfig(32, 1280, 16, 3420, text.width, (7, 15, 23, 31)))


def read_config(directory: str | epath.Path) -> ModelConfig:
    """Reads `config.json` of a Hugging Face directory: the published flat layout or the nested one of transformers 5.

    Raises:
      InputError: no such file, another architecture, or a size that is missing.
    """
    path = epath.Path(directory) / "config.json"
    if not path.exists():
        raise InputError(f"{directory} is not a checkpoint: it has no config.json")
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if raw.get("model_type") != "qwen2_5_vl":
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}, expected 'qwen2_5_vl'")
    try:
        return _parse(raw)
    except KeyError as error:
        raise InputError(f"{path}: field {error} is missing") from None


def _parse(raw: dict[str, Any]) -> ModelConfig:
    text = raw.get("text_config", raw)
    vision = raw["vision_config"]
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if text.get("use_sliding_window"):
        raise InputError("config.json: use_sliding_window is true, which no published Qwen2.5-VL uses")
    return ModelConfig(
        text=TextConfig(
            vocabulary=text["vocab_size"],
            width=text["hidden_size"],
            layers=text["num_hidden_layers"],
            query_heads=text["num_attention_heads"],
            key_value_heads=text["num_key_value_heads"],
            mlp_width=text["intermediate_size"],
            mrope_section=tuple(rope["mrope_section"]),
            norm_epsilon=text["rms_norm_eps"],
            rope_theta=float(rope.get("rope_theta") or text["rope_theta"]),
            # Written at the top, inside text_config, or in both places; absent means the class default.
            tied_head=bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        ),
        vision=VisionConfig(
            depth=vision["depth"],
            width=vision["hidden_size"],
            heads=vision["num_heads"],
            mlp_width=vision["intermediate_size"],
            output_width=vision["out_hidden_size"],
            full_attention_layers=tuple(vision["fullatt_block_indexes"]),
            patch=vision["patch_size"],
            temporal_patch=vision.get("temporal_patch_size", 2),
            merge=vision.get("spatial_merge_size", 2),
            window=vision["window_size"],
            channels=vision.get("in_channels", vision.get("in_chans", 3)),
            tokens_per_second=vision.get("tokens_per_second", 4),
            rope_theta=float((vision.get("rope_parameters") or {}).get("rope_theta", 1e4)),
        ),
        image_token=raw["image_token_id"],
        video_token=raw["video_token_id"],
        vision_start_token=raw["vision_start_token_id"],
        vision_end_token=raw["vision_end_token_id"],
    )
