"""The policy: vision features take the places of image tokens among the text embeddings."""

import jax
import jax.numpy as jnp
from flax import nnx

from vlaa_jax.models.attention import Mask
from vlaa_jax.models.qwen2_5_vl.config import ModelConfig
from vlaa_jax.models.qwen2_5_vl.language import LanguageModel
from vlaa_jax.models.qwen2_5_vl.vision import VisionTower
from vlaa_jax.sharding import look_up


class Qwen2_5_VL(nnx.Module):
    """A pytree of float32 master weights; compute follows the dtype of the activations."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.vision = VisionTower(config.vision, rngs)
        self.language = LanguageModel(config.text, rngs)

    def embed(self, tokens: jax.Array, features: jax.Array | None, feature_index: jax.Array | None, dtype: jnp.dtype):
        """Token embeddings with vision features put in.

        Args:
          tokens: `[B, T]`.
          features: `[B, slots, D]` from the vision tower, None for text alone.
          feature_index: `[B, T]` slot of each vision token, -1 on text.

        Returns:
          `[B, T, D]` in `dtype`.
        """
        text = look_up(self.language.embedding[...], tokens, dtype)
        if features is None:
            return text
        taken = jnp.take_along_axis(features.astype(dtype), jnp.maximum(feature_index, 0)[..., None], axis=1)
        return jnp.where((feature_index >= 0)[..., None], taken, text)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: Mask,
        features: jax.Array | None = None,
        feature_index: jax.Array | None = None,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "layer",
    ) -> jax.Array:
        """Hidden states of all tokens.

        Args:
          tokens: `[B, T]`.
          positions: `[3, B, T]`.
          mask: who sees whom.
          features, feature_index: see `embed`.
          dtype: compute dtype.
          remat: what a layer saves, a key of `REMAT_POLICIES`.

        Returns:
          `[B, T, D]`; logits are `states @ head.T` (`language.head`, `[V, D]`).
        """
        return self.language(self.embed(tokens, features, feature_index, dtype), positions, mask, remat)
