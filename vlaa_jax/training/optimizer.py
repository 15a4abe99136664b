"""AdamW with warm-up and cosine decay to a floor; its step, with the moments on the chip or in the host's memory."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vlaa_jax.errors import InputError
from vlaa_jax.training.state import Tree, combine, to_host

_STACKS = ("language.layers", "vision.blocks")


def learning_rate_schedule(peak: float, floor: float, warmup_share: float, updates: int) -> optax.Schedule:
    """Linear from 0 to `peak`, then cosine to `floor`; counted in optimizer updates.

    Args:
      peak: largest learning rate.
      floor: learning rate that the cosine would reach with one update more.
      warmup_share: share of all updates that warm up, 0 to 1; the number is rounded up.
      updates: of the whole run.

    Raises:
      InputError: a floor above the peak, or a share outside 0 to 1.
    """
    if not 0 <= floor <= peak:
        raise InputError(f"config.optimizer.floor is {floor}: expected 0 to learning_rate ({peak})")
    if not 0 <= warmup_share < 1:
        raise InputError(f"config.optimizer.warmup_share is {warmup_share}: expected 0 to 1")
    warmup = warmup_updates(warmup_share, updates)
    decay = optax.cosine_decay_schedule(peak, max(1, updates - warmup), alpha=floor / peak if peak else 0.0)
    # The first update already moves: rate i + 1 of the ramp for update i.
    ramp = lambda count: peak * (count + 1) / max(1, warmup)  # noqa: E731
    return optax.join_schedules([ramp, decay], [warmup])


def warmup_updates(share: float, updates: int) -> int:
    """Number of warm-up updates: the share of all, rounded up."""
    return -int(-share * updates // 1)


def adamw(
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    first_moment_dtype: str = "float32",
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); no decay on norms and biases.

    Raises:
      InputError: a first moment that is neither float32 nor bfloat16. The second is always float32: in bfloat16 its
        steps of a thousandth would be rounded away.
    """
    if first_moment_dtype not in ("float32", "bfloat16"):
        raise InputError(
            f"config.optimizer.first_moment_dtype is {first_moment_dtype!r}: expected 'float32' or 'bfloat16'"
        )

    def decayed(tree):
        def is_matrix(path: tuple, _: object) -> bool:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return "norm" not in name and "bias" not in name

        return jax.tree_util.tree_map_with_path(is_matrix, tree)

    return optax.adamw(
        schedule, b1=beta1, b2=beta2, weight_decay=weight_decay, mask=decayed, mu_dtype=first_moment_dtype
    )


def step(
    optimizer: optax.GradientTransformation,
    finite: jax.Array,
    prepare: Callable[[jax.Array], jax.Array],
    gradient: Tree,
    moments: optax.OptState,
    weights: Tree,
) -> tuple[Tree, optax.OptState]:
    """New weights and moments; the old ones where the gradient was not finite.

    `prepare` scales and clips a part of the gradient, so that no second gradient exists.
    """
    change, stepped = optimizer.update(jax.tree.map(prepare, gradient), moments, weights)
    new = optax.apply_updates(weights, change), stepped
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (weights, moments))


def step_by_layer(
    optimizer: optax.GradientTransformation,
    finite: jax.Array,
    prepare: Callable[[jax.Array], jax.Array],
    gradient: Tree,
    moments: optax.OptState,
    weights: Tree,
) -> tuple[Tree, optax.OptState]:
    """`step` with moments in the host's memory: they come to the chip and go back layer by layer.

    The copies of a layer overlap with the arithmetic of the one before. What is no stack of layers (the embedding) goes
    in one piece. The optimizer must treat every weight by itself.
    """
    counts = _counts(moments)

    def of_part(gradient: Tree, moments: optax.OptState, weights: Tree) -> tuple[Tree, optax.OptState]:
        moments = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), moments)
        weights, moments = step(optimizer, finite, prepare, gradient, combine(moments, counts), weights)
        return weights, to_host(moments)

    trees = gradient, _without_counts(moments), weights
    parts = [of_part(*(_part(tree, None) for tree in trees))]
    for stack in _STACKS:
        gradients, *state = (_part(tree, stack) for tree in trees)

        def of_layer(layer: jax.Array, state: tuple, gradients: Tree = gradients) -> tuple:
            """Changes weights and moments where they lie: a scan would make second ones."""
            take = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)  # noqa: E731
            put = lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, layer, 0)  # noqa: E731
            moments, weights = jax.tree.map(take, state)
            weights, moments = of_part(jax.tree.map(take, gradients), moments, weights)
            return jax.tree.map(put, state, (_without_counts(moments), weights))

        if leaves := jax.tree.leaves(gradients):
            moments, weights = jax.lax.fori_loop(0, len(leaves[0]), of_layer, tuple(state))
            parts.append((weights, moments))
    return functools.reduce(combine, parts)


def _part(tree: Tree, stack: str | None) -> Tree:
    """The leaves of one stack, or those of none; None in place of the others."""

    def stack_of(path: tuple) -> str | None:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return next((stack for stack in _STACKS if f"{stack}." in name), None)

    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if stack_of(path) == stack else None, tree)


def _counts(moments: optax.OptState) -> optax.OptState:
    return jax.tree.map(lambda leaf: None if leaf.ndim else leaf, moments)


def _without_counts(moments: optax.OptState) -> optax.OptState:
    return jax.tree.map(lambda leaf: leaf if leaf.ndim else None, moments)
