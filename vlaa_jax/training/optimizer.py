"""AdamW with warm-up, cosine decay to a floor, and clipping."""

import jax
import optax

from vlaa_jax.errors import InputError


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
    schedule: optax.Schedule, *, weight_decay: float, clip_norm: float, beta1: float = 0.9, beta2: float = 0.999
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) after clipping the global norm; no decay on norms and biases."""

    def decayed(tree):
        def is_matrix(path: tuple, _: object) -> bool:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return "norm" not in name and "bias" not in name

        return jax.tree_util.tree_map_with_path(is_matrix, tree)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=beta1, b2=beta2, weight_decay=weight_decay, mask=decayed),
    )
