"""Qwen2.5-VL in Flax nnx (Bai et al., 2025, arXiv 2502.13923).

Qwen2-VL (Wang et al., 2024, arXiv 2409.12191) is the same model with another vision tower, so it is here too.
"""

from vlaa_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig, preset
from vlaa_jax.models.qwen2_5_vl.model import Qwen2_5_VL

__all__ = ["ModelConfig", "Qwen2_5_VL", "TextConfig", "VisionConfig", "preset"]
