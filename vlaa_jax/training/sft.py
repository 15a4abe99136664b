"""SFT's loss on the device: packed rows, of which only the states with a target meet the head."""

import dataclasses

import jax
import jax.numpy as jnp

from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.accumulation import Metrics, WeightedSum
from vlaa_jax.objectives.log_probabilities import token_log_probabilities
from vlaa_jax.objectives.sft import Normalisation, sft_loss, sft_weights
from vlaa_jax.processing.batches import Rows, Targets


@dataclasses.dataclass(frozen=True)
class PackedLoss:
    """Loss sum and metrics of a micro-batch of packed rows.

    Attributes:
      dtype: compute dtype.
      remat: what a layer saves.
      chunk: tokens whose logits exist at once.
      normalisation: see `sft_weights`.
    """

    dtype: str
    remat: str
    chunk: int
    normalisation: Normalisation

    def weights(self, targets: Targets) -> jax.Array:
        """`[B, S]` of each target in the loss."""
        return sft_weights(targets.segments > 0, targets.segments, normalisation=self.normalisation)

    def __call__(self, model: Qwen2_5_VL, batch: tuple[Rows, Targets]) -> tuple[jax.Array, Metrics]:
        rows, targets = batch
        dtype = jnp.dtype(self.dtype)
        features = model.vision(rows.vision, dtype, self.remat)
        mask = Causal(rows.segments)
        states = model(rows.tokens, rows.positions, mask, features, rows.feature_index, dtype, self.remat)
        # The head runs on the states that have a target, a quarter of a packed row or less.
        states = jnp.take_along_axis(states, targets.states[..., None], axis=1)
        log_probability, _ = token_log_probabilities(states, model.language.head[...], targets.tokens, chunk=self.chunk)
        loss, metrics = sft_loss(log_probability, self.weights(targets))
        real = jnp.sum(rows.segments > 0).astype(jnp.float32)
        metrics["real_token_share"] = WeightedSum(real, jnp.float32(rows.segments.size))
        return loss, metrics
