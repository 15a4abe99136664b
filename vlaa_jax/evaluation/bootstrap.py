"""Intervals for means over records: the percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

Records are what is drawn with replacement. Several completions of one record are not independent, so they are added up
within their record first (a cluster bootstrap), and before and after are compared on the same drawn records.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vlaa_jax.errors import InputError

_CHUNK = 500  # resamples at a time: bounds the memory


class Estimate(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


def interval(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean over records.

    Args:
      values: `[n]`, or `[n, G]` for G completions a record.
      weights: of the same shape, not negative; the mean is sum(weights * values) / sum(weights). With 1 for valid
        completions and 0 for others: the reward given that the completion is valid.
      resamples: number of draws of n records.
      level: share of the resampled means inside the interval, (0, 1).
      seed: equal input and seed give equal numbers.

    Raises:
      InputError: no records, a number that is not finite, shapes that differ, weights that are negative or all zero.
    """
    totals = _totals(values, weights)
    means = np.concatenate([_means(totals, rows) for rows in _draws(len(totals[0]), resamples, seed)])
    return _estimate(_means(totals, np.arange(len(totals[0]))), means, level)


def paired_interval(
    before: ArrayLike,
    after: ArrayLike,
    *,
    before_weights: ArrayLike | None = None,
    after_weights: ArrayLike | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean of `after` minus the mean of `before` over the same records, in the same order.

    Args:
      before: `[n]` or `[n, G]`.
      after: `[n]` or `[n, G]`; G may differ from that of `before`.
      before_weights, after_weights, resamples, level, seed: as in `interval`.

    Raises:
      InputError: as in `interval`, or the numbers of records differ.
    """
    old, new = _totals(before, before_weights), _totals(after, after_weights)
    n = len(old[0])
    if n != len(new[0]):
        raise InputError(f"{n} records before and {len(new[0])} after: a paired comparison needs the same records")
    differences = [_means(new, rows) - _means(old, rows) for rows in _draws(n, resamples, seed)]
    every = np.arange(n)
    return _estimate(_means(new, every) - _means(old, every), np.concatenate(differences), level)


def unpaired_interval(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of `second` minus the mean of `first`, which are of different records.

    Args:
      first: `[n]` or `[n, G]`.
      second: `[m]` or `[m, G]`.
      resamples, level, seed, errors: as in `interval`; each side is drawn by itself.
    """
    sides = [_totals(values, None) for values in (first, second)]
    means = [
        np.concatenate([_means(totals, rows) for rows in _draws(len(totals[0]), resamples, (seed, side))])
        for side, totals in enumerate(sides)
    ]
    value = [_means(totals, np.arange(len(totals[0]))) for totals in sides]
    return _estimate(value[1] - value[0], means[1] - means[0], level)


def _totals(values: ArrayLike, weights: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum and sum of weights of each record, `[n]` each."""
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise InputError(
            f"a mean over records needs numbers of shape [n] or [n, G], n and G at least 1, got {values.shape}"
        )
    if weights.shape != values.shape:
        raise InputError(f"weights of shape {weights.shape} for values of shape {values.shape}")
    if not (np.isfinite(values).all() and np.isfinite(weights).all()):
        raise InputError("a mean over records needs finite numbers, got NaN or Infinity")
    if weights.min() < 0 or weights.sum() == 0:
        raise InputError("weights must not be negative, and one at least must be above 0")
    n = len(values)
    return (values * weights).reshape(n, -1).sum(1), weights.reshape(n, -1).sum(1)


def _draws(n: int, resamples: int, seed: int | tuple[int, int]):
    """Record numbers, `[resamples of a chunk, n]` at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        yield generator.integers(0, n, size=(min(_CHUNK, resamples - start), n))


def _means(totals: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Means over the last axis of `rows`; NaN where all the weights drawn are zero."""
    values, weights = totals[0][rows].sum(-1), totals[1][rows].sum(-1)
    return np.divide(values, weights, out=np.full_like(values, np.nan), where=weights > 0)


def _estimate(value: np.ndarray, resampled: np.ndarray, level: float) -> Estimate:
    # A resample without weight says nothing about the mean; those are left out.
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))
