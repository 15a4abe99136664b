"""Rewards: from a completion and a gold answer to a number in [0, 1]. Start reading at router.py."""

from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rewards.open_ended import BatchScorer, Scorer, load_scorer, require_scorer
from vlaa_jax.rewards.router import (
    Request,
    accuracy,
    check_gold,
    is_waiting,
    score,
    score_many,
    score_now,
    score_waiting,
    trace,
)
from vlaa_jax.rewards.verdict import Trace

__all__ = [
    "BatchScorer",
    "MathPool",
    "Request",
    "Scorer",
    "Trace",
    "accuracy",
    "check_gold",
    "is_waiting",
    "load_scorer",
    "require_scorer",
    "score",
    "score_many",
    "score_now",
    "score_waiting",
    "trace",
]
