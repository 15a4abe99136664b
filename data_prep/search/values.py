"""The value of a step: from the rewards of the rollouts through it, smoothed, and blended with a judge's score."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_prep.search.tree import Node, Tree
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record

# Scores `[S]` in [0, 1] of the steps of each solution of a question.
StepScorer = Callable[[Record, Sequence[str]], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Valuation:
    """How nodes get their values.

    The published values are no plain success rates (a wrong answer has 0.5, a right one 0.8: section 6.2 of our notes
    on ViLBench) and their formula is not stated. Without smoothing and judge ours are mean rewards.

    Attributes:
      smoothing: rollouts of reward 1, and as many of reward 0, that every node is given beside its own (Laplace).
      judge_weight: of the judge's score; the mean reward has the rest.
    """

    smoothing: float = 0.0
    judge_weight: float = 0.0

    def __call__(self, node: Node) -> float:
        """Value of a node other than the root, in [0, 1]."""
        value = (node.total + self.smoothing) / (node.visits + 2 * self.smoothing)
        if not self.judge_weight:
            return value
        return (1 - self.judge_weight) * value + self.judge_weight * node.score


def judge_tree(record: Record, tree: Tree, scorer: StepScorer) -> None:
    """Gives every node the score of its step, which does not depend on what follows it.

    Raises:
      InputError: a score outside [0, 1], or another number of scores than steps.
    """
    leaves = [node for node in tree.nodes() if not node.children and node is not tree.root]
    scores = scorer(record, ["".join(leaf.texts) for leaf in leaves])
    for leaf, own in zip(leaves, scores, strict=True):
        path = leaf.path
        if len(own) != len(path) or not all(0 <= score <= 1 for score in own):
            raise InputError(
                f"question {record.id}: the judge gave {np.asarray(own).tolist()} for {len(path)} steps, expected a "
                "score from 0 to 1 for each"
            )
        for node, score in zip(path, own, strict=True):
            node.score = float(score)
