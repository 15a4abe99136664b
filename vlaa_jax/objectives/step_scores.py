"""Scores of all steps of all solutions of a question in one pass: a step is judged as the prefix that it ends.

The prompt and its images run once, the solutions behind it see it and themselves (`objectives.shared_prompt`): for 16
solutions of 10 steps one row in place of 160.
"""

import functools

import jax
import jax.numpy as jnp

from vlaa_jax.models.attention import SharedPrompt
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.objectives.shared_prompt import lay_out
from vlaa_jax.processing.solutions import Solutions
from vlaa_jax.sharding import ROWS, TRAINING, P, over_rows, row_specs, specs


def step_logits(model: RewardModel, batch: Solutions, *, dtype: jnp.dtype, remat: str = "layer") -> jax.Array:
    """Logits `[B, G, S]` in float32; where there is no step they mean nothing.

    Args:
      model: backbone and head.
      batch: of this process's rows.
      dtype: compute dtype.
      remat: what a layer saves, a key of `REMAT_POLICIES`.
    """
    features = model.vision(batch.prompts.vision, dtype, remat)
    shared = lay_out(batch.prompts, None, batch.tokens, batch.lengths, batch.length)
    rows = shared.rows
    mask = SharedPrompt(rows.segments)
    states = model(rows.tokens, rows.positions, mask, features, rows.feature_index, dtype=dtype, remat=remat)
    places = jnp.take_along_axis(shared.places, jnp.maximum(batch.ends, 0), axis=2)
    taken = jnp.take_along_axis(states, places.reshape(len(places), -1, 1), axis=1)
    return model.reward_head(taken).reshape(places.shape)


@functools.partial(jax.jit, static_argnames="dtype")
def score_steps(model: RewardModel, batch: Solutions, *, dtype: str) -> jax.Array:
    """`step_logits` without gradient, over the mesh; the model lies in the training layout."""
    run = over_rows(
        functools.partial(step_logits, dtype=jnp.dtype(dtype)),
        (specs(model, TRAINING), row_specs(batch)),
        P(ROWS),
        split_weights=True,
    )
    return run(model, batch)
