"""Log-probability and entropy of given tokens, without ever holding the logits of all tokens.

For Qwen2.5-VL the logits of 8,192 tokens are `[8192, 151936]`: 4.6 GiB in float32, several times over in the backward
pass. A loop over chunks of tokens holds those of one chunk, computes them a second time in the backward pass and adds
up the gradient of the head as it goes. That is one more product with the head than plain autodiff needs, and the only
price.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vlaa_jax.errors import InputError
from vlaa_jax.sharding import gather


@jax.named_scope("log_probabilities")
def token_log_probabilities(
    states: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    count: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target, and entropy of the distribution it stands in, over the full vocabulary.

        z = states @ head^T / temperature,   log p(target) = z[target] - logsumexp(z),   H = -sum_v p(v) log p(v)

    The product runs in the states' dtype with float32 accumulation, the softmax in float32. The head's gradient is
    accumulated in float32 and returned in the head's own dtype. The entropy is a measurement: it carries no gradient.

    Args:
      states: `[..., D]`, the state *before* each target (the caller pairs them; nothing is shifted here).
      head: `[V, D]`, the output head, or the embedding where the two are tied.
      targets: `[...]` integers in 0..V-1. A position that a mask drops later may hold any of them.
      temperature: above 0; the logits are divided by it, as they are when tokens are sampled.
      chunk: most tokens whose logits exist at once, counted where the call stands: over all devices under `jit`, on one
        device inside `shard_map`. (The partitioner may gather the head and reduce its gradient once a chunk; inside a
        `shard_map` over the axes that split the tokens both happen once, outside the loop.)
      count: of the targets in row-major order, those that mean anything; a chunk without any is skipped and gives 0.
        None for all.

    Returns:
      `(log_probability, entropy)`, both `[...]`, float32, in nats.

    Raises:
      InputError: the temperature or the chunk is not above 0, or the shapes do not fit.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; a temperature above 0 was expected.")
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; at least one token was expected.")
    if states.shape[:-1] != targets.shape or head.ndim != 2:
        raise InputError(
            f"states {states.shape}, head {head.shape} and targets {targets.shape} do not fit; "
            "[..., D], [V, D] and [...] were expected."
        )
    head = gather(head, states.dtype, "language.embedding")
    tokens = targets.size
    chunks = max(1, -(-tokens // chunk))  # all of one size, so that padding is less than one token a chunk
    size = -(-tokens // chunks)
    strided = count is None
    split = functools.partial(_split, size=size, chunks=chunks, strided=strided)
    live = jnp.arange(chunks) * size < (tokens if strided else count)
    found = _chunked(temperature, split(states.reshape(tokens, -1)), head, split(targets.reshape(tokens)), live)
    log_probability, entropy = (_join(values, targets.shape, strided=strided) for values in found)
    return log_probability, entropy


def _split(flat: jax.Array, *, size: int, chunks: int, strided: bool) -> jax.Array:
    """`[tokens, ...]` -> `[chunks, size, ...]`; strided, chunk i holds the tokens i, i + chunks, i + 2 chunks, ...

    Where the tokens are split over devices in blocks, each chunk then has an equal part of every device's block.
    Contiguous chunks would lie on one device each, and the others would wait or compute the same.
    """
    padding = [(0, size * chunks - flat.shape[0])] + [(0, 0)] * (flat.ndim - 1)
    padded = jnp.pad(flat, padding)
    if not strided:
        return padded.reshape(chunks, size, *flat.shape[1:])
    return padded.reshape(size, chunks, *flat.shape[1:]).swapaxes(0, 1)


def _join(parts: jax.Array, shape: tuple[int, ...], *, strided: bool) -> jax.Array:
    """The inverse of `_split`: `[chunks, size]` -> `shape`."""
    flat = parts.swapaxes(0, 1) if strided else parts
    return flat.reshape(-1)[: math.prod(shape)].reshape(shape)


def _while_live(step: Callable, carry: Any, chunks: Any, live: jax.Array, outputs: Any) -> tuple[Any, Any]:
    """`lax.scan` of `step` over chunks, up to the first that is not live; `outputs` hold what the rest gives."""
    at = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

    def body(state: tuple) -> tuple:
        i, carry, outputs = state
        carry, new = step(carry, jax.tree.map(lambda leaf: at(leaf, i), chunks))
        put = lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, i, 0)  # noqa: E731
        return i + 1, carry, jax.tree.map(put, outputs, new)

    # The number of chunks stands here for `planning`, which reads it as the loop's length.
    more = lambda state: (state[0] < len(live)) & at(live, state[0])  # noqa: E731
    return jax.lax.while_loop(more, body, (jnp.int32(0), carry, outputs))[1:]


def _logits(states: jax.Array, head: jax.Array, temperature: float) -> jax.Array:
    return jnp.einsum("TD,VD->TV", states, head, preferred_element_type=jnp.float32) / temperature


def _is_target(targets: jax.Array, vocabulary: int) -> jax.Array:
    # Compared, not gathered: it fuses with the sum around it, and works in parts where the vocabulary is split.
    return targets[:, None] == jnp.arange(vocabulary, dtype=targets.dtype)


def _forward_loop(
    temperature: float, states: jax.Array, head: jax.Array, targets: jax.Array, live: jax.Array
) -> tuple[jax.Array, ...]:
    head = head.astype(states.dtype)

    def step(_: None, inputs: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, ...]]:
        states, targets = inputs
        logits = _logits(states, head, temperature)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        surprise = normaliser[:, None] - logits  # -log p(v): an entropy made of differences keeps its digits
        log_probability = -jnp.sum(jnp.where(_is_target(targets, head.shape[0]), surprise, 0.0), axis=-1)
        entropy = jnp.sum(jnp.exp(-surprise) * surprise, axis=-1)
        return None, (log_probability, entropy, normaliser)

    zeros = jnp.zeros(targets.shape, jnp.float32)
    return _while_live(step, None, (states, targets), live, (zeros, zeros, zeros))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    temperature: float, states: jax.Array, head: jax.Array, targets: jax.Array, live: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """states `[chunks, size, D]`, head `[V, D]`, targets `[chunks, size]`, live `[chunks]`: True, then False.

    Returns:
      Two arrays `[chunks, size]`.
    """
    return _forward_loop(temperature, states, head, targets, live)[:2]


def _forward(
    temperature: float, states: jax.Array, head: jax.Array, targets: jax.Array, live: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    log_probability, entropy, normaliser = _forward_loop(temperature, states, head, targets, live)
    return (log_probability, entropy), (states, head, targets, live, normaliser)


def _backward(
    temperature: float, residuals: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, None]:
    """d log p(target) / d z[v] = [v = target] - p(v), with p from the saved normaliser and recomputed logits."""
    all_states, head, all_targets, live, all_normalisers = residuals
    log_probability_cotangent, _ = cotangents
    cast_head = head.astype(all_states.dtype)

    def step(head_gradient: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        states, targets, normaliser, cotangent = inputs
        with jax.named_scope("rematted_computation"):  # as `jax.checkpoint` names it: `planning` gives it no credit
            logits = _logits(states, cast_head, temperature)
        probability = jnp.exp(logits - normaliser[:, None])
        difference = _is_target(targets, head.shape[0]) - probability
        logits_gradient = (difference * (cotangent / temperature)[:, None]).astype(states.dtype)
        states_gradient = jnp.einsum("TV,VD->TD", logits_gradient, cast_head, preferred_element_type=jnp.float32)
        head_gradient += jnp.einsum("TV,TD->VD", logits_gradient, states, preferred_element_type=jnp.float32)
        return head_gradient, states_gradient.astype(states.dtype)

    head_gradient, states_gradient = _while_live(
        step,
        jnp.zeros_like(head, dtype=jnp.float32),
        (all_states, all_targets, all_normalisers, log_probability_cotangent),
        live,
        jnp.zeros_like(all_states),
    )
    return states_gradient, head_gradient.astype(head.dtype), None, None


_chunked.defvjp(_forward, _backward)
