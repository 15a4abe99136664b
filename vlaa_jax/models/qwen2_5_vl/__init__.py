"""Qwen2.5-VL in Flax nnx (Bai et al., 2025, arXiv 2502.13923)."""

from vlaa_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig, preset
from vlaa_jax.models.qwen2_5_vl.model import Qwen2_5_VL

__all__ = ["ModelConfig", "Qwen2_5_VL", "TextConfig", "VisionConfig", "preset"]
