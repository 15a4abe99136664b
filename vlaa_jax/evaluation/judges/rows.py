"""Questions with their solutions in batches of few shapes: each question is one row, all its solutions behind it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import tqdm

from vlaa_jax import distributed
from vlaa_jax.objectives.shared_prompt import row_bucket, row_tokens
from vlaa_jax.processing.batches import bucket
from vlaa_jax.processing.buckets import ladder
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.solutions import Solutions, SolutionShape, pad_solutions
from vlaa_jax.sharding import evenly, fetch_rows, own_rows, place_rows

# What runs grows with a row's length and windows, so their rungs are close (a factor of 1.4); the other sizes are those
# of gathers alone and double. So few programs are compiled, whatever comes.
_SHORTEST_ROW = 64
_WINDOWS = ladder(2, 4096, 22, multiple=4)
_SMALLEST = {"prompt": 64, "solutions": 2, "tokens": 32, "steps": 4}


@dataclasses.dataclass(frozen=True)
class Solved:
    """A question with solutions in tokens.

    Attributes:
      record: what the model is shown.
      solutions: tokens `[C]` and ends of steps `[S]` of each.
    """

    record: Record
    solutions: Sequence[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Row:
    """Solutions of one question that share a row: all of them, where these have room in the longest one.

    Attributes:
      question: its place.
      solutions: their places among its solutions.
      prompt, windows: sizes of its prompt.
      lengths: tokens of its solutions.
    """

    question: int
    solutions: tuple[int, ...]
    prompt: int
    windows: int
    lengths: tuple[int, ...]


def over_solutions(
    questions: Sequence[Solved],
    encoder: Encoder,
    program: Callable[[Solutions], jax.Array],
    *,
    rows: int,
    longest: int,
    description: str,
) -> list[list[np.ndarray | None]]:
    """What a program gives for every solution.

    Every process has all questions, runs the rows of its chips, and gets all results.

    Args:
      questions: with their solutions.
      encoder: of the prompts.
      program: jitted; from a batch over the mesh to `[B, G, ...]`.
      rows: B; raised to what the chips share evenly.
      longest: T of the longest row. Solutions that have no room in one together take several.
      description: for the progress bar.

    Returns:
      `[...]` for each solution; None for one that is too long for a row with its prompt.

    Raises:
      InputError: a question cannot be encoded; names its record.
    """
    batch = evenly(rows)
    lengths = _lengths(longest)
    out: list[list[np.ndarray | None]] = [[None] * len(question.solutions) for question in questions]
    plan = distributed.together(
        lambda: [row for place, question in enumerate(questions) for row in _rows(place, question, encoder, longest)]
    )
    if not plan:
        return out
    # Of like size, so that little padding runs; the largest first: if memory does not suffice, that shows at once.
    plan.sort(key=lambda row: (-_windows(row.windows), -row.prompt - sum(row.lengths)))
    fitting = [questions[row.question].solutions[g] for row in plan for g in row.solutions]
    common = {
        "prompt": max(row.prompt for row in plan),
        "solutions": max(len(row.solutions) for row in plan),
        "tokens": max(len(tokens) for tokens, _ in fitting),
        "steps": max(len(ends) for _, ends in fitting),
    }
    common = {name: _double(_SMALLEST[name], size) for name, size in common.items()}
    own = own_rows(batch)
    found: dict[int, np.ndarray] = {}
    for start in tqdm.tqdm(range(0, len(plan), batch), desc=description, leave=False, disable=None):
        chosen = plan[start : start + batch]
        filled = chosen + chosen[:1] * (batch - len(chosen))  # no other program for the last ones
        sizes = np.zeros((batch, common["solutions"]), int)
        for b, row in enumerate(filled):
            sizes[b, : len(row.lengths)] = row.lengths
        length = row_bucket(np.asarray([row.prompt for row in filled]), sizes, lengths)
        shape = SolutionShape(**common, windows=max(_windows(row.windows) for row in filled), length=length)
        mine = [filled[b] for b in own]
        arrays = distributed.together(lambda mine=mine, shape=shape: _arrays(mine, questions, encoder, shape))
        values = fetch_rows(program(place_rows(arrays)))
        found |= {start + int(b): values[i] for i, b in enumerate(own) if b < len(chosen)}
    for row, values in zip(plan, distributed.gather_rows(found), strict=True):
        for place, value in zip(row.solutions, values, strict=False):
            out[row.question][place] = value
    return out


def largest_shape(prompt: int, windows: int, solutions: int, tokens: int, steps: int, *, longest: int) -> SolutionShape:
    """Of the rows that `over_solutions` makes of a question with so many solutions of this size.

    Args:
      prompt, windows: of the question.
      solutions: of it.
      tokens, steps: of each solution.
      longest: as in `over_solutions`.
    """
    sizes = {"prompt": prompt, "solutions": solutions, "tokens": tokens, "steps": steps}
    needed = functools.partial(row_tokens, np.asarray([prompt]), np.full((1, solutions), tokens))
    lengths = _lengths(longest)
    length = next((length for length in lengths if needed(length)[0] <= length), lengths[-1])
    common = {name: _double(_SMALLEST[name], size) for name, size in sizes.items()}
    return SolutionShape(**common, windows=_windows(windows), length=length)


def _lengths(longest: int) -> tuple[int, ...]:
    return ladder(_SHORTEST_ROW, longest, max(1, round(2 * np.log2(longest / _SHORTEST_ROW))), multiple=64)


def _windows(count: int) -> int:
    return bucket(count, _WINDOWS, "a question's number of windows")


def _rows(place: int, question: Solved, encoder: Encoder, longest: int) -> list[_Row]:
    """The rows of a question: solutions in their order, as many in each as have room."""
    if not question.solutions:
        return []
    prompt, windows = encoder.sizes(question.record)
    lengths = [len(tokens) for tokens, _ in question.solutions]

    def has_room(chosen: list[int]) -> bool:
        sizes = np.asarray([[lengths[g] for g in chosen]])
        return row_tokens(np.asarray([prompt]), sizes, longest)[0] <= longest

    rows: list[list[int]] = []
    for g in range(len(lengths)):
        if rows and has_room([*rows[-1], g]):
            rows[-1].append(g)
        elif has_room([g]):
            rows.append([g])
    return [_Row(place, tuple(row), prompt, windows, tuple(lengths[g] for g in row)) for row in rows]


def _arrays(rows: Sequence[_Row], questions: Sequence[Solved], encoder: Encoder, shape: SolutionShape) -> Solutions:
    prompts = [encoder.encode(questions[row.question].record) for row in rows]
    return pad_solutions(
        prompts, [[questions[row.question].solutions[g] for g in row.solutions] for row in rows], shape
    )


def _double(smallest: int, size: int) -> int:
    """The first of `smallest`, 2 `smallest`, 4 `smallest`, ... that holds `size`."""
    while smallest < size:
        smallest *= 2
    return smallest
