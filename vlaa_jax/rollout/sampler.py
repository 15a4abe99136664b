"""What the decode loop starts from: the sampling copy of the weights, and prompts with their images, run once.

Prompts are whole (`WholePrompts`), or go on behind a first part that several of them share and that has run before
(`ContinuedPrompts`): a search that samples from many partial solutions of one question runs its images and its text
once.
"""

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp

from vlaa_jax.models.attention import Causal, attention, attention_behind
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.models.qwen2_5_vl.language import DecoderLayer
from vlaa_jax.models.qwen2_5_vl.vision import VisionTower
from vlaa_jax.processing.batches import Rows
from vlaa_jax.processing.vision_plan import VisionArrays
from vlaa_jax.sharding import (
    ROLLOUT,
    ROWS,
    TRAINING,
    P,
    gather,
    keep_caches,
    keep_parameters,
    over_rows,
    row_specs,
    specs,
    take_rows,
)

Tree = TypeVar("Tree")

# More patches fill no chip better, and the tower's activations would take more memory than the caches.
_PATCHES_AT_ONCE = 32_768
PREFILL_TOKENS = 2048  # of a chip at once: more make no product faster


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingWeights:
    """The policy in the layout of the decode loop: layers unstacked, everything in the compute dtype.

    Attributes:
      model: the policy with None in place of its stacked layers.
      layers: L layers without the leading axis.
    """

    model: Qwen2_5_VL
    layers: tuple[DecoderLayer, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """What the prompts leave behind.

    Attributes:
      keys, values: L arrays `[B, K, P, H]`.
      valid: `[B, P]`.
      state: `[B, D]` of the prompt's last real token, which predicts the first token of every completion.
      position: `[B]` of the completions' first token.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid: jax.Array
    state: jax.Array
    position: jax.Array


def sampling_weights(model: Qwen2_5_VL, dtype: jnp.dtype) -> SamplingWeights:
    """Makes the sampling copy of the weights.

    One layer after the other: what the chips bring together exists twice for a moment, and that is then one layer.
    """
    layers = range(model.config.text.layers)
    return SamplingWeights(
        copy_outside_layers(model, dtype=dtype),
        tuple(copy_layer(model.language.layers, i, dtype=dtype) for i in layers),
    )


@functools.partial(jax.jit, static_argnames="dtype")
def copy_outside_layers(model: Qwen2_5_VL, *, dtype: jnp.dtype) -> Qwen2_5_VL:
    """The sampling copy of all but the language model's layers, None in their place."""

    def outside(path: tuple, leaf: jax.Array) -> jax.Array | None:
        return None if jax.tree_util.keystr(path, simple=True, separator=".").startswith("language.layers.") else leaf

    return _bring_together(jax.tree_util.tree_map_with_path(outside, model), dtype, "")


@functools.partial(jax.jit, static_argnames="dtype")
def copy_layer(stacked: DecoderLayer, index: jax.Array, *, dtype: jnp.dtype) -> DecoderLayer:
    """The sampling copy of one layer of a stack."""
    return _bring_together(jax.tree.map(lambda leaf: leaf[index], stacked), dtype, "layers")


def _bring_together(weights: Tree, dtype: jnp.dtype, path: str) -> Tree:
    """From the training layout to that of the rollout; every chip casts its part before it sends it."""

    def copy(weights: Tree) -> Tree:
        return gather(jax.tree.map(lambda leaf: leaf.astype(dtype), weights), dtype, path)

    layout = specs(weights, TRAINING, path)
    return keep_parameters(over_rows(copy, (layout,), P(), split_weights=True)(weights), ROLLOUT, path)


@jax.jit
def encode_images(weights: SamplingWeights, vision: VisionArrays) -> jax.Array:
    """Features `[B, slots, D]` of the prompts' images; a frozen tower's serve reference and update too."""
    dtype = weights.model.language.embedding[...].dtype

    def encode(tower: VisionTower, vision: VisionArrays) -> jax.Array:
        count, windows, slots = vision.valid.shape
        most = max(1, _PATCHES_AT_ONCE // (windows * slots))
        at_once = max(size for size in range(1, count + 1) if count % size == 0 and size <= most)
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, at_once, *leaf.shape[1:]), vision)
        features = jax.lax.map(lambda part: tower(part, dtype), parts)
        return features.reshape(count, *features.shape[2:])

    return over_rows(encode, (P(), row_specs(vision)), P(ROWS), split_weights=False)(weights.model.vision, vision)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WholePrompts:
    """Prompts that run from their first token on.

    Attributes:
      rows: `[B, P]`, right-padded, without patches.
      features: `[B, slots, D]` of their images.
    """

    rows: Rows
    features: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """(B, columns of a slot)."""
        return self.rows.tokens.shape

    def run(self, weights: SamplingWeights, chosen: jax.Array) -> Prefix:
        """Some of them, by their places `[U]`; inside `over_rows`."""
        return prefill(weights, take_rows(self.rows, chosen), self.features[chosen])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ContinuedPrompts:
    """Prompts whose first part has run before.

    Attributes:
      kept: `[Q, ...]` what the first parts left behind (`keep_prompts`).
      first: `[B]` place of each prompt's first part among the Q of its chip.
      tokens: `[B, T]` what follows, right-padded.
      lengths: `[B]` of it; may be 0.
    """

    kept: Prefix
    first: jax.Array
    tokens: jax.Array
    lengths: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """(B, columns of a slot)."""
        return len(self.tokens), self.kept.valid.shape[1] + self.tokens.shape[1]

    def run(self, weights: SamplingWeights, chosen: jax.Array) -> Prefix:
        """Some of them, by their places `[U]`; inside `over_rows`."""
        first = self.first[chosen]
        kept = jax.tree.map(lambda leaf: leaf[first], self.kept)
        return extend(weights, kept, self.tokens[chosen], self.lengths[chosen])


