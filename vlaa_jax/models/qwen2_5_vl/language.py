"""The language model: grouped-query attention with biases on q, k, v; three-axis rotary positions; gated MLP."""

from collections.abc import Callable

import jax
from flax import nnx

from vlaa_jax.models.attention import Mask, attention
from vlaa_jax.models.layers import REMAT_POLICIES, dense, ones, rms_norm, weights, zeros
from vlaa_jax.models.qwen2_5_vl.config import TextConfig
from vlaa_jax.models.qwen2_5_vl.rope import Rotation, language_rotation, rotate
from vlaa_jax.sharding import gather

# (queries [..., N, H], keys [..., K, H], values [..., K, H]) -> [..., N, H]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class DecoderLayer(nnx.Module):
    """Pre-norm attention and gated MLP. Weights of all layers are stacked `[L, ...]`."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        layers, width, hidden, head = config.layers, config.width, config.mlp_width, config.head_width
        self.attention_norm = ones((layers, width))
        self.query = weights(rngs, (layers, width, config.query_heads, head), width)
        self.query_bias = zeros((layers, config.query_heads, head))
        self.key = weights(rngs, (layers, width, config.key_value_heads, head), width)
        self.key_bias = zeros((layers, config.key_value_heads, head))
        self.value = weights(rngs, (layers, width, config.key_value_heads, head), width)
        self.value_bias = zeros((layers, config.key_value_heads, head))
        self.output = weights(rngs, (layers, config.query_heads, head, width), width)
        self.mlp_norm = ones((layers, width))
        self.gate = weights(rngs, (layers, width, hidden), width)
        self.up = weights(rngs, (layers, width, hidden), width)
        self.down = weights(rngs, (layers, hidden, width), hidden)

    def __call__(self, x: jax.Array, rotation: Rotation, attend: Attend, epsilon: float) -> jax.Array:
        """One layer (weights without the leading L).

        Args:
          x: `[..., D]`.
          rotation: of the positions.
          attend: mixes tokens; training, prefill and decode differ in nothing else.

        Returns:
          `[..., D]`.
        """
        h = rms_norm(x, self.attention_norm, epsilon)
        q = dense(h, self.query, self.query_bias)
        k = dense(h, self.key, self.key_bias)
        v = dense(h, self.value, self.value_bias)
        mixed = attend(rotate(q, rotation), rotate(k, rotation), v)
        x = x + dense(mixed, self.output, contracted=2)
        h = rms_norm(x, self.mlp_norm, epsilon)
        return x + dense(jax.nn.silu(dense(h, self.gate)) * dense(h, self.up), self.down)


class LanguageModel(nnx.Module):
    """Embeddings in, normalised hidden states out; the head is applied by whoever needs logits."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = weights(rngs, (config.vocabulary, config.width), config.width)
        self.layers = DecoderLayer(config, rngs)
        self.norm = ones((config.width,))
        self.untied_head = None if config.tied_head else weights(rngs, (config.vocabulary, config.width), config.width)

    @property
    def head(self) -> nnx.Param:
        """`[V, D]`."""
        return self.embedding if self.untied_head is None else self.untied_head

    def rotation(self, positions: jax.Array) -> Rotation:
        """Of `[3, ...]` positions."""
        return language_rotation(positions, self.config.mrope_section, self.config.head_width, self.config.rope_theta)

    @jax.named_scope("language")
    def __call__(self, x: jax.Array, positions: jax.Array, mask: Mask, remat: str = "layer") -> jax.Array:
        """All tokens at once, as in training.

        Args:
          x: `[B, T, D]` embeddings.
          positions: `[3, B, T]`.
          mask: who sees whom.
          remat: what a layer saves, a key of `REMAT_POLICIES`.

        Returns:
          `[B, T, D]` hidden states after the last norm.
        """
        rotation = self.rotation(positions)

        @REMAT_POLICIES[remat]
        def step(h: jax.Array, layer: DecoderLayer) -> tuple[jax.Array, None]:
            layer = gather(layer, h.dtype, "layers")
            return layer(h, rotation, lambda q, k, v: attention(q, k, v, mask), self.config.norm_epsilon), None

        x, _ = jax.lax.scan(step, x, self.layers)
        return self.normalise(x)

    def normalise(self, x: jax.Array) -> jax.Array:
        """The last norm."""
        return rms_norm(x, self.norm, self.config.norm_epsilon)
