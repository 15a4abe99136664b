"""The large programs of a GRPO run at every shape that its buckets allow, to be compiled ahead."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.sampler import decode_program, encode_images, prefill, sampling_weights
from vlaa_jax.sharding import ROLLOUT, platform
from vlaa_jax.training import settings
from vlaa_jax.training.ahead import Program, on_device, prompt_rows, rows_of, step_program, update_program, weights_of
from vlaa_jax.training.batch_sizes import GRPOSizes
from vlaa_jax.training.grpo import Groups, Scored, group_log_probabilities, take_groups
from vlaa_jax.training.state import TrainState
from vlaa_jax.training.updates import Updater


def grpo_programs(
    config: ConfigDict,
    counts: GRPOSizes,
    buckets: Mapping[str, Sequence[int]],
    no_prompt: EncodedPrompt,
    state: TrainState,
    reference: Qwen2_5_VL | None,
    updater: Updater,
    sampling: Sampling,
) -> list[Program]:
    """In the order in which a step needs them.

    Args:
      config, counts: of the run.
      buckets: `prompt_buckets`, `window_buckets` and `row_buckets` that steps may need.
      no_prompt: one without a token.
      state, reference, updater: of the training.
      sampling: the rollout's distribution.
    """
    lengths, windows, rows = (buckets[name] for name in ("prompt_buckets", "window_buckets", "row_buckets"))
    copy = functools.partial(sampling_weights, dtype=settings.compute_dtype(config))
    weights = weights_of(jax.eval_shape(copy, state.model), ROLLOUT)
    out: dict[str, Program] = {}  # by name: not every program depends on every bucket
    for width, length in itertools.product(windows, lengths):
        prompts = prompt_rows(no_prompt, counts.batch, length, width)
        features = rows_of(jax.eval_shape(encode_images, weights, prompts.vision))
        found = _rollout(config, counts, weights, prompts, features, sampling)
        groups, scored = _step(config, no_prompt, length, width, features)
        chosen = jax.ShapeDtypeStruct((config.updates.micro_batch,), jnp.int32)
        for row in rows:
            static = {"length": row, "parts": counts.parts}
            taken = jax.eval_shape(functools.partial(take_groups, **static), groups, scored, chosen)
            name = f"rows of {row} tokens from prompts of {length}, {width} windows"
            found.append(Program(name, take_groups, (groups, scored, chosen), static))
            found += _update(config, state, reference, updater, *rows_of(taken), f"of {row} tokens, {width} windows")
        out = {program.name: program for program in found} | out
    return list(out.values())


def _rollout(
    config: ConfigDict,
    counts: GRPOSizes,
    weights: jax.ShapeDtypeStruct,
    prompts: jax.ShapeDtypeStruct,
    features: jax.ShapeDtypeStruct,
    sampling: Sampling,
) -> list[Program]:
    rollout, text = config.rollout, dataclasses.replace(prompts, vision=None)
    length, width = prompts.tokens.shape[1], prompts.vision.frames.shape[1]
    prefix = rows_of(jax.eval_shape(prefill, weights, text, features))
    number, draws = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((counts.batch, 2), jnp.uint32)
    static = {"group": rollout.group_size, "new_tokens": rollout.new_tokens, "sampling": sampling}
    given = (weights, prefix, number, number, rows_of(draws))
    return [
        Program(f"images of {width} windows", encode_images, (weights, prompts.vision)),
        Program(f"prefill of {length} tokens, {width} windows", prefill, (weights, text, features)),
        Program(f"decode of {rollout.new_tokens} tokens behind {length}", decode_program(platform()), given, static),
    ]


def _step(
    config: ConfigDict, no_prompt: EncodedPrompt, length: int, width: int, features: jax.ShapeDtypeStruct
) -> tuple[Groups, Scored]:
    """Shapes of a whole step's completions."""
    rollout, frozen = config.rollout, config.model.freeze_vision
    rows = prompt_rows(no_prompt, rollout.prompts, length, width)
    kept = None
    if frozen:
        rows = dataclasses.replace(rows, vision=None)
        kept = jax.ShapeDtypeStruct((rollout.prompts, *features.shape[1:]), features.dtype)
    each = (rollout.prompts, rollout.group_size)
    tokens = lambda dtype: jax.ShapeDtypeStruct((*each, rollout.new_tokens), dtype)  # noqa: E731
    number, importance = tokens(jnp.float32), tokens(jnp.float32) if config.objective.importance_cap else None
    groups = Groups(rows, kept, tokens(jnp.int32), jax.ShapeDtypeStruct(each, jnp.int32))
    scored = Scored(number, None, jax.ShapeDtypeStruct(each, jnp.float32), tokens(jnp.bool_), importance)
    return rows_of((groups, scored))


def _update(
    config: ConfigDict,
    state: TrainState,
    reference: Qwen2_5_VL | None,
    updater: Updater,
    part: jax.ShapeDtypeStruct,
    scored: Scored,
    sizes: str,
) -> list[Program]:
    out = []
    if reference is not None:
        static = {"policy": settings.policy(config)}
        out.append(Program(f"reference {sizes}", group_log_probabilities, (on_device(reference), part), static))
        scored = dataclasses.replace(scored, reference=scored.old)
    batch = (part, scored, jax.ShapeDtypeStruct((), jnp.float32))
    return [*out, update_program(updater, state, batch, sizes), step_program(updater, state, batch)]
