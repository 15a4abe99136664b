"""The GPU kernel: interpreted against the reference, and lowered for CUDA without a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from kernels import assert_agrees, draw

from vlaa_jax.models import attention as attention_module
from vlaa_jax.models.attention import Causal, Segments, attention, fused_gpu_attention

interpreted = functools.partial(fused_gpu_attention, interpret=True)


def test_causal_of_packed_segments():
    segments = np.stack([np.repeat([1, 2, 0], [100, 130, 70]), np.repeat([1, 2, 0], [1, 255, 44])])
    mask = Causal(jnp.asarray(segments))
    assert_agrees(interpreted, draw(2, 300, heads=4, shared=2, width=32), mask, segments > 0)


def test_whole_segments_of_the_vision_towers_head_width():
    segments = np.repeat([1, 1, 2, 2, 0], 64) * (np.arange(320) % 64 < 48)
    mask = Segments(jnp.asarray(segments[None]))
    assert_agrees(interpreted, draw(1, 320, heads=2, shared=2, width=80), mask, segments[None] > 0)


def test_a_row_of_padding_is_finite():
    mask = Causal(jnp.zeros((1, 256), jnp.int32))
    out, pull = jax.vjp(lambda *arrays: interpreted(*arrays, mask), *draw(1, 256, heads=2, shared=1, width=32))
    assert np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for gradient in pull(out))


def test_forward_and_backward_lower_for_cuda(monkeypatch):
    monkeypatch.setattr(attention_module, "platform", lambda: "gpu")
    for mask, heads, shared, width in (
        (Causal(jnp.ones((1, 2048), jnp.int32)), 16, 2, 128),
        (Segments(jnp.ones((1, 1280), jnp.int32)), 16, 16, 80),
    ):
        arrays = [x.astype(jnp.bfloat16) for x in draw(*mask.segments.shape, heads=heads, shared=shared, width=width)]
        gradient = jax.jit(jax.grad(lambda *a, m=mask: attention(*a, m).astype(jnp.float32).sum(), (0, 1, 2)))
        text = gradient.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
        assert {name for name in ("mha_forward", "mha_backward") if f'name = "{name}"' in text} == {
            "mha_forward",
            "mha_backward",
        }
