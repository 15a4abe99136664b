"""Group sampling: the prompt and its images run once, G completions share its cache.

Keys and values of the prompt lie in `[B, K, P, H]`, those of the completions in `[B, G, K, C, H]`, one array a layer.
The query heads of all G completions read the prefix together; the two attentions are merged by log-sum-exp: exact.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vlaa_jax.models.attention import Causal, attend, attention, merge
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.models.qwen2_5_vl.language import DecoderLayer
from vlaa_jax.processing.batches import Rows
from vlaa_jax.rollout.draw import Drawn, Sampling, draw
from vlaa_jax.rollout.random_bits import row_keys, uniforms


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
      features: `[B, slots, D]` of the vision tower; a frozen tower's serve reference and update too.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid: jax.Array
    state: jax.Array
    position: jax.Array
    features: jax.Array


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


@functools.partial(jax.jit, static_argnames="dtype")
def sampling_weights(model: Qwen2_5_VL, dtype: jnp.dtype) -> SamplingWeights:
    """Makes the sampling copy of the weights."""
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
    stacked = model.language.layers
    layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(model.config.text.layers))

    def outside_layers(path: tuple, leaf: jax.Array) -> jax.Array | None:
        return None if jax.tree_util.keystr(path, simple=True, separator=".").startswith("language.layers.") else leaf

    return SamplingWeights(jax.tree_util.tree_map_with_path(outside_layers, model), layers)


@jax.jit
def prefill(weights: SamplingWeights, rows: Rows) -> Prefix:
    """Runs images and prompts (right-padded) once."""
    model, text = weights.model, weights.model.language
    dtype = text.embedding[...].dtype
    features = model.vision(rows.vision, dtype)
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
    return Prefix(tuple(keys), tuple(values), valid, state, position, features)


@functools.partial(jax.jit, static_argnames=("group", "new_tokens", "sampling"))
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

    def logits(states: jax.Array) -> jax.Array:
        return jnp.matmul(states, text.head[...].T, preferred_element_type=jnp.float32)

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
        return step + 1, record(out, step, draw(logits(states), uniforms(keys, step), sampling)), caches

    shape = (batch, group)
    zeros = jnp.zeros((*shape, new_tokens), jnp.float32)
    out = Completions(
        jnp.zeros((*shape, new_tokens), jnp.int32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), zeros, zeros
    )
    first = jnp.broadcast_to(logits(prefix.state)[:, None], (*shape, config.vocabulary))
    out = record(out, 0, draw(first, uniforms(keys, 0), sampling))
    carry = (jnp.int32(1), out, caches)
    return jax.lax.while_loop(lambda carry: (carry[0] < new_tokens) & ~jnp.all(carry[1].ended), body, carry)[1]
