"""The partial solutions of a question as few whole ones: a process that another one continues is a part of it.

One pass over a solution scores all of its prefixes (`objectives.step_scores`), so 73,560 records of ViLReward-73K take
as many solutions as there are processes that no other one continues.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class StepPath:
    """A way down the tree of a question's steps, from its root to a leaf.

    Attributes:
      place: of a process, among those given, that is the whole path.
      values: `[S]` value of each step: the mean of the processes that end with it, NaN where none does.
      weights: `[S]` number of these processes; 0 where an earlier path has the same step and counts it.
    """

    place: int
    values: np.ndarray
    weights: np.ndarray


def step_paths(processes: Sequence[Sequence[str]], values: Sequence[float]) -> list[StepPath]:
    """All leaves, in the order in which they first occur. Every process is counted in exactly one weight.

    Args:
      processes: of one question: steps of each, at least one.
      values: of each.
    """
    found: dict[tuple[str, ...], list[int]] = {}  # steps up to and with a node -> processes that end there
    for place, steps in enumerate(processes):
        found.setdefault(tuple(steps), []).append(place)
    continued = {node[:depth] for node in found for depth in range(1, len(node))}
    counted: set[tuple[str, ...]] = set()
    paths = []
    for leaf, places in found.items():
        if leaf in continued:
            continue
        nodes = [leaf[:depth] for depth in range(1, len(leaf) + 1)]
        own = [found.get(node, []) for node in nodes]
        paths.append(
            StepPath(
                places[0],
                np.asarray([np.mean([values[i] for i in at]) if at else np.nan for at in own], np.float32),
                np.asarray([0 if node in counted else len(at) for node, at in zip(nodes, own, strict=True)], np.int32),
            )
        )
        counted.update(nodes)
    return paths
