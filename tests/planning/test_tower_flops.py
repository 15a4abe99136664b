"""FLOPs of a tower of two windows (128 patches) against numbers counted by hand."""

import pytest

from vlaa_jax.models.qwen2_5_vl.config import VisionConfig, qwen2_vision
from vlaa_jax.planning.model_flops import vision_flops

pytestmark = pytest.mark.quick

# Products with 128 patches: 2 x 128 x (1,176 x 32 + 2 blocks x (4 x 32^2 + 2 or 3 matrices of 32 x 64)); the merger's
# with 32 tokens: 2 x 32 x (128 x 128 + 128 x 64). Attention of one block: 2 heads x 4 x 16 for each pair of patches.
PATCHES = 2 * 128 * (1176 * 32 + 2 * 4 * 32**2)
MATRIX = 2 * 128 * 2 * 32 * 64
MERGER = 2 * 32 * (128 * 128 + 128 * 64)
PAIR = 2 * 4 * 16


def test_one_full_layer_of_two_and_a_gated_mlp():
    pairs = 128**2 + 2 * 64**2
    assert vision_flops(VisionConfig(2, 32, 2, 64, 64, (1,)), 2) == PATCHES + 3 * MATRIX + MERGER + PAIR * pairs


def test_qwen2_vl_has_only_full_layers_and_no_gate():
    pairs = 2 * 128**2
    assert vision_flops(qwen2_vision(2, 32, 2, 2, 64), 2) == PATCHES + 2 * MATRIX + MERGER + PAIR * pairs