Prompts = WholePrompts | ContinuedPrompts


@jax.jit
def keep_prompts(weights: SamplingWeights, rows: Rows, features: jax.Array) -> Prefix:
    """What prompts leave behind, for `ContinuedPrompts`: `[B, P]` rows without patches, `[B, slots, D]` features."""

    def run(weights: SamplingWeights, rows: Rows, features: jax.Array) -> Prefix:
        count, length = rows.tokens.shape
        most = max(1, PREFILL_TOKENS // length)
        at_once = max(size for size in range(1, count + 1) if count % size == 0 and size <= most)
        places = jnp.arange(count).reshape(-1, at_once)
        kept = jax.lax.map(lambda some: prefill(weights, take_rows(rows, some), features[some]), places)
        return keep_caches(jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), kept))

    return over_rows(run, (P(), *row_specs((rows, features))), P(ROWS), split_weights=False)(weights, rows, features)


def prefill(weights: SamplingWeights, rows: Rows, features: jax.Array) -> Prefix:
    """Runs prompts (right-padded) once; inside `over_rows`."""
    model, text = weights.model, weights.model.language
    dtype = text.embedding[...].dtype
    x = model.embed(rows.tokens, features, rows.feature_index, dtype)
    rotation = text.rotation(rows.positions)
    valid = rows.segments > 0
    keys, values = [], []

    def attend_and_keep(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        keys.append(k.transpose(0, 2, 1, 3))
        values.append(v.transpose(0, 2, 1, 3))
        return attention(q, k, v, Causal(rows.segments))

    for layer in weights.layers:
        x = layer(x, rotation, attend_and_keep, text.config.norm_epsilon)
    last = jnp.sum(valid, axis=1) - 1
    state = text.normalise(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0])
    position = jnp.max(jnp.where(valid, rows.positions, 0), axis=(0, 2)) + 1
    return Prefix(tuple(keys), tuple(values), valid, state, position)


def extend(weights: SamplingWeights, kept: Prefix, tokens: jax.Array, lengths: jax.Array) -> Prefix:
    """Runs what follows first parts that are kept; the two stand behind each other in a slot. Inside `over_rows`.

    Args:
      weights: the policy.
      kept: `[B, ...]`.
      tokens: `[B, T]` text, right-padded.
      lengths: `[B]` of it; one of 0 leaves the kept state.
    """
    text = weights.model.language
    order = jnp.arange(tokens.shape[1])
    valid = order < lengths[:, None]
    x = text.embedding[...][tokens]
    rotation = text.rotation(jnp.broadcast_to(kept.position[:, None] + order, (3, *tokens.shape)))
    keys, values = [], []

    def attend_and_keep(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        before = kept.keys[len(keys)], kept.values[len(keys)], kept.valid
        keys.append(k.transpose(0, 2, 1, 3))
        values.append(v.transpose(0, 2, 1, 3))
        return attention_behind(q, k, v, Causal(valid.astype(jnp.int32)), *before)

    for layer in weights.layers:
        x = layer(x, rotation, attend_and_keep, text.config.norm_epsilon)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    own = text.normalise(jnp.take_along_axis(x, last, axis=1)[:, 0])

    def join(first: tuple[jax.Array, ...], second: list[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(jnp.concatenate(pair, axis=2) for pair in zip(first, second, strict=True))

    return Prefix(
        keys=join(kept.keys, keys),
        values=join(kept.values, values),
        valid=jnp.concatenate([kept.valid, valid], axis=1),
        state=jnp.where((lengths > 0)[:, None], own, kept.state),
        position=kept.position + lengths,
    )
