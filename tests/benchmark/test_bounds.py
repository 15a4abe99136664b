"""FLOPs and bytes of the work against numbers counted by hand."""

import dataclasses

import pytest

from vlaa_jax.benchmark import bounds, presets

pytestmark = pytest.mark.quick

# Of `tiny`: P = 61 (16 of the picture), G = 2, C = 4, D = 64, 2 layers, N = 4, K = 2, H = 16, F = 96, V = 640.
LAYERS = 122_880  # FLOPs of a token: 2 layers x 2 x (2 x 64 x 64 + 2 x 64 x 32 + 3 x 64 x 96)
HEAD = 81_920  # 2 x 64 x 640
PAIR = 512  # 2 layers x 4 heads x 4 x 16
# 64 patches: 2 x 64 x (1,176 x 32 + 2 x (4 x 32^2 + 3 x 32 x 48)), 2 blocks x 2 heads x 4 x 16 x 64^2 of attention,
# 2 x 16 x (128 x 128 + 128 x 64) of the merger.
TOWER = 7_045_120 + 1_048_576 + 786_432


def test_the_tiny_update():
    tiny = presets.find("tiny")
    # Pairs: 61 x 62 / 2 of the prompt, and of each completion 4 x 61 and 4 x 5 / 2.
    shared = 3 * (LAYERS * (61 + 8) + PAIR * (1891 + 2 * 254) + HEAD * 8 + TOWER)
    rows = 3 * (LAYERS * 130 + PAIR * 2 * (1891 + 254) + HEAD * 8 + 2 * TOWER)
    assert (shared, rows) == (57_727_488, 109_759_488)
    assert bounds.update_flops(tiny, shared=True) == shared
    assert bounds.update_flops(tiny, shared=False) == rows


def test_a_frozen_tower_runs_forward_for_every_row_and_not_at_all_behind_a_rollout():
    tiny = presets.find("tiny")
    frozen = dataclasses.replace(tiny, freeze_vision=True)
    assert bounds.update_flops(tiny, shared=True) - bounds.update_flops(frozen, shared=True) == 3 * TOWER
    assert bounds.update_flops(tiny, shared=False) - bounds.update_flops(frozen, shared=False) == 2 * 2 * TOWER


def test_the_ratio_of_the_cpu_figures():
    cpu = presets.find("cpu")
    assert (cpu.image_tokens, cpu.prompt, cpu.windows) == (256, 321, 16)
    ratio = bounds.update_flops(cpu, shared=False) / bounds.update_flops(cpu, shared=True)
    assert ratio == pytest.approx(1.84, abs=0.005)
    # The head of 1,024 tokens and 151,936 rows, forward and backward, is two thirds of it and is not shared.
    assert 6 * 1024 * 512 * 151936 / bounds.update_flops(cpu, shared=True) == pytest.approx(0.66, abs=0.005)


def test_a_decode_step():
    tiny = presets.find("tiny")
    # 4 rows; each sees 61 tokens of its prompt and 2.5 of its own.
    assert bounds.decode_flops(tiny, 2) == 4 * LAYERS + PAIR * 4 * 63.5 + 4 * HEAD
    # 61,440 weights of layers, 40,960 of the head; 2 x 2 x 2 x 16 numbers of each cached token: 2 x 61 + 4 x 2 of them.
    assert bounds.decode_bytes(tiny, 2) == 4 * (61_440 + 40_960 + 128 * 130)
    half = dataclasses.replace(tiny, dtype="bfloat16")
    assert bounds.decode_bytes(half, 2) == 2 * (61_440 + 40_960 + 128 * 130)


def test_the_slower_of_arithmetic_and_memory_decides():
    limits = bounds.Limits(matrix_rate=100.0, bandwidth=10.0)
    assert limits.seconds(200.0, 30.0) == 3.0
    assert limits.seconds(400.0, 30.0) == 4.0
