"""Group sampling: the prompt and its images run once, G completions share its cache.

Keys and values of the prompt lie in `[B, K, P, H]`, those of the completions in `[B, G, K, C, H]`, one array a layer.
The query heads of all G completions read the prefix together; the two attentions are merged by log-sum-exp: exact.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from vlaa_jax.models.attention import Causal, attend, attention, merge
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.models.qwen2_5_vl.language import DecoderLayer
from vlaa_jax.models.qwen2_5_vl.vision import VisionTower
from vlaa_jax.processing.batches import Rows
from vlaa_jax.processing.vision_plan import VisionArrays
from vlaa_jax.rollout.draw import Drawn, Sampling, draw
from vlaa_jax.rollout.random_bits import row_keys, uniforms
from vlaa_jax.sharding import ROLLOUT, ROWS, TRAINING, P, gather, keep_parameters, over_rows, platform, row_specs, specs

Tree = TypeVar("Tree")

# More patches fill no chip better, and the tower's activations would take more memory than the caches.
_PATCHES_AT_ONCE = 32_768


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """G samples of each prompt.

    Attributes:
      tokens: `[B, G, C]`; 0 after the end.
      lengths: `[B, G]` tokens, the end token included.
      ended: `[B, G]`, False where the bound on new tokens cut the completion.
      log_probability, sampled_log_probability: `[B, G, C]`, see `draw.Drawn`; 0 after the end.
    """

    tokens: jax.Array
    lengths: jax.Array
    ended: jax.Array
    log_probability: jax.Array
    sampled_log_probability: jax.Array


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


@jax.jit
def prefill(weights: SamplingWeights, rows: Rows, features: jax.Array) -> Prefix:
    """Runs prompts (right-padded) once."""
    inputs = (P(), row_specs(rows), P(ROWS))
    return over_rows(_prefill, inputs, P(ROWS), split_weights=False)(weights, rows, features)


def _prefill(weights: SamplingWeights, rows: Rows, features: jax.Array) -> Prefix:
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


# By default XLA for TPU brings most of the completions' caches to vector memory for one new token and writes them back
# whole: a quarter more bytes a step.
_DECODE_OPTIONS = {"tpu": {"xla_msa_max_outstanding_evictions": "0"}}


def decode(
    weights: SamplingWeights,
    prefix: Prefix,
    seed: jax.Array,
    stream: jax.Array,
    draws: jax.Array,
    *,
    group: int,
    new_tokens: int,
    sampling: Sampling,
) -> Completions:
    """Samples G completions of every prompt.

    Args:
      weights: the policy.
      prefix: of the prompts.
      seed, stream, draws: name the random bits (`random_bits.row_keys`).
      group: G.
      new_tokens: C, bound on a completion's length.
      sampling: the distribution.
    """
    program = decode_program(platform())
    return program(weights, prefix, seed, stream, draws, group=group, new_tokens=new_tokens, sampling=sampling)


@functools.cache
def decode_program(platform: str) -> Callable[..., Completions]:
    """`decode`, jitted for a platform."""
    static = ("group", "new_tokens", "sampling")
    return jax.jit(_decode_rows, static_argnames=static, compiler_options=_DECODE_OPTIONS.get(platform))


def _decode_rows(
    weights: SamplingWeights,
    prefix: Prefix,
    seed: jax.Array,
    stream: jax.Array,
    draws: jax.Array,
    *,
    group: int,
    new_tokens: int,
    sampling: Sampling,
) -> Completions:
    run = functools.partial(_decode, group=group, new_tokens=new_tokens, sampling=sampling)
    # Every chip ends when its own rows have ended: there is no collective in the loop.
    inputs = (P(), row_specs(prefix), P(), P(), row_specs(draws))
    return over_rows(run, inputs, P(ROWS), split_weights=False)(weights, prefix, seed, stream, draws)


def _decode(
    weights: SamplingWeights,
    prefix: Prefix,
    seed: jax.Array,
    stream: jax.Array,
    draws: jax.Array,
    *,
    group: int,
    new_tokens: int,
    sampling: Sampling,
) -> Completions:
    text = weights.model.language
    config = text.config
    batch = prefix.state.shape[0]
    repeats = config.query_heads // config.key_value_heads
    keys = row_keys(seed, stream, draws, group)
    ends = jnp.asarray(sampling.end_tokens, jnp.int32)
    cache_shape = (batch, group, config.key_value_heads, new_tokens, config.head_width)
    caches = tuple(
        (jnp.zeros(cache_shape, k.dtype), jnp.zeros(cache_shape, v.dtype))
        for k, v in zip(prefix.keys, prefix.values, strict=True)
    )

    def draw_next(states: jax.Array, step: jax.Array | int) -> Drawn:
        """Of states `[B, G, D]`, the tokens with index `step`."""
        # Rows in one axis: tiles of TPU memory pad the second but last axis, and G is often smaller than a tile.
        flat = states.reshape(batch * group, -1)
        logits = jnp.matmul(flat, text.head[...].T, preferred_element_type=jnp.float32)
        drawn = draw(logits, uniforms(keys, step).reshape(-1), sampling)
        return jax.tree.map(lambda leaf: leaf.reshape(batch, group), drawn)

    def record(out: Completions, step: jax.Array, drawn: Drawn) -> Completions:
        live = ~out.ended
        put = lambda array, new: array.at[:, :, step].set(jnp.where(live, new, 0))  # noqa: E731
        return Completions(
            tokens=put(out.tokens, drawn.tokens),
            lengths=out.lengths + live,
            ended=out.ended | jnp.any(drawn.tokens[..., None] == ends, axis=-1),
            log_probability=put(out.log_probability, drawn.log_probability),
            sampled_log_probability=put(out.sampled_log_probability, drawn.sampled_log_probability),
        )

    def forward(tokens: jax.Array, step: jax.Array, caches: tuple) -> tuple[jax.Array, tuple]:
        """States `[B, G, D]` of the tokens with index `step`, and caches that hold them."""
        x = text.embedding[...][tokens]
        position = jnp.broadcast_to((prefix.position + step)[:, None], tokens.shape)
        rotation = text.rotation(jnp.broadcast_to(position, (3, *tokens.shape)))
        seen = jnp.arange(new_tokens) <= step
        new_caches = []

        def attend_both(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            layer = len(new_caches)
            suffix_keys, suffix_values = (
                jax.lax.dynamic_update_slice_in_dim(cache, new[:, :, :, None], step, axis=3)
                for cache, new in zip(caches[layer], (k, v), strict=True)
            )
            new_caches.append((suffix_keys, suffix_values))
            per_head = q.reshape(batch, group, config.key_value_heads, repeats, config.head_width)
            # All completions of a prompt read its keys in one product: [G * N / K, H] x [H, P].
            together = per_head.transpose(0, 2, 1, 3, 4).reshape(batch, config.key_value_heads, -1, config.head_width)
            out, lse = attend(together, prefix.keys[layer], prefix.values[layer], prefix.valid[:, None, None])
            apart = (batch, config.key_value_heads, group, repeats)
            first = (out.reshape(*apart, -1).swapaxes(1, 2), lse.reshape(apart).swapaxes(1, 2))
            second = attend(per_head, suffix_keys, suffix_values, seen)
            return merge(first, second).reshape(q.shape).astype(q.dtype)

        for layer in weights.layers:
            x = layer(x, rotation, attend_both, config.norm_epsilon)
        return text.normalise(x), tuple(new_caches)

    def body(carry: tuple) -> tuple:
        step, out, caches = carry
        previous = jax.lax.dynamic_index_in_dim(out.tokens, step - 1, axis=2, keepdims=False)
        states, caches = forward(previous, step - 1, caches)
        return step + 1, record(out, step, draw_next(states, step)), caches

    shape = (batch, group)
    zeros = jnp.zeros((*shape, new_tokens), jnp.float32)
    out = Completions(
        jnp.zeros((*shape, new_tokens), jnp.int32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), zeros, zeros
    )
    first = jnp.broadcast_to(prefix.state[:, None], (*shape, prefix.state.shape[-1]))
    out = record(out, 0, draw_next(first, 0))
    carry = (jnp.int32(1), out, caches)
    live = lambda carry: (carry[0] < new_tokens) & ~jnp.all(carry[1].ended)  # noqa: E731
    return jax.lax.while_loop(live, body, carry)[1]
