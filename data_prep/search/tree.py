"""A search tree over the steps of solutions: PUCT selects where to sample from, rollouts grow it and back up rewards.

The root is the question, an edge is one step, a node is the partial solution that its path spells out. A rollout is a
whole solution: all of its steps become nodes, so a tree after one round is the sampled solutions with their common
beginnings laid together. Nothing is drawn here.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from vlaa_jax.processing.steps import cut_steps

Prior = Literal["visits", "uniform"]
Duplicates = Literal["normalised", "exact"]


@dataclasses.dataclass(eq=False)
class Node:
    """A partial solution.

    Attributes:
      text: its last step as sampled, with the white space behind it; '' of the root.
      parent: None of the root.
      children: by their texts without what duplicates may differ in, in the order in which they were found.
      visits: rollouts through it.
      total: sum of their rewards.
      drawn: those of them that came here by the policy's own draw from the parent, rather than by selection.
      sampled: how often rollouts have started here.
      ends: rollouts that end here.
      answer: text of the answer of the first of these; None where there is no single one.
      right: whether that answer is; None where no rollout ends.
      score: a judge's, of the step; None where none was asked.
    """

    text: str
    parent: "Node | None" = None
    children: dict[str, "Node"] = dataclasses.field(default_factory=dict)
    visits: int = 0
    total: float = 0.0
    drawn: int = 0
    sampled: int = 0
    ends: int = 0
    answer: str | None = None
    right: bool | None = None
    score: float | None = None

    @property
    def mean(self) -> float:
        """Mean reward of the rollouts through it."""
        return self.total / self.visits if self.visits else 0.0

    @property
    def path(self) -> "list[Node]":
        """From the first step to this node; empty of the root."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    @property
    def texts(self) -> tuple[str, ...]:
        """The steps of the path as sampled; joined they are the partial solution."""
        return tuple(node.text for node in self.path)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A sampled solution and what became of it.

    Attributes:
      text: what the policy wrote behind the node that it started from, up to its end token.
      tokens: of it, the end token included.
      is_cut: whether the bound on new tokens ended it, perhaps in the middle of a step.
      reward: in [0, 1].
      right: whether its answer is.
      answer: text of it; None where there is no single one.
    """

    text: str
    tokens: int
    is_cut: bool
    reward: float
    right: bool
    answer: str | None


@dataclasses.dataclass(frozen=True)
class Rules:
    """How trees grow.

    Attributes:
      depth: of the deepest node that rollouts start from, in steps.
      width: children of a node that selection goes on to: the most often drawn ones; 0 for all.
      exploration: PUCT's constant.
      prior: PUCT's prior of a child: its share of the policy's draws at the parent, or the same for all children.
      duplicates: texts that are one step: those that are equal but for case, blanks and a final stop, or exactly equal
        ones.
    """

    depth: int
    width: int
    exploration: float
    prior: Prior
    duplicates: Duplicates

    def key(self, step: str) -> str:
        """What duplicates of a step share."""
        if self.duplicates == "exact":
            return step.strip()
        return " ".join(step.split()).casefold().rstrip(".").rstrip()


class Tree:
    """One question's tree.

    Attributes:
      root: the question.
      right: rollouts whose answer is right.
      cut: rollouts that were cut.
      tokens: of all rollouts.
    """

    def __init__(self, rules: Rules):
        self._rules = rules
        self.root = Node("")
        self.right = self.cut = self.tokens = 0

    @property
    def rollouts(self) -> int:
        """Added so far."""
        return self.root.visits

    def nodes(self) -> Iterator[Node]:
        """All, the root first, every node before its children, children in the order in which they were found."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children.values())

    def select(self, count: int, fits: Callable[[Node], bool] = lambda node: True) -> list[Node]:
        """Nodes that rollouts start from next, by PUCT; one is named again only where there are no others.

        From the root on, the best child is followed until a node is reached that nothing was sampled from yet. When all
        that may be sampled from has been, the root is sampled from again: new first steps may turn up.

        Args:
          count: how many.
          fits: whether the partial solution has room in the sampler.
        """
        chosen: list[Node] = []
        while len(chosen) < count:
            chosen.append(self._find(self.root, 0, chosen, fits) or self.root)
        return chosen

    def _find(self, node: Node, depth: int, chosen: list[Node], fits: Callable[[Node], bool]) -> Node | None:
        """The first node below that may be sampled from, best children first."""
        is_new = not node.sampled and not node.ends and not any(node is other for other in chosen)
        if is_new and depth <= self._rules.depth and fits(node):
            return node
        for child in self._ranked(node) if depth < self._rules.depth else ():
            found = self._find(child, depth + 1, chosen, fits)
            if found is not None:
                return found
        return None

    def _ranked(self, node: Node) -> list[Node]:
        """The children that selection may follow, best first; of equal ones the one found first."""
        children = list(node.children.values())
        if self._rules.width:
            children = sorted(children, key=lambda child: -child.drawn)[: self._rules.width]
        return sorted(children, key=lambda child: -self.puct(child))

    def puct(self, child: Node) -> float:
        """Mean reward of a child and what speaks for looking at it more closely.

            Q + c * P * sqrt(N(parent)) / (1 + N(child))

        (PUCT of AlphaGo Zero. ViLBench, section 6.2 of our notes, states neither formula nor constant.)
        """
        siblings = child.parent.children.values()
        if self._rules.prior == "uniform":
            prior = 1 / len(siblings)
        else:
            prior = child.drawn / sum(sibling.drawn for sibling in siblings)
        return child.mean + self._rules.exploration * prior * math.sqrt(child.parent.visits) / (1 + child.visits)

    def add(self, start: Node, rollouts: Sequence[Rollout]) -> None:
        """Adds rollouts that started from a node, and backs their rewards up to the root."""
        start.sampled += 1
        for rollout in rollouts:
            self.right += rollout.right
            self.cut += rollout.is_cut
            self.tokens += rollout.tokens
            self._add(start, rollout)

    def _add(self, start: Node, rollout: Rollout) -> None:
        path = start.path
        steps = cut_steps("".join(node.text for node in path) + rollout.text)
        # A continuation may make other steps of what stands before it: it then says nothing about those behind.
        follows = [step.strip() for step in steps[: len(path)]] == [node.text.strip() for node in path]
        ends = follows and not rollout.is_cut
        visited, node = [self.root, *path], start
        for step in steps[len(path) : None if ends else -1] if follows else ():
            node = self._child(node, step)
            node.drawn += 1
            visited.append(node)
        for each in visited:
            each.visits += 1
            each.total += rollout.reward
        if ends:
            if not node.ends:
                node.answer, node.right = rollout.answer, rollout.right
            node.ends += 1

    def _child(self, node: Node, text: str) -> Node:
        key = self._rules.key(text)
        child = node.children.get(key)
        if child is None:
            child = node.children[key] = Node(text, node)
        elif not child.children:
            child.text = text  # until now it was the end of a rollout, without the white space behind a step
        return child

    def to_json(self) -> dict[str, Any]:
        """Counts, and the nodes in the order of `nodes`, each with the place of its parent; without what is empty."""
        places: dict[int, int] = {}
        rows = []
        for place, node in enumerate(self.nodes()):
            places[id(node)] = place
            row: dict[str, Any] = {"text": node.text, "visits": node.visits, "total": node.total, "drawn": node.drawn}
            if node.parent is not None:
                row["parent"] = places[id(node.parent)]
            row |= {name: value for name in ("sampled", "ends") if (value := getattr(node, name))}
            row |= {name: value for name in ("answer", "right", "score") if (value := getattr(node, name)) is not None}
            rows.append(row)
        return {"right": self.right, "cut": self.cut, "tokens": self.tokens, "nodes": rows}

    @classmethod
    def from_json(cls, rules: Rules, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        tree = cls(rules)
        tree.right, tree.cut, tree.tokens = stored["right"], stored["cut"], stored["tokens"]
        nodes: list[Node] = []
        for row in stored["nodes"]:
            fields = {name: value for name, value in row.items() if name != "parent"}
            nodes.append(Node(**fields, parent=nodes[row["parent"]] if nodes else None))
            if len(nodes) > 1:
                nodes[-1].parent.children[rules.key(row["text"])] = nodes[-1]
        tree.root = nodes[0]
        return tree
