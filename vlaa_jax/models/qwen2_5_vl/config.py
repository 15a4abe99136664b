"""Sizes of a Qwen2.5-VL or Qwen2-VL, from a preset or from a checkpoint's `config.json`."""

import dataclasses
import json
from typing import Any

from etils import epath

from vlaa_jax.errors import InputError

QWEN2_5, QWEN2 = "qwen2_5_vl", "qwen2_vl"  # `model_type` in config.json
_ARCHITECTURES = {QWEN2_5: "Qwen2_5_VLForConditionalGeneration", QWEN2: "Qwen2VLForConditionalGeneration"}


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
    """Vision tower sizes. A patch is `patch`^2 pixels of `temporal_patch` frames, `merge`^2 patches make a token.

    Qwen2-VL's tower has no windows: all of its layers are full, and windows only lay out its patches, as large as those
    of Qwen2.5-VL, so that one plan and one list of buckets serve both.
    """

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
    tokens_per_second: float | None = 2  # temporal positions; None: every frame takes one, as in Qwen2-VL
    norm_epsilon: float = 1e-6
    rope_theta: float = 1e4
    model_type: str = QWEN2_5

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

    def to_hf(self) -> dict[str, Any]:
        """`vision_config` of `config.json`."""
        shared = {
            "depth": self.depth,
            "num_heads": self.heads,
            "in_chans": self.channels,
            "patch_size": self.patch,
            "spatial_patch_size": self.patch,
            "temporal_patch_size": self.temporal_patch,
            "spatial_merge_size": self.merge,
        }
        if self.model_type == QWEN2:
            return shared | {
                "embed_dim": self.width,
                "mlp_ratio": self.mlp_width // self.width,
                "hidden_size": self.output_width,
                "hidden_act": "quick_gelu",
            }
        return shared | {
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "out_hidden_size": self.output_width,
            "hidden_act": "silu",
            "fullatt_block_indexes": list(self.full_attention_layers),
            "window_size": self.window,
            "tokens_per_second": self.tokens_per_second,
        }


def qwen2_vision(
    depth: int,
    width: int,
    heads: int,
    mlp_ratio: float,
    output_width: int,
    *,
    patch: int = 14,
    merge: int = 2,
    **sizes: Any,
) -> VisionConfig:
    """The tower of a Qwen2-VL; its MLP is `mlp_ratio` times as wide as its layers, `sizes` are further fields."""
    return VisionConfig(
        depth,
        width,
        heads,
        int(mlp_ratio * width),
        output_width,
        full_attention_layers=tuple(range(depth)),
        patch=patch,
        merge=merge,
        window=4 * merge * patch,
        tokens_per_second=None,
        model_type=QWEN2,
        **sizes,
    )


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
            "architectures": [_ARCHITECTURES[vision.model_type]],
            "model_type": vision.model_type,
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
            "vision_config": vision.to_hf(),
        }


def preset(name: str) -> ModelConfig:
    """`demo`, `3b`, `7b` (Qwen2.5-VL), `qwen2-2b` or `qwen2-7b` (Qwen2-VL), with the sizes of the released files."""
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
        "qwen2-2b": TextConfig(151936, 1536, 28, 12, 2, 8960, (16, 24, 24)),
        "qwen2-7b": TextConfig(152064, 3584, 28, 28, 4, 18944, (16, 24, 24), tied_head=False),
    }
    if name not in published:
        raise InputError(f"model preset {name!r} does not exist: expected one of demo, {', '.join(published)}")
    text = published[name]
    if name.startswith("qwen2-"):
        return ModelConfig(text, qwen2_vision(32, 1280, 16, 4, text.width))
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
    if raw.get("model_type") not in _ARCHITECTURES:
        known = " or ".join(map(repr, _ARCHITECTURES))
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}, expected {known}")
    try:
        return _parse(raw)
    except KeyError as error:
        raise InputError(f"{path}: field {error} is missing") from None


def _parse(raw: dict[str, Any]) -> ModelConfig:
    text = raw.get("text_config", raw)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if text.get("use_sliding_window"):
        raise InputError("config.json: use_sliding_window is true, which no published Qwen2.5-VL or Qwen2-VL uses")
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
        vision=_parse_vision(raw["vision_config"], raw["model_type"]),
        image_token=raw["image_token_id"],
        video_token=raw["video_token_id"],
        vision_start_token=raw["vision_start_token_id"],
        vision_end_token=raw["vision_end_token_id"],
    )


def _parse_vision(vision: dict[str, Any], model_type: str) -> VisionConfig:
    shared = {
        "depth": vision["depth"],
        "heads": vision["num_heads"],
        "patch": vision["patch_size"],
        "temporal_patch": vision.get("temporal_patch_size", 2),
        "merge": vision.get("spatial_merge_size", 2),
        "channels": vision.get("in_channels", vision.get("in_chans", 3)),
        "rope_theta": float((vision.get("rope_parameters") or {}).get("rope_theta", 1e4)),
    }
    if model_type == QWEN2:
        return qwen2_vision(
            width=vision["embed_dim"], mlp_ratio=vision["mlp_ratio"], output_width=vision["hidden_size"], **shared
        )
    return VisionConfig(
        width=vision["hidden_size"],
        mlp_width=vision["intermediate_size"],
        output_width=vision["out_hidden_size"],
        full_attention_layers=tuple(vision["fullatt_block_indexes"]),
        window=vision["window_size"],
        tokens_per_second=vision.get("tokens_per_second", 4),
        **shared,
    )
