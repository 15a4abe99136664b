"""The vision tower: windowed and full-attention blocks over patches, then a merger that makes language tokens.

Qwen2-VL's tower (Wang et al., 2024, arXiv 2409.12191) differs in its blocks and in the merger's norm, and all of its
layers are full.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from vlaa_jax.models.attention import Segments, attention
from vlaa_jax.models.layers import REMAT_POLICIES, dense, layer_norm, ones, rms_norm, weights, zeros
from vlaa_jax.models.qwen2_5_vl.config import QWEN2, VisionConfig
from vlaa_jax.models.qwen2_5_vl.rope import Rotation, rotate, vision_rotation
from vlaa_jax.processing.vision_plan import VisionArrays
from vlaa_jax.sharding import gather


class PatchAttention(nnx.Module):
    """The attention of a block. Weights of all blocks are stacked on a leading axis."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        depth, width = config.depth, config.width
        heads = (config.heads, config.head_width)
        self.qkv = weights(rngs, (depth, width, 3, *heads), width)
        self.qkv_bias = zeros((depth, 3, *heads))
        self.output = weights(rngs, (depth, *heads, width), width)
        self.output_bias = zeros((depth, width))

    def attend(self, x: jax.Array, rotation: Rotation, segments: jax.Array) -> jax.Array:
        """Mixes the patches `[B, T, D]` of each of `segments` `[B, T]`."""
        qkv = dense(x, self.qkv, self.qkv_bias)
        q, k = rotate(qkv[:, :, 0], rotation), rotate(qkv[:, :, 1], rotation)
        mixed = attention(q, k, qkv[:, :, 2], Segments(segments))
        return dense(mixed, self.output, self.output_bias, contracted=2)


class VisionBlock(PatchAttention):
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        depth, width, hidden = config.depth, config.width, config.mlp_width
        self.norm1 = ones((depth, width))
        self.norm2 = ones((depth, width))
        self.gate = weights(rngs, (depth, width, hidden), width)
        self.gate_bias = zeros((depth, hidden))
        self.up = weights(rngs, (depth, width, hidden), width)
        self.up_bias = zeros((depth, hidden))
        self.down = weights(rngs, (depth, hidden, width), hidden)
        self.down_bias = zeros((depth, width))

    def __call__(self, x: jax.Array, rotation: Rotation, segments: jax.Array, epsilon: float) -> jax.Array:
        """One block (weights without the leading axis) on `[B, T, D]`; attention stays inside `segments` `[B, T]`."""
        x = x + self.attend(rms_norm(x, self.norm1, epsilon), rotation, segments)
        h = rms_norm(x, self.norm2, epsilon)
        gate = jax.nn.silu(dense(h, self.gate, self.gate_bias))
        return x + dense(gate * dense(h, self.up, self.up_bias), self.down, self.down_bias)


class Qwen2VisionBlock(PatchAttention):
    """Pre-norm attention and an MLP of two layers; the norms are layer norms."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        depth, width, hidden = config.depth, config.width, config.mlp_width
        self.norm1 = ones((depth, width))
        self.norm1_bias = zeros((depth, width))
        self.norm2 = ones((depth, width))
        self.norm2_bias = zeros((depth, width))
        self.mlp_in = weights(rngs, (depth, width, hidden), width)
        self.mlp_in_bias = zeros((depth, hidden))
        self.mlp_out = weights(rngs, (depth, hidden, width), hidden)
        self.mlp_out_bias = zeros((depth, width))

    def __call__(self, x: jax.Array, rotation: Rotation, segments: jax.Array, epsilon: float) -> jax.Array:
        """As `VisionBlock`."""
        x = x + self.attend(layer_norm(x, self.norm1, self.norm1_bias, epsilon), rotation, segments)
        h = layer_norm(x, self.norm2, self.norm2_bias, epsilon)
        h = dense(h, self.mlp_in, self.mlp_in_bias)
        h = h * jax.nn.sigmoid(1.702 * h)  # QuickGELU, as the published weights were trained
        return x + dense(h, self.mlp_out, self.mlp_out_bias)


class VisionTower(nnx.Module):
    """Patches in window order to merged features in window order."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.config = config
        joined = config.width * config.merge**2
        self.patch_embedding = weights(rngs, (config.patch_values, config.width), config.patch_values)
        qwen2 = config.model_type == QWEN2
        self.blocks = Qwen2VisionBlock(config, rngs) if qwen2 else VisionBlock(config, rngs)
        self.merger_norm = ones((config.width,))
        self.merger_norm_bias = zeros((config.width,)) if qwen2 else None
        self.merger_in = weights(rngs, (joined, joined), joined)
        self.merger_in_bias = zeros((joined,))
        self.merger_out = weights(rngs, (joined, config.output_width), joined)
        self.merger_out_bias = zeros((config.output_width,))

    @jax.named_scope("vision")
    def __call__(self, vision: VisionArrays, dtype: jnp.dtype, remat: str = "layer") -> jax.Array:
        """Features of every merged slot.

        Args:
          vision: patches of each row, laid out window by window.
          dtype: compute dtype.
          remat: what a block saves, a key of `REMAT_POLICIES`.

        Returns:
          `[B, W * M / merge^2, D]`; slots of padding hold numbers that nothing reads.
        """
        config = self.config
        rows, windows, slots = vision.valid.shape
        x = dense(vision.patches.astype(dtype), gather(self.patch_embedding, dtype, "vision.patch_embedding"))
        rotation = vision_rotation(vision.ids, config.head_width, config.rope_theta)
        # A window layer is a batch of [W, M] dense attentions; a full layer sees all patches of its own frame.
        window_shape, full_shape = (rows * windows, slots), (rows, windows * slots)
        inside_window = vision.valid.astype(jnp.int32)
        inside_frame = vision.frames[..., None] * vision.valid

        def run(x: jax.Array, blocks: VisionBlock | Qwen2VisionBlock, full: bool) -> jax.Array:
            shape = full_shape if full else window_shape
            segments = (inside_frame if full else inside_window).reshape(shape)
            turned = Rotation(*(part.reshape(*shape, -1) for part in rotation))

            @REMAT_POLICIES[remat]
            def step(h: jax.Array, block: VisionBlock | Qwen2VisionBlock) -> tuple[jax.Array, None]:
                return gather(block, h.dtype, "vision.blocks")(h, turned, segments, config.norm_epsilon), None

            return jax.lax.scan(step, x.reshape(*shape, -1), blocks)[0]

        kinds = [layer in config.full_attention_layers for layer in range(config.depth)]
        start = 0
        for full, same in itertools.groupby(kinds):
            stop = start + len(list(same))
            x = run(x, jax.tree.map(lambda p, a=start, b=stop: p[a:b], self.blocks), full)
            start = stop
        x = self._merger_norm(x.reshape(rows, -1, config.width))
        x = x.reshape(rows, windows * slots // config.merge**2, -1)
        x = jax.nn.gelu(
            dense(x, gather(self.merger_in, dtype, "vision.merger_in"), self.merger_in_bias), approximate=False
        )
        return dense(x, gather(self.merger_out, dtype, "vision.merger_out"), self.merger_out_bias)

    def _merger_norm(self, x: jax.Array) -> jax.Array:
        if self.merger_norm_bias is None:
            return rms_norm(x, self.merger_norm, self.config.norm_epsilon)
        return layer_norm(x, self.merger_norm, self.merger_norm_bias, self.config.norm_epsilon)
