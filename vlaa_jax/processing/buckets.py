"""Sizes that programs are compiled for: few, and chosen so that little of what runs is padding."""

from collections.abc import Sequence

import numpy as np

# Fewer buckets are taken where they cost no more than this: a program takes seconds to minutes to compile.
_WORTH = 0.01


def choose_buckets(sizes: Sequence[int], most: int, *, drawn: int, multiple: int) -> tuple[int, ...]:
    """The buckets with the smallest expected size of a batch.

    A batch has one shape, the bucket of its largest record, so what counts is not how sizes are spread but how the
    largest of `drawn` random ones is: with F the share of records up to a size, that is F ** drawn. The work of a batch
    grows with its bucket and its real part does not depend on the buckets, so the smallest expected bucket is the least
    expected padding. Dynamic programming over the sorted sizes finds it exactly.

    Args:
      sizes: of all records, at least one.
      most: buckets.
      drawn: records of a batch; 1 where batches are made of records of like size.
      multiple: of which buckets are multiples.

    Returns:
      Ascending; the last one holds every record. Fewer than `most` where one more saves less than a hundredth.
    """
    rounded = np.maximum(1, -(-np.asarray(sizes) // multiple)) * multiple
    ends, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0.0], (np.cumsum(counts) / len(rounded)) ** drawn])  # the largest is at most ends[i - 1]
    # cost[i, j]: of one bucket ends[j] for all batches whose largest record is in ends[i], ..., ends[j].
    cost = ends * (below[1:] - below[:-1, None])
    cost = np.where(np.tri(len(ends), dtype=bool).T, cost, np.inf)
    best, starts, totals = cost[0], [np.zeros(len(ends), int)], [cost[0][-1]]
    for _ in range(1, min(most, len(ends))):
        shifted = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        starts.append(shifted.argmin(axis=0))
        best = shifted.min(axis=0)
        totals.append(best[-1])
    count = next(i for i, total in enumerate(totals) if total <= min(totals) * (1 + _WORTH))
    chosen, last = [], len(ends) - 1
    for start in reversed(starts[: count + 1]):
        chosen.append(int(ends[last]))
        last = start[last] - 1
    return tuple(reversed(chosen))


def ladder(smallest: int, largest: int, most: int, *, multiple: int) -> tuple[int, ...]:
    """Buckets for sizes that nobody knows before the run, as those of completions, which change while a policy learns.

    Each is larger than the one before by the same factor: whatever the sizes are, the same share of a batch at most is
    padding.

    Args:
      smallest, largest: size that occurs.
      most: buckets.
      multiple: of which buckets are multiples.
    """
    rungs = smallest * (largest / smallest) ** (np.arange(1, most + 1) / most)
    return tuple(int(rung) for rung in np.unique(np.ceil(rungs / multiple - 1e-9) * multiple))
