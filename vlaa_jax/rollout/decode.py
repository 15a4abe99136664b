"""The decode loop, in segments: G completions share the cache of their prompt.

A chip holds the prompts that it answers in *slots*: keys and values `[B, K, P, H]`, one array a layer. The completions
under way are *rows*: keys and values `[R, K, C, H]`. The query heads of all completions of a prompt read its keys in
one product, whichever rows they are; the two attentions are merged by log-sum-exp: exact.

All rows of a chip write the same column of their caches, which goes round: rows that began at different times need no
scatter. What a row may read is what it wrote itself, the last columns before this one.

Between segments the host (`schedule`) moves live rows into fewer and gives free slots to waiting prompts. A sample
depends on none of it: its random bits have a name (`random_bits`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from vlaa_jax.models.attention import attend, merge
from vlaa_jax.rollout.draw import Drawn, Sampling, draw
from vlaa_jax.rollout.random_bits import row_keys, uniforms
from vlaa_jax.rollout.sampler import Prefix, Prompts, SamplingWeights
from vlaa_jax.sharding import ROWS, P, keep_caches, over_rows, platform, row_specs

Tree = TypeVar("Tree")
Caches = tuple[tuple[jax.Array, jax.Array], ...]  # keys and values `[R, K, C, H]` of each layer


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


@functools.partial(jax.jit, static_argnames=("slots", "group", "new_tokens"))
def open_slots(
    weights: SamplingWeights, all_prompts: Prompts, *, slots: int, group: int, new_tokens: int
) -> tuple[Prefix, Completions]:
    """Slots without prompts, and no completion of any prompt.

    Args:
      weights: the policy.
      all_prompts: B.
      slots: on each chip.
      group: G.
      new_tokens: C.
    """
    config, dtype = weights.model.config.text, weights.model.language.embedding[...].dtype

    def zeros(all_prompts: Prompts) -> tuple[Prefix, Completions]:
        prompts, length = all_prompts.shape
        cache = jnp.zeros((slots, config.key_value_heads, length, config.head_width), dtype)
        prefix = Prefix(
            keys=(cache,) * config.layers,
            values=(cache,) * config.layers,
            valid=jnp.zeros((slots, length), bool),
            state=jnp.zeros((slots, config.width), dtype),
            position=jnp.zeros(slots, jnp.int32),
        )
        samples = (prompts, group)
        each = jnp.zeros((*samples, new_tokens), jnp.float32)
        lengths, ended = jnp.zeros(samples, jnp.int32), jnp.zeros(samples, bool)
        return keep_caches(prefix), Completions(each.astype(jnp.int32), lengths, ended, each, each)

    return over_rows(zeros, (row_specs(all_prompts),), P(ROWS), split_weights=False)(all_prompts)


@functools.partial(jax.jit, static_argnames=("rows", "new_tokens"))
def empty_caches(prefix: Prefix, *, rows: int, new_tokens: int) -> Caches:
    """Caches of so many rows on each chip."""

    def zeros(prefix: Prefix) -> Caches:
        one = lambda x: jnp.zeros((rows, x.shape[1], new_tokens, x.shape[3]), x.dtype)  # noqa: E731
        return keep_caches(tuple((one(k), one(v)) for k, v in zip(prefix.keys, prefix.values, strict=True)))

    return over_rows(zeros, (row_specs(prefix),), P(ROWS), split_weights=False)(prefix)


@jax.jit
def take(tree: Tree, source: jax.Array) -> Tree:
    """Rows (or slots) of each chip in new places: `source` `[R']` says which of its old ones each is."""
    pick = lambda tree, source: keep_caches(jax.tree.map(lambda leaf: leaf[source], tree))  # noqa: E731
    return over_rows(pick, (row_specs(tree), P(ROWS)), P(ROWS), split_weights=False)(tree, source)


@functools.partial(jax.jit, static_argnames="sampling", donate_argnames=("prefix", "out"))
def admit(
    weights: SamplingWeights,
    prefix: Prefix,
    out: Completions,
    all_prompts: Prompts,
    slots: jax.Array,
    prompts: jax.Array,
    seed: jax.Array,
    stream: jax.Array,
    draws: jax.Array,
    *,
    sampling: Sampling,
) -> tuple[Prefix, Completions]:
    """Runs some prompts once, gives them slots, and draws the first token of their completions.

    Args:
      weights: the policy.
      prefix: the slots; given up.
      out: completions of all prompts; given up.
      all_prompts: B.
      slots, prompts: `[U]` places of each among its chip's slots and prompts; what lies beyond is dropped.
      seed, stream, draws: name the random bits; draws `[B, 2]` of all prompts.
      sampling: the distribution.
    """

    def run(weights, prefix, out, all_prompts, slots, prompts, seed, stream, draws):
        chosen = jnp.minimum(prompts, len(draws) - 1)
        fresh = all_prompts.run(weights, chosen)
        put = lambda places, held, new: held.at[places].set(new, mode="drop")  # noqa: E731
        prefix = jax.tree.map(functools.partial(put, slots), prefix, fresh)
        keys = row_keys(seed, stream, draws[chosen][:, None], jnp.arange(out.tokens.shape[1]))
        logits = _logits(weights, fresh.state)
        # One state predicts the first token of all completions.
        logits = jnp.broadcast_to(logits[:, None], (*keys.shape, logits.shape[-1])).reshape(keys.size, -1)
        drawn = draw(logits, uniforms(keys.ravel(), 0), sampling)
        drawn = jax.tree.map(lambda leaf: leaf.reshape(keys.shape), drawn)
        first = lambda array, new: array.at[prompts, :, 0].set(new, mode="drop")  # noqa: E731
        out = Completions(
            tokens=first(out.tokens, drawn.tokens),
            lengths=put(prompts, out.lengths, 1),
            ended=put(prompts, out.ended, _is_end(drawn.tokens, sampling)),
            log_probability=first(out.log_probability, drawn.log_probability),
            sampled_log_probability=first(out.sampled_log_probability, drawn.sampled_log_probability),
        )
        return keep_caches(prefix), out

    inputs = (P(), *row_specs((prefix, out, all_prompts, slots, prompts)), P(), P(), row_specs(draws))
    run = over_rows(run, inputs, (P(ROWS), P(ROWS)), split_weights=False)
    return run(weights, prefix, out, all_prompts, slots, prompts, seed, stream, draws)


# By default XLA for TPU brings most of the completions' caches to vector memory for one new token and writes them back
# whole: a quarter more bytes a step.
_DECODE_OPTIONS = {"tpu": {"xla_msa_max_outstanding_evictions": "0"}}


def decode(
    weights: SamplingWeights,
    prefix: Prefix,
    caches: Caches,
    out: Completions,
    completions: jax.Array,
    slots: jax.Array,
    column: jax.Array,
    seed: jax.Array,
    stream: jax.Array,
    draws: jax.Array,
    *,
    steps: int,
    sampling: Sampling,
) -> tuple[Caches, Completions, jax.Array]:
    """Some steps of the completions that are under way; a chip ends early when all of its own have ended.

    Args:
      weights: the policy.
      prefix: the slots.
      caches: of the rows; given up.
      out: completions of all prompts, each with its first token; given up.
      completions: `[R]` place of each row's completion among the B * G of its chip; -1 of a row that has none.
      slots: `[R]` of its prompt.
      column: scalar, of the caches, to write next.
      seed, stream, draws: name the random bits; draws `[B, 2]` of all prompts.
      steps: at most.
      sampling: the distribution.

    Returns:
      Caches and completions after them, and `[1]` the steps that each chip ran.
    """
    program = decode_program(platform())
    arguments = (weights, prefix, caches, out, completions, slots, column, seed, stream, draws)
    return program(*arguments, steps=steps, sampling=sampling)


@functools.cache
def decode_program(platform: str) -> Callable[..., tuple[Caches, Completions, jax.Array]]:
    """`decode`, jitted for a platform."""
    return jax.jit(
        _decode_rows,
        static_argnames=("steps", "sampling"),
        donate_argnames=("caches", "out"),
        compiler_options=_DECODE_OPTIONS.get(platform),
    )


def _decode_rows(
    weights: SamplingWeights,
    prefix: Prefix,
    caches: Caches,
    out: Completions,
    completions: jax.Array,
    slots: jax.Array,
    column: jax.Array,
    seed: jax.Array,
    stream: jax.Array,
    draws: jax.Array,
    *,
    steps: int,
    sampling: Sampling,
) -> tuple[Caches, Completions, jax.Array]:
    run = functools.partial(_decode, steps=steps, sampling=sampling)
    # Every chip ends when its own rows have ended: there is no collective in the loop.
    inputs = (P(), *row_specs((prefix, caches, out, completions, slots)), P(), P(), P(), row_specs(draws))
    run = over_rows(run, inputs, (P(ROWS), P(ROWS), P(ROWS)), split_weights=False)
    return run(weights, prefix, caches, out, completions, slots, column, seed, stream, draws)


def _decode(
    weights: SamplingWeights,
    prefix: Prefix,
    caches: Caches,
    out: Completions,
    completions: jax.Array,
    slots: jax.Array,
    column: jax.Array,
    seed: jax.Array,
    stream: jax.Array,
    draws: jax.Array,
    *,
    steps: int,
    sampling: Sampling,
) -> tuple[Caches, Completions, jax.Array]:
    text = weights.model.language
    config = text.config
    rows, (_, group, new_tokens) = len(completions), out.tokens.shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)
    place = jnp.maximum(completions, 0)
    sample = place % group
    start = flat.lengths[place]
    live = lambda ended, count: (completions >= 0) & ~ended & (count < new_tokens)  # noqa: E731
    keys = row_keys(seed, stream, draws[place // group], sample)
    to_prompts, to_rows = _by_prompt(completions >= 0, slots, sample, len(prefix.position), group)

    def forward(tokens: jax.Array, count: jax.Array, at: jax.Array, caches: Caches) -> tuple[jax.Array, Caches]:
        """States `[R, D]` of the last of each row's `count` tokens, and caches that hold them in column `at`."""
        x = text.embedding[...][tokens]
        rotation = text.rotation(jnp.broadcast_to(prefix.position[slots] + count - 1, (3, rows)))
        age = (at - jnp.arange(new_tokens)) % new_tokens
        seen = (age < count[:, None])[:, None, None]
        new_caches = []

        def attend_both(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            layer = len(new_caches)
            own = tuple(
                jax.lax.dynamic_update_slice_in_dim(cache, new[:, :, None], at, axis=2)
                for cache, new in zip(caches[layer], (k, v), strict=True)
            )
            new_caches.append(own)
            per_head = q.reshape(rows, config.key_value_heads, -1, config.head_width)
            second = attend(per_head, *own, seen)
            together = to_prompts(per_head)
            first = attend(together, prefix.keys[layer], prefix.values[layer], prefix.valid[:, None, None])
            return merge(jax.tree.map(to_rows, first), second).reshape(q.shape).astype(q.dtype)

        for layer in weights.layers:
            x = layer(x, rotation, attend_both, config.norm_epsilon)
        return text.normalise(x), tuple(new_caches)

    def body(carry: tuple) -> tuple:
        step, token, count, ended, drawn, caches = carry
        states, caches = forward(token, count, (column + step) % new_tokens, caches)
        new = draw(_logits(weights, states), uniforms(keys, count), sampling)
        drawn = jax.tree.map(lambda all, one: all.at[:, step].set(one), drawn, new)
        on = live(ended, count)
        ended = ended | (on & _is_end(new.tokens, sampling))
        return step + 1, new.tokens, count + on, ended, drawn, caches

    token = flat.tokens[place, jnp.maximum(start - 1, 0)]
    zeros = jnp.zeros((rows, steps), jnp.float32)
    drawn = Drawn(jnp.zeros(zeros.shape, jnp.int32), zeros, zeros)
    carry = (jnp.int32(0), token, start, flat.ended[place], drawn, caches)
    going = lambda carry: (carry[0] < steps) & jnp.any(live(carry[3], carry[2]))  # noqa: E731
    ran, _, count, ended, drawn, caches = jax.lax.while_loop(going, body, carry)

    mine = jnp.where(completions >= 0, place, len(flat.lengths))  # beyond the end: dropped
    order = jnp.arange(steps)
    columns = jnp.where(order < (count - start)[:, None], start[:, None] + order, new_tokens)
    put = lambda array, new: array.at[mine[:, None], columns].set(new, mode="drop")  # noqa: E731
    flat = Completions(
        tokens=put(flat.tokens, drawn.tokens),
        lengths=flat.lengths.at[mine].set(count, mode="drop"),
        ended=flat.ended.at[mine].set(ended, mode="drop"),
        log_probability=put(flat.log_probability, drawn.log_probability),
        sampled_log_probability=put(flat.sampled_log_probability, drawn.sampled_log_probability),
    )
    out = jax.tree.map(lambda leaf, old: leaf.reshape(old.shape), flat, out)
    return keep_caches(caches), out, ran[None]


def _by_prompt(
    used: jax.Array, slots: jax.Array, sample: jax.Array, prompts: int, group: int
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """From heads of rows `[R, K, N / K, ...]` to those of prompts, `[B, K, G * N / K, ...]`, and back.

    Where there are as many rows as completions (`schedule` then keeps each in the place that its prompt and number
    give) nothing is looked up.
    """
    at = slots * group + sample
    row = (
        jnp.zeros(prompts * group, jnp.int32)
        .at[jnp.where(used, at, prompts * group)]
        .set(jnp.arange(len(slots), dtype=jnp.int32), mode="drop")
    )
    in_place = len(slots) == prompts * group

    def to_prompts(x: jax.Array) -> jax.Array:
        x = (x if in_place else x[row]).reshape(prompts, group, *x.shape[1:]).swapaxes(1, 2)
        return x.reshape(prompts, x.shape[1], -1, *x.shape[4:])

    def to_rows(x: jax.Array) -> jax.Array:
        x = x.reshape(prompts, x.shape[1], group, -1, *x.shape[3:]).swapaxes(1, 2)
        x = x.reshape(prompts * group, *x.shape[2:])
        return x if in_place else x[at]

    return to_prompts, to_rows


def _logits(weights: SamplingWeights, states: jax.Array) -> jax.Array:
    """Float32 `[..., V]` of states `[..., D]`."""
    return jnp.matmul(states, weights.model.language.head[...].T, preferred_element_type=jnp.float32)


def _is_end(tokens: jax.Array, sampling: Sampling) -> jax.Array:
    return jnp.any(tokens[..., None] == jnp.asarray(sampling.end_tokens, jnp.int32), axis=-1)
