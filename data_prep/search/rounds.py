"""Rounds of a search: all trees of a chunk name their leaves, one batch completes them, one call judges them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from data_prep.search.tree import Rollout, Rules, Tree
from vlaa_jax.processing.images import Resize
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import Request, Trace, accuracy

Verify = Callable[[Sequence[Request]], Sequence[Trace]]


@dataclasses.dataclass(frozen=True)
class Question:
    """A question that is searched.

    Attributes:
      place: of its record in the split.
      record: what is asked.
    """

    place: int
    record: Record


@dataclasses.dataclass(frozen=True)
class Start:
    """A node that rollouts start from.

    Attributes:
      texts: its steps as sampled.
      draw: names the random bits of its rollouts.
    """

    texts: tuple[str, ...]
    draw: int


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a policy wrote: text up to its end token, tokens with it, and whether the bound on new tokens cut it."""

    text: str
    tokens: int
    is_cut: bool


class Policy(Protocol):
    """What completes partial solutions; the same start of the same question has the same completions."""

    def begin(self, records: Sequence[Record]) -> Sequence[Sequence[Resize]]:
        """Makes ready to sample solutions of these questions, and of no others.

        Returns:
          How the images of each are scaled.
        """
        ...

    def fits(self, texts: Sequence[str]) -> bool:
        """Whether a partial solution has room."""
        ...

    def sample(self, starts: Sequence[Start]) -> list[list[Completion]]:
        """Several completions of each start: as many starts of every question, one question after the other."""
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is searched.

    Attributes:
      rounds: of every tree.
      leaves: of a tree, in a round.
      rules: how trees grow.
    """

    rounds: int
    leaves: int
    rules: Rules


def grow(
    questions: Sequence[Question],
    policy: Policy,
    verify: Verify,
    plan: Plan,
    check_round: Callable[[], None] = lambda: None,
) -> list[Tree]:
    """The trees of some questions. A tree depends on its own question alone, not on those beside it.

    Args:
      questions: one chunk.
      policy: completes partial solutions.
      verify: judges solutions.
      plan: how much is searched.
      check_round: called after every round; it may raise.
    """
    trees = [Tree(plan.rules) for _ in questions]
    resizes = policy.begin([question.record for question in questions])
    for number in range(plan.rounds):
        chosen = [
            (place, node, number * plan.leaves + leaf)
            for place, tree in enumerate(trees)
            for leaf, node in enumerate(tree.select(plan.leaves, lambda node: policy.fits(node.texts)))
        ]
        starts = [
            Start(node.texts, draw_number(questions[place].place, simulation)) for place, node, simulation in chosen
        ]
        groups = policy.sample(starts)
        requests = [
            _request(questions[place].record, resizes[place], start, completion)
            for (place, _, _), start, group in zip(chosen, starts, groups, strict=True)
            for completion in group
        ]
        traces = iter(verify(requests))
        for (place, node, _), group in zip(chosen, groups, strict=True):
            verifier = questions[place].record.verifier
            trees[place].add(node, [_rollout(completion, next(traces), verifier) for completion in group])
        check_round()
    return trees


def draw_number(place: int, simulation: int) -> int:
    """Names the random bits of a question's simulation, wherever and whenever it runs."""
    return place << 32 | simulation


def _request(record: Record, resizes: Sequence[Resize], start: Start, completion: Completion) -> Request:
    """The whole solution, to be judged."""
    return Request(record.verifier, "".join(start.texts) + completion.text, record.answer, record, resizes)


def _rollout(completion: Completion, trace: Trace, verifier: str) -> Rollout:
    return Rollout(
        completion.text,
        completion.tokens,
        completion.is_cut,
        reward=trace.score,
        right=accuracy(trace, verifier),
        answer=trace.extracted,
    )
