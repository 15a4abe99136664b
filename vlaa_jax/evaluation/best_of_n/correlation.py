"""Whether a better model is a better judge: Pearson's correlation over judges (ViLBench, Figure 2)."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_EXACT = 8  # pairs up to which all orders are tried: 8! = 40,320
_DRAWN = 100_000  # orders that are drawn for more
_ROUNDING = 1e-12


class Correlation(NamedTuple):
    """Pearson's r and the chance of one as far from 0 where the two have nothing to do with each other."""

    r: float
    p: float
    pairs: int


def correlate(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """The correlation of pairs, with the two-sided p-value of the permutation test.

    Of up to 8 pairs it is exact: the share of all orders of `second` with an r as far from 0. Of more, 100,000 orders
    are drawn, the same each time. Both are NaN where there are fewer than three pairs or one side is constant.
    """
    x, y = (np.asarray(values, np.float64) - np.mean(values) for values in (first, second))
    scale = math.sqrt((x @ x) * (y @ y))
    if len(x) < 3 or scale < _ROUNDING:
        return Correlation(math.nan, math.nan, len(x))
    r = float(x @ y / scale)
    if len(x) <= _EXACT:
        orders = np.asarray(list(itertools.permutations(range(len(x)))))
        ours = 0
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(x)), (_DRAWN, 1)), axis=1)
        ours = 1  # the order found is one of those that might have come
    as_far = np.abs(y[orders] @ x / scale) >= abs(r) - _ROUNDING
    return Correlation(r, float((as_far.sum() + ours) / (len(orders) + ours)), len(x))
