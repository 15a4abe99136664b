"""GRPO's device programs: log-probabilities of groups and the loss of a micro-batch of groups."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.accumulation import Metrics, WeightedSum
from vlaa_jax.objectives.grpo import GRPOObjective, grpo_loss
from vlaa_jax.objectives.shared_prompt import SharedRows, completion_log_probabilities, lay_out
from vlaa_jax.processing.batches import Rows
from vlaa_jax.sharding import ROWS, TRAINING, P, keep_parameters, keep_rows, over_rows, row_specs, specs
from vlaa_jax.training.state import partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """The prompts of a step with their sampled completions.

    Attributes:
      prompts: `[B, P]`.
      features: `[B, slots, D]` of a frozen tower; None when the tower trains, then it runs with the rest.
      tokens: `[B, G, C]`.
      lengths: `[B, G]`.
    """

    prompts: Rows
    features: jax.Array | None
    tokens: jax.Array
    lengths: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scored:
    """What the loss needs beside the groups, one number a token or a completion.

    Attributes:
      old: `[B, G, C]` log-probabilities of the sampling policy, fixed for all updates of a step.
      reference: `[B, G, C]` of the frozen start, None without a KL penalty.
      advantages: `[B, G]`, or `[B, G, C]` where steps have rewards of their own.
      mask: `[B, G, C]` tokens that count.
      importance: `[B, G, C]` weights for sampler/trainer mismatch, None for 1.
    """

    old: jax.Array
    reference: jax.Array | None
    advantages: jax.Array
    mask: jax.Array
    importance: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Policy:
    """How log-probabilities are computed; hashable, static in every program.

    Attributes:
      temperature: of sampling; the log-probabilities are taken there, without truncation.
      dtype: compute dtype.
      remat: what a layer saves.
      chunk: tokens whose logits exist at once.
    """

    temperature: float
    dtype: str
    remat: str
    chunk: int

    def log_probabilities(self, model: Qwen2_5_VL, batch: SharedRows) -> tuple[jax.Array, jax.Array]:
        """`[B, G, C]` log-probabilities of the completions' tokens, and entropies; after the end they mean nothing."""
        dtype = jnp.dtype(self.dtype)
        features = batch.features
        if features is None:
            features = model.vision(batch.rows.vision, dtype, self.remat)
        return completion_log_probabilities(
            model,
            batch,
            features,
            temperature=self.temperature or 1.0,
            dtype=dtype,
            remat=self.remat,
            chunk=self.chunk,
        )


@functools.partial(jax.jit, static_argnames=("dtype", "freeze_vision"))
def reference_weights(model: Qwen2_5_VL, *, dtype: str, freeze_vision: bool) -> Qwen2_5_VL:
    """A copy for log-probabilities: every weight but the norms' in the dtype in which it would be used.

    So it gives the same numbers as the float32 weights, from half the memory. Of a frozen vision tower the rollout's
    features serve; it is left out.
    """

    def keep(path: tuple, leaf: jax.Array) -> jax.Array:
        is_norm = "norm" in jax.tree_util.keystr(path, simple=True, separator=".")
        return jnp.copy(leaf if is_norm else leaf.astype(dtype))

    used, _ = partition(model, freeze_vision=freeze_vision)
    return keep_parameters(jax.tree_util.tree_map_with_path(keep, used), TRAINING)


@functools.partial(jax.jit, static_argnames="policy")
def group_log_probabilities(model: Qwen2_5_VL, batch: SharedRows, *, policy: Policy) -> jax.Array:
    """`[B, G, C]` without gradient: the reference's, or a recomputation of the policy's."""
    run = over_rows(
        lambda model, batch: policy.log_probabilities(model, batch)[0],
        (specs(model, TRAINING), row_specs(batch)),
        P(ROWS),
        split_weights=True,
    )
    return run(model, batch)


def group_loss(
    model: Qwen2_5_VL,
    batch: tuple[SharedRows, Scored, jax.Array],
    *,
    policy: Policy,
    objective: GRPOObjective,
) -> tuple[jax.Array, Metrics]:
    """Loss sum and metrics of a micro-batch; the third part of the batch is the KL coefficient."""
    rows, scored, kl_coefficient = batch
    log_probability, entropy = policy.log_probabilities(model, rows)
    loss, metrics = grpo_loss(
        log_probability,
        scored.old,
        scored.reference,
        scored.advantages,
        scored.mask,
        objective=objective,
        kl_coefficient=kl_coefficient,
        importance_weights=scored.importance,
    )
    counted = jnp.sum(scored.mask, dtype=jnp.float32)
    metrics["entropy"] = WeightedSum(jnp.sum(jnp.where(scored.mask, entropy, 0.0)), counted)
    segments = rows.rows.segments
    metrics["real_token_share"] = WeightedSum(jnp.sum(segments > 0, dtype=jnp.float32), jnp.float32(segments.size))
    return loss, metrics


@jax.jit
def put_tokens(whole: jax.Array, part: jax.Array, chosen: jax.Array) -> jax.Array:
    """A step's `[B, G, C]` with the values that `take_groups` took apart.

    Args:
      whole: what stays where nothing is put.
      part: `[b * parts, G / parts, C]`.
      chosen: `[b]` places of the groups.
    """
    return keep_rows(whole.at[chosen].set(part.reshape(len(chosen), *whole.shape[1:])))


@functools.partial(jax.jit, static_argnames=("length", "parts"))
def take_groups(
    groups: Groups, scored: Scored, chosen: jax.Array, *, length: int, parts: int = 1
) -> tuple[SharedRows, Scored]:
    """Some groups of a step in rows for the update.

    Args:
      groups, scored: of the whole step.
      chosen: `[b]` places of the groups.
      length: T of a row, in which they have room (`shared_prompt.row_bucket`).
      parts: rows that each group is split over; every one has the prompt.

    Returns:
      `(SharedRows, Scored)` of `b * parts` rows with `G / parts` completions.
    """
    rows = jnp.repeat(chosen, parts)
    split = lambda array: array[chosen].reshape(len(rows), -1, *array.shape[2:])  # noqa: E731
    of_prompt = lambda array: array[rows]  # noqa: E731
    prompts = Rows(
        of_prompt(groups.prompts.tokens),
        of_prompt(groups.prompts.segments),
        groups.prompts.positions[:, rows],
        of_prompt(groups.prompts.feature_index),
        jax.tree.map(of_prompt, groups.prompts.vision),
    )
    features = None if groups.features is None else of_prompt(groups.features)
    shared = lay_out(prompts, features, split(groups.tokens), split(groups.lengths), length)
    return keep_rows((shared, jax.tree.map(split, scored)))
