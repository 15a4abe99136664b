"""Splash attention on TPU: blocks that a mask hides are not computed, and no score matrix is stored."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from vlaa_jax.models.layers import ATTENTION
from vlaa_jax.sharding import over_heads

_LANES = 128  # the kernel's blocks are multiples of it
_LARGEST_BLOCK = 1280  # the backward kernels of this size still fit into 16 MiB of vector memory
_SHORTEST = 256  # tokens; a shorter row is one block: plain products are as good
# Pairs of a query and a key whose scores take as long as one more step of the kernel's grid (about 0.35 us), at half of
# a chip's peak: 67,000 on v5e, 160,000 on v5p, 310,000 on v6e. By this count the middle one costs no preset more than
# 11 % on any of the three.
_PAIRS_OF_A_STEP = 160_000


def start_multiple(length: int) -> int:
    """Of what the completions of a shared prompt must begin at multiples, in rows of `length` tokens.

    The mask knows a query by 31 bits: its index, where its completion begins and where the prompt ends. The smallest
    power of two for which all three have room.
    """
    return 1 << _bits(length)[1]


def _bits(length: int) -> tuple[int, int]:
    """Of an index in a row, and how many of its lowest a multiple of `start_multiple` leaves at 0."""
    index = (length - 1).bit_length()
    return index, max(0, -((31 - 3 * index) // 2))


def _codes(segments: jax.Array, length: int) -> jax.Array:
    """Those bits of every query, `[T]`, from the row's segments `[T]`; padding behind `length` may get any."""
    bits, low = _bits(length)
    index = jnp.arange(len(segments))
    begins = (segments > 1) & (segments != jnp.pad(segments, (1, 0))[:-1])
    start = jax.lax.cummax(jnp.where(begins, index, 0))
    prompt = jnp.min(jnp.where(begins, index, length - 1))
    return index | start >> low << bits | prompt >> low << 2 * bits - low


class _SharedPromptMask(masks._ComputableMask):
    """`attention.SharedPrompt` in rows of `length` tokens and padding to `padded`, read from the queries' codes."""

    def __init__(self, padded: int, length: int):
        self.sizes = (padded, length)
        bits, low = _bits(length)

        # Bit operations: an integer division in a mask does not lower from a host without a TPU.
        def visible(code: np.ndarray | jax.Array, key: np.ndarray | jax.Array):
            query, start = code & ((1 << bits) - 1), (code >> bits & ((1 << bits - low) - 1)) << low
            prompt = code >> 2 * bits - low << low
            return (query >= key) & ((key < prompt) | (key >= start))

        super().__init__((padded, padded), visible)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SharedPromptMask) and self.sizes == other.sizes

    def __hash__(self) -> int:
        return hash((type(self), self.sizes))


def fits(length: int) -> bool:
    """Whether the kernel is for rows of `length` tokens."""
    return length >= _SHORTEST


def causal(queries: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array, interpret: bool) -> jax.Array:
    """`attention` with `Causal(segments)`."""
    return _attend(queries, keys, values, segments, ("causal",), interpret)


def whole(queries: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array, interpret: bool) -> jax.Array:
    """`attention` with `Segments(segments)`."""
    return _attend(queries, keys, values, segments, ("whole",), interpret)


def shared_prompt(
    queries: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array, interpret: bool
) -> jax.Array:
    """`attention` with `SharedPrompt(segments)`."""
    return _attend(queries, keys, values, segments, ("shared", queries.shape[1]), interpret)


def _attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, segments: jax.Array, mask: tuple, interpret: bool
) -> jax.Array:
    """Every chip runs the kernel on its own heads. Rows are padded to whole blocks; padding is segment 0."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        length = q.shape[1]
        block = _block(mask, length)
        kernel = _kernel(mask, _round_up(length, block), block, q.shape[2], interpret)
        pad = lambda x: jnp.pad(x, ((0, 0), (0, -length % block)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
        q, k, v = (pad(x).swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))

        def of_row(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
            if mask[0] != "shared":
                return kernel(q, k, v, kernels.SegmentIds(segments, segments))
            real = (segments > 0).astype(jnp.int32)  # which completion a token is of, the codes tell
            codes = _codes(segments, length)
            return _with(kernel, lambda info: {"q_sequence": codes})(q, k, v, kernels.SegmentIds(real, real))

        with jax.named_scope(_visited_blocks(kernel)):
            out = jax.vmap(of_row)(q, k, v, pad(segments))
        return out.swapaxes(1, 2)[:, :length]

    return over_heads(run, 2)(queries, keys, values, segments)


def _with(
    kernel: kernels.SplashAttentionKernel, fields: Callable[[Any], dict[str, Any]]
) -> kernels.SplashAttentionKernel:
    """The kernel with some fields of each of its lists of blocks replaced."""
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    return kernels.SplashAttentionKernel(*(info and info._replace(**fields(info)) for info in infos), **kernel.kwargs)


def _mask(mask: tuple, length: int) -> masks.Mask:
    kind, *sizes = mask
    shape = (length, length)
    match kind:
        case "causal":
            return masks.CausalMask(shape)
        case "whole":
            return masks.FullMask(shape)
        case "shared":
            return _SharedPromptMask(length, *sizes)


@functools.lru_cache
def _block(mask: tuple, length: int) -> int:
    """Side of the blocks: small ones compute less of what the mask hides, large ones take fewer steps."""
    sizes = range(_LANES, min(_LARGEST_BLOCK, _round_up(length, _LANES)) + 1, _LANES)
    longest = max(_round_up(length, size) for size in sizes)
    whole = _mask(("causal",) if mask[0] == "shared" else mask, longest)  # which completions see which, data decide
    # Squares of the smallest size that hold a visible pair.
    seen = np.stack(
        [
            whole[start : start + _LANES, 0:longest].reshape(_LANES, -1, _LANES).any((0, 2))
            for start in range(0, longest, _LANES)
        ]
    )

    def cost(size: int) -> int:
        count, part = _round_up(length, size) // size, size // _LANES
        blocks = seen[: count * part, : count * part].reshape(count, part, count, part).any((1, 3))
        # Each row of blocks takes as many steps as the fullest one.
        return blocks.sum() * size**2 + count * blocks.sum(1).max() * _PAIRS_OF_A_STEP

    return min(sizes, key=cost)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@functools.lru_cache
def _kernel(mask: tuple, length: int, block: int, heads: int, interpret: bool) -> kernels.SplashAttentionKernel:
    """Built once for each mask; padding is left to the segment ids."""
    sizes = kernels.BlockSizes(
        **dict.fromkeys(
            (
                "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
                "block_q_dq", "block_kv_dq",
            ),
            block,
        )
    )  # fmt: skip
    make = functools.partial(
        kernels.make_splash_mha,
        masks.MultiHeadMask([_mask(mask, length)] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
    # The lists of blocks are constants: made in a thread of its own, where nothing is traced and no mesh is set.
    with ThreadPoolExecutor(1) as thread:
        kernel = jax.tree.map(np.asarray, thread.submit(make).result())
    if mask[0] != "shared":
        return kernel
    # A block that a row without completions would see whole (2) must look at the codes (1).
    return _with(kernel, lambda info: {"block_mask": np.minimum(info.block_mask, 1)})


def _visited_blocks(kernel: kernels.SplashAttentionKernel) -> str:
    """Blocks that one head computes forward, for dq and for dkv, as a scope from which `planning` counts FLOPs."""
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    counts = (np.count_nonzero(info.block_mask[0]) if info else 0 for info in infos)  # dq: None when dkv makes it too
    return "_".join(("visited_blocks", *map(str, counts)))
