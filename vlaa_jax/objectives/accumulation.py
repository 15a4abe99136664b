"""Sums that keep their denominators, and maxima: what stays exact however an update is cut into micro-batches.

The mean of means is not the mean: with 3 answer tokens in one micro-batch and 30 in the next, averaging two per-token
means gives the first tokens ten times the weight. So nothing here divides before everything has been added.
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp

from vlaa_jax.sharding import max_rows, sum_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum:
    """A mean whose division waits: `total / weight`, both scalars, float32."""

    total: jax.Array
    weight: jax.Array

    def merge(self, other: Self) -> Self:
        return dataclasses.replace(self, total=self.total + other.total, weight=self.weight + other.weight)

    def of_all_rows(self) -> Self:
        """Inside `sharding.over_rows`: what all chips have together."""
        return dataclasses.replace(self, total=sum_rows(self.total), weight=sum_rows(self.weight))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Maximum:
    """The largest of some values that are never negative (so that a zero starts an accumulation, as for a sum)."""

    value: jax.Array

    def merge(self, other: Self) -> Self:
        return dataclasses.replace(self, value=jnp.maximum(self.value, other.value))

    def of_all_rows(self) -> Self:
        return dataclasses.replace(self, value=max_rows(self.value))


Metrics = dict[str, WeightedSum | Maximum]


def merge_metrics(left: Metrics, right: Metrics) -> Metrics:
    """The metrics of two micro-batches together. Both hold the same names; all zeros is the neutral element."""
    return {name: left[name].merge(right[name]) for name in left}


def summarise(metrics: Mapping[str, WeightedSum | Maximum]) -> dict[str, float]:
    """Metrics as numbers, on the host. A mean over nothing has no value and gets no key."""
    numbers = {}
    for name, metric in metrics.items():
        if isinstance(metric, Maximum):
            numbers[name] = float(metric.value)
        elif float(metric.weight) != 0.0:
            numbers[name] = float(metric.total) / float(metric.weight)
    return numbers
