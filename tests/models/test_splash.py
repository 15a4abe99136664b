"""The TPU kernel, interpreted, against the reference; its blocks against a count by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels import assert_agrees, draw

from vlaa_jax.models import splash
from vlaa_jax.models.attention import Causal, Segments, SharedPrompt, splash_attention

interpreted = functools.partial(splash_attention, interpret=True)


@pytest.fixture
def small_blocks(monkeypatch):
    """Of 128 tokens, so that short rows have blocks that are hidden, cut by the mask and wholly seen."""
    monkeypatch.setattr(splash, "_PAIRS_OF_A_STEP", 0)
    splash._block.cache_clear()
    yield
    splash._block.cache_clear()


def packed(*rows: list[int]) -> np.ndarray:
    """Segments from their lengths, the last one padding."""
    return np.stack([np.repeat([*range(1, len(row)), 0], row) for row in rows])


def shared_row(length: int, *rows: list[tuple[int, int]]) -> np.ndarray:
    """Segments of rows whose prompt and completions begin and end at these places."""
    out = np.zeros((len(rows), length), np.int32)
    for row, spans in zip(out, rows, strict=True):
        for segment, (start, stop) in enumerate(spans, 1):
            row[start:stop] = segment
    return out


def test_causal_of_packed_segments(small_blocks):
    segments = packed([100, 130, 70], [1, 255, 44])
    mask = Causal(jnp.asarray(segments))
    assert_agrees(interpreted, draw(2, 300, heads=4, shared=2, width=32), mask, segments > 0)


def test_whole_segments_of_the_vision_towers_head_width(small_blocks):
    # Frames in windows: a window that is not full has padding inside the row, and frames change inside a block.
    segments = np.repeat([1, 1, 1, 2, 2, 2, 0], 64) * (np.arange(448) % 64 < 48)
    mask = Segments(jnp.asarray(segments[None]))
    assert_agrees(interpreted, draw(1, 448, heads=2, shared=2, width=80), mask, segments[None] > 0)


@pytest.mark.parametrize(
    "length, multiple, rows",
    [
        # A prompt and a completion over several blocks, completions inside one; rows that differ, one without any.
        (700, 1, ([(0, 300), (300, 301), (301, 560), (560, 700)], [(0, 37), (37, 60), (64, 700)])),
        (1100, 2, ([(0, 129), (130, 400), (400, 1099)], [(0, 1100)])),
        (2300, 8, ([(0, 777), (784, 1500), (1504, 1505), (1512, 2300)],)),
    ],
)
def test_shared_prompt(length, multiple, rows, small_blocks):
    assert splash.start_multiple(length) == multiple
    segments = shared_row(length, *rows)
    arrays = draw(len(rows), length, heads=2, shared=1, width=32)
    assert_agrees(interpreted, arrays, SharedPrompt(jnp.asarray(segments)), segments > 0)


@pytest.mark.quick
def test_where_completions_may_begin():
    """The index and two multiples of it in 31 bits."""
    lengths = {1024: 1, 1025: 2, 2048: 2, 2049: 8, 4096: 8, 4097: 16, 8192: 16, 16384: 64}
    assert {length: splash.start_multiple(length) for length in lengths} == lengths
    for length, multiple in lengths.items():
        shift, bits = multiple.bit_length() - 1, (length - 1).bit_length()
        assert bits + 2 * (bits - shift) <= 31


@pytest.mark.parametrize(
    "mask",
    [
        Causal(jnp.zeros((1, 256), jnp.int32)),
        Segments(jnp.zeros((1, 256), jnp.int32)),
        SharedPrompt(jnp.zeros((1, 256), jnp.int32)),
    ],
)
def test_a_row_of_padding_is_finite(mask):
    arrays = draw(1, 256, heads=2, shared=1, width=32)
    out, pull = jax.vjp(lambda *arrays: interpreted(*arrays, mask), *arrays)
    assert np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for gradient in pull(out))


def test_scan_and_second_trace_build_the_kernel_once(monkeypatch):
    built = []
    make = splash.kernels.make_splash_mha
    monkeypatch.setattr(splash.kernels, "make_splash_mha", lambda *a, **k: built.append(a) or make(*a, **k))
    splash._kernel.cache_clear()
    q, k, v = draw(1, 384, heads=2, shared=2, width=32)
    mask = Causal(jnp.ones((1, 384), jnp.int32))

    def layers(q, scale):
        return jax.lax.scan(lambda x, s: (interpreted(x * s, k, v, mask), None), q, jnp.ones(3) * scale)[0].sum()

    jax.make_jaxpr(jax.grad(layers))(q, 1.0)
    jax.make_jaxpr(lambda q: layers(q, 2.0))(q)
    assert len(built) == 1


def test_blocks_follow_the_count():
    """Squares of `size` that hold a visible pair, `size^2` each, and 160,000 for every step of the grid."""

    def cost(dense: np.ndarray, size: int) -> int:
        count = len(dense) // size
        seen = [
            [dense[i * size : (i + 1) * size, j * size : (j + 1) * size].any() for j in range(count)]
            for i in range(count)
        ]
        return sum(map(sum, seen)) * size**2 + count * max(map(sum, seen)) * 160_000

    index = np.arange(1536)
    causal = index[:, None] >= index
    # Rows are padded to whole blocks, so 1,408 tokens are best cut as if they were 1,536.
    costs = {size: cost(causal, size) for size in (128, 256, 384, 512, 768)}
    assert min(costs, key=costs.get) == splash._block(("causal",), 1536) == splash._block(("causal",), 1408) == 768
    # Which completions see which, data decide: blocks as of a causal mask.
    assert splash._block(("shared", 1536), 1536) == 768
    # Nothing is hidden: the largest block. 6,400 patches are five of them.
    assert splash._block(("whole",), 6400) == 1280
