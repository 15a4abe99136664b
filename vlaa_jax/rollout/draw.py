"""Drawing one token a row from logits: temperature, top-k, top-p, tokens that may never occur."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.errors import InputError

_BLOCK = 256  # at most: tokens whose probabilities are summed before any of them is looked at


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are drawn from. Hashable: a static argument of the programs.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: then keep the fewest most likely tokens whose probabilities reach p; 1 keeps all.
      end_tokens: ids that end a completion.
      banned_tokens: ids that are never drawn (image and video placeholders: a drawn one would claim features that do
        not exist).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    end_tokens: tuple[int, ...] = ()
    banned_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}: expected 0 or more")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}: expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: expected a number above 0, at most 1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """Tokens and their log-probabilities, `[...]` each.

    Attributes:
      tokens: drawn ids.
      log_probability: under the full vocabulary at the sampling temperature (temperature 1 when greedy): what the
        policy's, old and reference log-probabilities mean everywhere.
      sampled_log_probability: under the distribution that was truly drawn from, after bans and truncation.
    """

    tokens: jax.Array
    log_probability: jax.Array
    sampled_log_probability: jax.Array


def draw(logits: jax.Array, uniforms: jax.Array, sampling: Sampling) -> Drawn:
    """Draws by inverse CDF in two levels: sums of vocabulary blocks, then inside one block.

    Neither a sort of the vocabulary nor noise over it is needed: one uniform number a row decides.

    Args:
      logits: `[..., V]` float32.
      uniforms: `[...]` in [0, 1); not read when greedy.
      sampling: the distribution.
    """
    scaled = logits / (sampling.temperature or 1.0)
    banned = np.asarray(sampling.banned_tokens, np.int32)
    # A mask, because a scatter would write all logits once more.
    is_banned = jnp.any(jnp.arange(logits.shape[-1])[:, None] == banned, axis=-1)
    allowed = jnp.where(is_banned, -jnp.inf, scaled)
    if sampling.temperature == 0:
        tokens = jnp.argmax(allowed, axis=-1)
        zeros = jnp.zeros(tokens.shape, jnp.float32)
        return Drawn(tokens, _at(scaled, tokens) - jax.nn.logsumexp(scaled, axis=-1), zeros)
    kept = _truncate(allowed, sampling)
    tokens, normaliser = _inverse_cdf(kept, uniforms)
    chosen = _at(scaled, tokens)
    if kept is allowed:
        # What was summed is all but the banned tokens: the vocabulary need not be read again.
        full = jnp.logaddexp(normaliser, jax.nn.logsumexp(scaled[..., banned], axis=-1)) if len(banned) else normaliser
    else:
        full = jax.nn.logsumexp(scaled, axis=-1)
    return Drawn(tokens, chosen - full, chosen - normaliser)


def _inverse_cdf(logits: jax.Array, uniforms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens `[...]`, and `logsumexp` of the row."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    size = _block_size(logits.shape[-1])
    blocks = jnp.exp(logits - largest).reshape(*logits.shape[:-1], -1, size)
    sums = jnp.sum(blocks, axis=-1)
    block, before, total = _first_above(sums, lambda total: uniforms * total)
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    place, _, _ = _first_above(inside, lambda _: uniforms * total - before)
    return block * size + place, jnp.log(total) + largest[..., 0]


def _block_size(vocabulary: int) -> int:
    """The largest that divides the vocabulary."""
    # A last block that is filled up would cost a copy of all logits: 20 ms, where all of a draw takes 4 (32 rows of
    # 151,936 tokens, two CPU cores).
    return max(size for size in range(1, min(_BLOCK, vocabulary) + 1) if vocabulary % size == 0)


def _first_above(weights: jax.Array, target) -> tuple[jax.Array, jax.Array, jax.Array]:
    """First place whose running sum exceeds the target, the sum before it, and the whole sum.

    Rounding may put the target at or beyond the whole sum: then it is the last place that has any weight.
    """
    running = jnp.cumsum(weights, axis=-1)
    total = running[..., -1]
    places = jnp.arange(weights.shape[-1])
    last = jnp.max(jnp.where(weights > 0, places, 0), axis=-1)
    # A place without weight never is the first above, so it is never chosen.
    above = (running > target(total)[..., None]) & (weights > 0)
    place = jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)
    return place, _at(running, place) - _at(weights, place), total


def _truncate(logits: jax.Array, sampling: Sampling) -> jax.Array:
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        threshold = _smallest_kept(logits, jnp.ones_like(logits), jnp.float32(sampling.top_k))
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    if sampling.top_p < 1:
        weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        bound = sampling.top_p * jnp.sum(weights, axis=-1, keepdims=True)
        logits = jnp.where(logits >= _smallest_kept(logits, weights, bound), logits, -jnp.inf)
    return logits


def _smallest_kept(logits: jax.Array, weights: jax.Array, bound: jax.Array) -> jax.Array:
    """The smallest logit of each row `[..., 1]` above which there is less weight than the bound.

    Without a sort: the interval of floats that holds it is halved, then drawn in to logits that exist. 32 passes over
    the row at most, about 20 in practice.

    Args:
      logits: `[..., V]` float32.
      weights: `[..., V]` of the tokens, at least 0.
      bound: `[..., 1]`, above 0.
    """

    def narrow(interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = _from_ordered(_ordered(low) + (_ordered(high) - _ordered(low)) // 2)
        # A middle that is flushed to zero may compare as the upper end, and nothing would become narrower.
        middle = jnp.where(middle < high, middle, low)
        above = logits > middle
        fits = jnp.sum(jnp.where(above, weights, 0), axis=-1, keepdims=True) < bound
        # No logit lies between the middle and these two: the answer is at most the first, or at least the second.
        below = jnp.max(jnp.where(above, -jnp.inf, logits), axis=-1, keepdims=True)
        next_above = jnp.min(jnp.where(above, logits, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(fits, low, next_above), jnp.where(fits, below, high)

    ends = jnp.min(logits, axis=-1, keepdims=True), jnp.max(logits, axis=-1, keepdims=True)
    return jax.lax.while_loop(lambda interval: jnp.any(interval[0] < interval[1]), narrow, ends)[1]


_SIGN = np.uint32(1 << 31)


def _ordered(x: jax.Array) -> jax.Array:
    """Float32 as uint32 of the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def _from_ordered(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(jnp.where(bits >= _SIGN, bits ^ _SIGN, ~bits), jnp.float32)


def _at(values: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, places[..., None], axis=-1)[..., 0]
