"""The training row of a group: the prompt once, then its G completions end to end.

Nothing is padded but the row's end: for 1,280 prompt tokens and 8 completions of 200 to 400 a row has 3,700 tokens,
where eight rows of prompt and completion have 12,600. Loss and gradient are those of the eight rows.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.errors import InputError
from vlaa_jax.models.attention import SharedPrompt
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.models.splash import start_multiple
from vlaa_jax.objectives.log_probabilities import token_log_probabilities
from vlaa_jax.processing.batches import Rows

ROW_MULTIPLE = 64  # of rows' lengths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedRows:
    """Groups in rows of T tokens.

    Attributes:
      rows: `[B, T]`; segment 1 is the prompt, 2, 3, ... its completions (`attention.SharedPrompt`).
      features: `[B, slots, D]` of a frozen tower; None when the tower trains, then it runs with the rest.
      places: `[B, G, C]` where in its row each token of a completion lies; after the end of one they mean nothing.
      lengths: `[B, G]` of the completions.
    """

    rows: Rows
    features: jax.Array | None
    places: jax.Array
    lengths: jax.Array


def row_tokens(prompts: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """Tokens `[B]` that groups need in a row of `length`: prompts of `[B]` tokens, completions of `[B, G]`."""
    multiple = start_multiple(length)
    return -(-prompts // multiple) * multiple + np.sum(-(-lengths // multiple) * multiple, axis=1)


def row_bucket(prompts: np.ndarray, lengths: np.ndarray, buckets: Sequence[int]) -> int:
    """The smallest T that holds rows of such prompts and completions.

    Raises:
      InputError: none does.
    """
    for length in sorted(buckets):
        if (needed := row_tokens(prompts, lengths, length).max()) <= length:
            return length
    raise InputError(f"a prompt and its completions take {needed} tokens, above the largest bucket {max(buckets)}")


def longest_row(prompt: int, completions: int, new_tokens: int) -> int:
    """The T, a multiple of `ROW_MULTIPLE`, that holds every row with such a prompt and so many completions."""
    length = ROW_MULTIPLE
    while row_tokens(np.asarray([prompt]), np.full((1, completions), new_tokens), length)[0] > length:
        length += ROW_MULTIPLE
    return length


def lay_out(
    prompts: Rows, features: jax.Array | None, completions: jax.Array, lengths: jax.Array, length: int
) -> SharedRows:
    """Rows of `length` tokens, in which they must have room (`row_tokens`).

    Args:
      prompts: `[B, P]`, right-padded.
      features: `[B, slots, D]` of a frozen tower, or None.
      completions: `[B, G, C]`.
      lengths: `[B, G]`.
      length: T.
    """
    multiple = start_multiple(length)
    batch, _, longest = completions.shape
    sizes = jnp.concatenate([jnp.sum(prompts.segments > 0, axis=1, keepdims=True), lengths], axis=1)
    ends = jnp.cumsum(-(-sizes // multiple) * multiple, axis=1)
    starts = jnp.pad(ends, ((0, 0), (1, 0)))[:, :-1]  # [B, 1 + G]
    index = jnp.arange(length)
    part = jnp.sum(index[:, None] >= starts[:, None, 1:], axis=-1)  # [B, T], 0 for the prompt
    of_part = lambda values: jnp.take_along_axis(values, part, axis=1)  # noqa: E731
    offset = index - of_part(starts)
    real = offset < of_part(sizes)
    is_prompt = (part == 0) & real
    in_prompt = jnp.minimum(offset, prompts.tokens.shape[1] - 1)
    from_prompt = lambda values: jnp.take_along_axis(values, in_prompt, axis=-1)  # noqa: E731
    in_completions = jnp.maximum(part - 1, 0) * longest + jnp.minimum(offset, longest - 1)
    drawn = jnp.take_along_axis(completions.reshape(batch, -1), in_completions, axis=1)
    # Positions of every completion go on from the prompt's largest.
    behind = jnp.max(jnp.where(prompts.segments > 0, prompts.positions, 0), axis=(0, 2))[:, None] + 1 + offset
    positions = jnp.take_along_axis(prompts.positions, jnp.broadcast_to(in_prompt, (3, *in_prompt.shape)), axis=2)
    rows = Rows(
        tokens=jnp.where(real, jnp.where(is_prompt, from_prompt(prompts.tokens), drawn), 0),
        segments=jnp.where(real, part + 1, 0),
        positions=jnp.where(real, jnp.where(is_prompt, positions, behind), 0),
        feature_index=jnp.where(is_prompt, from_prompt(prompts.feature_index), -1),
        vision=prompts.vision,
    )
    places = jnp.minimum(starts[:, 1:, None] + jnp.arange(longest), length - 1)
    return SharedRows(rows, features, places, lengths)


def completion_log_probabilities(
    model: Qwen2_5_VL,
    batch: SharedRows,
    features: jax.Array,
    *,
    temperature: float,
    dtype: jnp.dtype,
    remat: str,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each completion token, and entropy, both `[B, G, C]`; after an end they mean nothing.

    The state that predicts a completion's first token is that of the prompt's last, shared by all G; of a later one
    that of the token before it. The head runs on the states of all rows gathered, so it sees no padding.

    Args:
      model: the policy.
      batch: the rows.
      features: `[B, slots, D]` vision features.
      temperature: of the log-probabilities.
      dtype: compute dtype.
      remat: what a layer saves.
      chunk: tokens whose logits exist at once.
    """
    rows, places = batch.rows, batch.places
    count, length = rows.tokens.shape
    mask = SharedPrompt(rows.segments)
    states = model(rows.tokens, rows.positions, mask, features, rows.feature_index, dtype=dtype, remat=remat)
    index = jnp.arange(places.shape[2])
    last = jnp.sum(rows.segments == 1, axis=1)[:, None, None] - 1
    row_start = length * jnp.arange(count)[:, None, None]
    before = row_start + jnp.where(index == 0, last, places - 1)
    real = (index < batch.lengths[..., None]).reshape(-1)
    # The real ones first, in their order; a row has room for no more than its tokens.
    order = jnp.argsort(~real)[: min(real.size, count * length)]
    taken = lambda flat, at: flat.reshape(count * length, *flat.shape[2:])[at.reshape(-1)[order]]  # noqa: E731
    found = token_log_probabilities(
        taken(states, before),
        model.language.head[...],
        taken(rows.tokens, row_start + places),
        temperature=temperature,
        chunk=chunk,
        count=jnp.sum(real),
    )
    return tuple(jnp.zeros(real.shape).at[order].set(values).reshape(places.shape) for values in found)
