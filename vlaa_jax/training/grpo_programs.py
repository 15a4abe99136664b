"""The large programs of a GRPO step at every shape that its buckets allow, as calls to come."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vlaa_jax.ahead import Program, on_device, resized, rows_of, whole
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.batches import Rows, pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.programs import RolloutPrograms, copies, weights_shapes
from vlaa_jax.training import settings
from vlaa_jax.training.batch_sizes import GRPOSizes
from vlaa_jax.training.grpo import Groups, Scored, group_log_probabilities, take_groups
from vlaa_jax.training.state import TrainState
from vlaa_jax.training.update_programs import step_program, update_program
from vlaa_jax.training.updates import Updater


def grpo_programs(
    config: ConfigDict,
    counts: GRPOSizes,
    generator: Generator,
    row_buckets: Sequence[int],
    no_prompt: EncodedPrompt,
    state: TrainState,
    reference: Qwen2_5_VL | None,
    updater: Updater,
) -> list[Program]:
    """In the order in which a step needs them.

    Args:
      config, counts: of the run.
      generator: of the rollouts, with the buckets that steps may need.
      row_buckets: tokens of an update's rows.
      no_prompt: one without a token.
      state, reference, updater: of the training.
    """
    dtype = settings.compute_dtype(config)
    weights, out = weights_shapes(state.model, dtype), copies(state.model, dtype)
    chosen = whole(jax.ShapeDtypeStruct((config.updates.micro_batch,), jnp.int32))
    for width, length in itertools.product(generator.window_buckets, generator.prompt_buckets):
        prompts = resized(pad_prompts([no_prompt], length, width), counts.batch)
        rollout = RolloutPrograms(generator, weights, prompts, config.rollout.prompts)
        out += rollout.all()
        if config.rollout.oversample > 1:  # further prompts
            out += RolloutPrograms(generator, weights, prompts, counts.batch).all()
        groups, scored = step_shapes(config, resized(prompts, config.rollout.prompts), rollout)
        for row in row_buckets:
            static = {"length": row, "parts": counts.parts}
            taken = jax.eval_shape(functools.partial(take_groups, **static), groups, scored, chosen)
            name = f"rows of {row} tokens from prompts of {length}, {width} windows"
            out.append(Program(name, take_groups, (groups, scored, chosen), static))
            out += _update(config, state, reference, updater, *rows_of(taken), f"of {row} tokens, {width} windows")
    return out


def step_shapes(config: ConfigDict, prompts: Rows, rollout: RolloutPrograms) -> tuple[Groups, Scored]:
    """Of a whole step's completions, with layouts; `prompts` have their patches."""
    completions, frozen = rollout.completions, config.model.freeze_vision
    groups = Groups(
        dataclasses.replace(prompts, vision=None) if frozen else prompts,
        rollout.features if frozen else None,
        completions.tokens,
        completions.lengths,
    )
    number = completions.log_probability
    rewarded = number.shape if config.rewards.process else number.shape[:2]
    return groups, Scored(
        old=number,
        reference=None,
        advantages=rows_of(jax.ShapeDtypeStruct(rewarded, jnp.float32)),
        mask=rows_of(jax.ShapeDtypeStruct(number.shape, jnp.bool_)),
        importance=number if config.objective.importance_cap else None,
    )


def _update(
    config: ConfigDict,
    state: TrainState,
    reference: Qwen2_5_VL | None,
    updater: Updater,
    part: jax.ShapeDtypeStruct,
    scored: Scored,
    sizes: str,
) -> list[Program]:
    out, static = [], {"policy": settings.policy(config)}
    if config.rollout.ahead:
        out.append(Program(f"old log-probabilities {sizes}", group_log_probabilities, (state.model, part), static))
    if reference is not None:
        out.append(Program(f"reference {sizes}", group_log_probabilities, (on_device(reference), part), static))
        scored = dataclasses.replace(scored, reference=scored.old)
    batch = (part, scored, whole(jax.ShapeDtypeStruct((), jnp.float32)))
    return [*out, update_program(updater, state, batch, sizes), step_program(updater, state, batch)]
