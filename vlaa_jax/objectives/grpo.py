"""The GRPO loss and its variants, as sums whose denominators are added up apart.

An update is cut into micro-batches to fit the memory. Each gives `grpo_loss(...)[0]`, a plain sum; the update's loss is
the total of these sums over the total of `loss_denominator`, so the result does not depend on the cut. Since the
denominators need no forward pass, a training step may also add them first and scale each gradient as it comes.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.accumulation import Maximum, Metrics, WeightedSum
from vlaa_jax.objectives.kl import KLEstimator, kl_estimate, kl_reward_to_go

RatioLevel = Literal["token", "sequence"]
PolicyLoss = Literal["clip", "cispo"]
KLPlacement = Literal["loss", "reward", "none"]
Aggregation = Literal["sequence_mean", "token_mean", "constant_length"]


@dataclasses.dataclass(frozen=True)
class GRPOObjective:
    """Which member of the family is optimised. Hashable, so it may be a static argument of a jitted step.

    The defaults are the loss of VLAA-Thinking, section 4 (DeepSeekMath, arXiv 2402.03300, equation 3, with the KL in
    the loss); the paper states neither the clip range nor the KL estimator.

    | known as            | fields                                                             | TRL `loss_type` |
    | GRPO                | the defaults                                                       | grpo            |
    | DAPO (2503.14476)   | aggregation token_mean, clip_high 0.28, kl_placement none          | dapo, bnpo      |
    | Dr. GRPO (2503.20783) | aggregation constant_length, advantages with scale none          | dr_grpo         |
    | GSPO (2507.18071)   | ratio sequence, clip_low 3e-4, clip_high 4e-4                      | grpo, sequence  |
    | CISPO (2506.13585)  | policy_loss cispo, aggregation token_mean, kl_placement none       | cispo           |

    Attributes:
      clip_low, clip_high: the ratio is bounded below at `1 - clip_low` where the advantage is negative and above at
        `1 + clip_high` where it is positive (policy_loss clip).
      ratio: `token`, or `sequence`: the geometric mean of the completion's token ratios, for all its tokens.
      policy_loss: `clip` bounds the ratio, and bounded tokens lose their gradient; `cispo` weights `-A log pi` with a
        capped ratio that is held constant, and all tokens keep theirs.
      ratio_cap: the cap of `cispo`, of the ratio itself (5 = five times as likely).
      kl_placement: `loss` adds `kl_coefficient * KL` to each token's loss; `reward` takes it off the advantages
        (`kl.kl_reward_to_go`, with the divergence of the policy that sampled); `none` leaves it out.
      kl_estimator: k1, k2 or k3 of `kl.kl_estimate`.
      kl_ratio_weighted: multiply the KL in the loss by the ratio, gradient included (DeepSeek-V3.2, arXiv 2512.02556;
        TRL's `use_bias_correction_kl`): its value and gradient then hold for the present policy, not for the sampler's.
      aggregation: `sequence_mean`: mean over the tokens of a completion, then over completions. `token_mean`: mean over
        all completion tokens of the update. `constant_length`: sum over the tokens of a completion divided by
        `constant_length`, then mean over completions.
      constant_length: tokens, usually the longest completion allowed; needed for that aggregation only.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio: RatioLevel = "token"
    policy_loss: PolicyLoss = "clip"
    ratio_cap: float = 5.0
    kl_placement: KLPlacement = "loss"
    kl_estimator: KLEstimator = "k3"
    kl_ratio_weighted: bool = False
    aggregation: Aggregation = "sequence_mean"
    constant_length: int | None = None

    def __post_init__(self) -> None:
        names = {
            "ratio": RatioLevel,
            "policy_loss": PolicyLoss,
            "kl_placement": KLPlacement,
            "kl_estimator": KLEstimator,
            "aggregation": Aggregation,
        }
        for field, allowed in names.items():
            if getattr(self, field) not in get_args(allowed):
                raise InputError(
                    f"{field} is {getattr(self, field)!r}; one of {', '.join(get_args(allowed))} was expected."
                )
        if not 0 <= self.clip_low <= 1:
            raise InputError(f"clip_low is {self.clip_low}; a number from 0 to 1 was expected.")
        if not self.clip_high >= 0:
            raise InputError(f"clip_high is {self.clip_high}; a number not below 0 was expected.")
        if not self.ratio_cap > 0:
            raise InputError(f"ratio_cap is {self.ratio_cap}; a number above 0 was expected.")
        if self.aggregation == "constant_length" and not (self.constant_length and self.constant_length > 0):
            raise InputError(
                f"constant_length is {self.constant_length}; aggregation 'constant_length' needs a number of tokens."
            )


@jax.named_scope("loss")
def grpo_loss(
    log_probabilities: jax.Array,
    old: jax.Array,
    reference: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    objective: GRPOObjective,
    kl_coefficient: jax.Array | float,
    importance_weights: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The summed loss of some completions; the update's loss is sum / `loss_denominator`.

        r_t = exp(log pi_t - log pi_old_t)                     (or its geometric mean over the completion)
        clip:   L_t = -w_t min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A)
        cispo:  L_t = -w_t stop_gradient(min(r_t, ratio_cap)) A log pi_t
        loss  = sum over completions and tokens of  c * (L_t + kl_coefficient KL_t),
        c     = 1 / |completion| for sequence_mean, else 1

    The importance weight w multiplies the policy term alone, as in TRL. Whatever stands at masked positions, NaN
    included, changes neither the value nor the gradient. Everything is computed in float32.

    Args:
      log_probabilities: `[..., C]`, of the policy, at the sampling temperature, over the full vocabulary.
      old: `[..., C]`, of the policy that sampled (or its recomputation), fixed for all updates of a step.
      reference: `[..., C]`, of the frozen start; None where `kl_placement` is none (given anyway, its KL is measured).
      advantages: `[...]`, one a completion, or `[..., C]`.
      mask: `[..., C]`, true on the completion tokens that count.
      objective: the variant.
      kl_coefficient: scalar, in loss or reward per nat; not read where `kl_placement` is none.
      importance_weights: `[...]` or `[..., C]` from `truncated_importance_weights`, or None for 1.

    Returns:
      `(loss_sum, metrics)`: a float32 scalar, and sums with their denominators. Names: `policy_loss` (over
      `loss_denominator`); over tokens, or over completions where the ratio is one of sequences: `clip_low`, `clip_high`
      (share bounded from below and above; for cispo, `clip_high` is the share capped), `ratio`, `ratio_squared`,
      `ratio_max`; over tokens: `kl_to_old` (k3 of the old policy against the present one), `importance_weight` if
      given, and with a reference `kl` (the estimator) and `kl_at_rollout` (k1 of the old policy: what the controller
      wants); `tokens_per_completion`.

    Raises:
      InputError: a KL penalty without a reference, or shapes that do not fit.
    """
    if reference is None and objective.kl_placement != "none":
        raise InputError(
            f"kl_placement is {objective.kl_placement!r}; the reference's log-probabilities were expected."
        )
    mask = mask.astype(bool)
    # Fixing masked positions here, before any exp, keeps whatever stands in them out of value and gradient.
    log_probabilities = _counted("log_probabilities", log_probabilities, mask)
    old = jax.lax.stop_gradient(_counted("old", old, mask))
    advantages = jax.lax.stop_gradient(_per_token("advantages", advantages, mask))

    tokens = mask.astype(jnp.float32)
    length = jnp.maximum(jnp.sum(tokens, axis=-1, keepdims=True), 1.0)
    log_ratio = log_probabilities - old
    if objective.ratio == "sequence":
        log_ratio = jnp.broadcast_to(jnp.sum(log_ratio, axis=-1, keepdims=True) / length, mask.shape)
    ratio = jnp.exp(log_ratio)
    metrics: Metrics = {}

    kl_loss: jax.Array | float = 0.0
    if reference is not None:
        reference = jax.lax.stop_gradient(_counted("reference", reference, mask))
        kl = kl_estimate(log_probabilities, reference, objective.kl_estimator)
        if objective.kl_placement == "loss":
            kl_loss = kl_coefficient * (kl * ratio if objective.kl_ratio_weighted else kl)
        elif objective.kl_placement == "reward":
            kl_of_sampler = kl_estimate(old, reference, objective.kl_estimator)
            advantages = advantages + kl_reward_to_go(kl_of_sampler, mask, kl_coefficient)
        metrics["kl"] = _mean(kl, tokens)
        metrics["kl_at_rollout"] = _mean(kl_estimate(old, reference, "k1"), tokens)

    policy_loss, bounded_low, bounded_high = _policy_loss(ratio, log_probabilities, advantages, objective)
    if importance_weights is not None:
        weights = jax.lax.stop_gradient(_per_token("importance_weights", importance_weights, mask))
        policy_loss = policy_loss * weights
        metrics["importance_weight"] = _mean(weights, tokens)

    coefficient = tokens / length if objective.aggregation == "sequence_mean" else tokens
    # A ratio of sequences is one number a completion: it counts once, not once a token.
    unit = tokens / length if objective.ratio == "sequence" else tokens
    metrics |= {
        "policy_loss": WeightedSum(jnp.sum(coefficient * policy_loss), loss_denominator(mask, objective)),
        "clip_low": _mean(bounded_low, unit),
        "clip_high": _mean(bounded_high, unit),
        "ratio": _mean(ratio, unit),
        "ratio_squared": _mean(ratio**2, unit),
        "ratio_max": Maximum(jnp.max(ratio * tokens)),
        "kl_to_old": _mean(kl_estimate(old, log_probabilities, "k3"), tokens),
        "tokens_per_completion": WeightedSum(jnp.sum(tokens), _completions(mask)),
    }
    return jnp.sum(coefficient * (policy_loss + kl_loss)), jax.lax.stop_gradient(metrics)


def loss_denominator(mask: jax.Array, objective: GRPOObjective) -> jax.Array:
    """What the summed losses of an update are divided by; add it over the micro-batches.

    `sequence_mean`: the number of completions; `token_mean`: the number of true elements of the mask;
    `constant_length`: completions times the constant. A completion whose mask is all false (truncated, see
    `truncation_mask`) adds 0 to the sum and still counts as a completion, as in TRL: masking it makes the step smaller,
    it does not make the others count for more. It adds nothing to a number of tokens. So rows that only fill up a shape
    must not be in `mask` at all. An update without a single counted token has token_mean denominator 0; divide by at
    least 1.

    Args:
      mask: `[..., C]`, as in `grpo_loss`.
      objective: the variant.

    Returns:
      A float32 scalar.
    """
    if objective.aggregation == "token_mean":
        return jnp.sum(mask.astype(bool), dtype=jnp.float32)
    if objective.aggregation == "constant_length":
        return _completions(mask) * objective.constant_length
    return _completions(mask)


def truncation_mask(mask: jax.Array, truncated: jax.Array) -> jax.Array:
    """`mask` without the completions that the length limit cut off (DAPO, arXiv 2503.14476, 3.4, "overlong filtering").

    To be applied after the advantages: a truncated completion keeps its place in its group's baseline.

    Args:
      mask: `[..., C]`, true on completion tokens.
      truncated: `[...]`, true where the completion did not end by itself.

    Returns:
      `[..., C]`, bool.
    """
    return mask.astype(bool) & ~truncated.astype(bool)[..., None]


def truncated_importance_weights(
    trainer_old: jax.Array, sampler: jax.Array, mask: jax.Array, *, cap: float, level: RatioLevel = "token"
) -> jax.Array:
    """Weights for completions drawn from another distribution than the one that is trained: `min(exp(d), cap)`.

    With `d = log pi_trainer_old - log pi_sampler` of each token, or summed over the completion (level `sequence`: the
    ratio of the two probabilities of the whole text, not its geometric mean). The two differ by rounding, by truncated
    sampling (top-p, top-k), or because the sampler holds older weights. Truncated importance sampling: Ionides (2008);
    for language models "Your efficient RL framework secretly brings you off-policy RL training" (Yao et al., 2025).

    Args:
      trainer_old: `[..., C]`, log-probabilities by the trainer with the weights that sampled.
      sampler: `[..., C]`, under the distribution that truly drew the tokens.
      mask: `[..., C]`, true on completion tokens.
      cap: largest weight.
      level: `token` or `sequence`.

    Returns:
      `[..., C]` with 1 at masked positions (token) or `[...]` (sequence); float32, no gradient.

    Raises:
      InputError: the cap is not above 0, or the level is unknown.
    """
    if not cap > 0:
        raise InputError(f"the cap of the importance weights is {cap}; a number above 0 was expected.")
    if level not in get_args(RatioLevel):
        raise InputError(f"level is {level!r}; one of {', '.join(get_args(RatioLevel))} was expected.")
    mask = mask.astype(bool)
    difference = _counted("trainer_old", trainer_old, mask) - _counted("sampler", sampler, mask)
    if level == "sequence":
        difference = jnp.sum(difference, axis=-1)
    # The bound is taken on the logarithm too: exp of a long completion's sum may overflow.
    weights = jnp.minimum(jnp.exp(jnp.minimum(difference, jnp.log(cap))), cap)
    return jax.lax.stop_gradient(weights)


def _policy_loss(
    ratio: jax.Array, log_probabilities: jax.Array, advantages: jax.Array, objective: GRPOObjective
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`[..., C]` each: the loss of a token, and whether its ratio was bounded from below and from above."""
    if objective.policy_loss == "cispo":
        weight = jax.lax.stop_gradient(jnp.minimum(ratio, objective.ratio_cap))
        return -weight * advantages * log_probabilities, jnp.zeros_like(ratio), ratio > objective.ratio_cap
    # -min(r A, clip(r) A), said directly: a bound acts only on the side on which it makes the objective smaller.
    lowest, highest = 1.0 - objective.clip_low, 1.0 + objective.clip_high
    bounded_low = (advantages < 0) & (ratio < lowest)
    bounded_high = (advantages > 0) & (ratio > highest)
    bounded = jnp.where(bounded_low, lowest, jnp.where(bounded_high, highest, ratio))
    return -bounded * advantages, bounded_low, bounded_high


def _counted(name: str, values: jax.Array, mask: jax.Array) -> jax.Array:
    """float32, 0 where masked."""
    if values.shape != mask.shape:
        raise InputError(f"{name} has shape {values.shape}, which does not fit the mask's {mask.shape}.")
    return jnp.where(mask, values.astype(jnp.float32), 0.0)


def _per_token(name: str, values: jax.Array, mask: jax.Array) -> jax.Array:
    """`[...]` or `[..., C]` -> `[..., C]`, float32, 0 where masked."""
    if values.shape == mask.shape[:-1]:
        values = jnp.broadcast_to(values[..., None], mask.shape)
    return _counted(name, values, mask)


def _completions(mask: jax.Array) -> jax.Array:
    return jnp.float32(mask.size // mask.shape[-1])


def _mean(values: jax.Array, weight: jax.Array) -> WeightedSum:
    return WeightedSum(jnp.sum(values * weight), jnp.sum(weight))
