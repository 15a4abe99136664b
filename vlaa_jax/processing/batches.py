"""Fixed-shape batches: padded prompts for rollouts, packed rows for SFT.

What does not fit is refused with an `InputError` that says what to raise; nothing is ever cut.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from vlaa_jax.errors import InputError
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.processing.vision_plan import VisionArrays, pad_windows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Model input of a batch.

    Attributes:
      tokens: `[B, T]`.
      segments: `[B, T]` examples of a packed row count from 1; 0 is padding.
      positions: `[3, B, T]`.
      feature_index: `[B, T]` slot of each vision token among the row's merged slots, -1 on text.
      vision: the rows' patches.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    feature_index: np.ndarray
    vision: VisionArrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """What a packed batch learns: pairs of a state and the token that it must predict.

    Attributes:
      states: `[B, S]` index in the row of the state that predicts each target.
      tokens: `[B, S]` target tokens.
      segments: `[B, S]` example of each target within its row, counted from 1; 0 is padding.
    """

    states: np.ndarray
    tokens: np.ndarray
    segments: np.ndarray


def bucket(size: int, buckets: Sequence[int], what: str) -> int:
    """The smallest bucket that holds `size`.

    Raises:
      InputError: none does; `what` names the quantity.
    """
    for candidate in sorted(buckets):
        if size <= candidate:
            return candidate
    raise InputError(f"{what} is {size}, above the largest bucket {max(buckets)}")


def buckets_in_use(sizes: np.ndarray, buckets: Sequence[int], what: str) -> list[int]:
    """The buckets that batches of things of these sizes may need.

    Raises:
      InputError: as `bucket`.
    """
    smallest, largest = (bucket(int(size), buckets, what) for size in (sizes.min(), sizes.max()))
    return [size for size in sorted(buckets) if smallest <= size <= largest]


def _check_room(owner: str, size: int, unit: str, room: int) -> None:
    if size > room:
        raise InputError(
            f"{owner} has {size} {unit}, but a row has room for {room}: raise that number, or skip what is longer"
        )


def _empty_rows(count: int, length: int) -> Rows:
    shape = (count, length)
    return Rows(
        tokens=np.zeros(shape, np.int32),
        segments=np.zeros(shape, np.int32),
        positions=np.zeros((3, *shape), np.int32),
        feature_index=np.full(shape, -1, np.int32),
        vision=None,
    )


def pad_prompts(prompts: Sequence[EncodedPrompt], length: int, windows: int) -> Rows:
    """Right-pads prompts to `[B, P]` with P = `length` and W = `windows`.

    Raises:
      InputError: a prompt is longer, or its images have more windows.
    """
    rows = _empty_rows(len(prompts), length)
    for b, prompt in enumerate(prompts):
        stop = len(prompt.tokens)
        _check_room("a prompt", stop, "tokens", length)
        rows.tokens[b, :stop] = prompt.tokens
        rows.segments[b, :stop] = 1
        rows.positions[:, b, :stop] = prompt.positions
        rows.feature_index[b, :stop] = prompt.feature_index
    return dataclasses.replace(rows, vision=pad_windows([prompt.vision for prompt in prompts], windows))


def assign_rows(
    lengths: Sequence[int],
    windows: Sequence[int],
    length: int,
    row_windows: int,
    *,
    targets: Sequence[int] | None = None,
    row_targets: int | None = None,
) -> list[list[int]]:
    """First-fit-decreasing packing.

    Args:
      lengths: tokens of each example.
      windows: vision windows of each example.
      length: T of a row.
      row_windows: W of a row.
      targets: completion tokens of each example, where a row bounds them too.
      row_targets: S of a row.

    Returns:
      The examples of each row.

    Raises:
      InputError: an example is larger than a whole row.
    """
    columns, bounds = [lengths, windows], [length, row_windows]
    if targets is not None:
        columns, bounds = [*columns, targets], [*bounds, row_targets]
    for column, unit, bound in zip(columns, ("tokens", "vision windows", "completion tokens"), bounds, strict=False):
        _check_room("an example", max(column, default=0), unit, bound)
    sizes = np.asarray(columns).T
    rows: list[list[int]] = []
    free: list[np.ndarray] = []
    for example in np.argsort(-sizes[:, 0], kind="stable").tolist():
        row = next((row for row, room in enumerate(free) if (sizes[example] <= room).all()), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(np.asarray(bounds))
        rows[row].append(example)
        free[row] = free[row] - sizes[example]
    return rows


def pack(
    rows: Sequence[Sequence[tuple[EncodedPrompt, np.ndarray]]],
    *,
    count: int,
    length: int,
    windows: int,
    targets: int,
    slots_per_window: int,
    no_vision: VisionArrays,
) -> tuple[Rows, Targets]:
    """Lays prompts and their completions end to end.

    Args:
      rows: for each row its examples: a prompt and the tokens of its completion. It may have none.
      count: B; rows that are missing stay padding.
      length: T.
      windows: W.
      targets: S.
      slots_per_window: merged slots of one window.
      no_vision: arrays of no window at all.

    Returns:
      Input rows, and the targets: every completion token, predicted by the state before it.

    Raises:
      InputError: a row holds more tokens, windows or targets than its room.
      ValueError: more rows than `count`.
    """
    if len(rows) > count:
        raise ValueError(f"{len(rows)} rows for a batch of {count}")
    out = _empty_rows(count, length)
    goal = Targets(*(np.zeros((count, targets), np.int32) for _ in range(3)))
    visions = []
    for b in range(count):
        at = scored = window = frame = 0
        parts = []
        for segment, (prompt, completion) in enumerate(rows[b] if b < len(rows) else (), start=1):
            middle, stop = at + len(prompt.tokens), at + len(prompt.tokens) + len(completion)
            end = scored + len(completion)
            _check_room("a packed row", stop, "tokens", length)
            _check_room("a packed row", end, "completion tokens", targets)
            out.tokens[b, at:middle], out.tokens[b, middle:stop] = prompt.tokens, completion
            out.segments[b, at:stop] = segment
            out.positions[:, b, at:middle] = prompt.positions
            out.positions[:, b, middle:stop] = prompt.positions.max() + 1 + np.arange(len(completion))
            shifted = prompt.feature_index + window * slots_per_window
            out.feature_index[b, at:middle] = np.where(prompt.feature_index >= 0, shifted, -1)
            vision = prompt.vision
            parts.append(dataclasses.replace(vision, frames=vision.frames + frame))
            window += len(vision.frames)
            frame += int(vision.frames.max(initial=0))
            goal.states[b, scored:end] = np.arange(middle - 1, stop - 1)
            goal.tokens[b, scored:end] = completion
            goal.segments[b, scored:end] = segment
            at, scored = stop, end
        visions.append(parts)
    joined = [jax.tree.map(lambda *leaves: np.concatenate(leaves), no_vision, *parts) for parts in visions]
    return dataclasses.replace(out, vision=pad_windows(joined, windows)), goal
