"""Which completion runs in which row, and which prompt lies in which slot: decided on the host between segments.

Every process decides for all chips, from numbers that all have, so all launch the same programs.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from vlaa_jax.rollout.sampler import PREFILL_TOKENS

SEGMENT = 16  # steps: fewer leave less to rows that have ended, more ask the host less often
_FEWEST_ROWS = 8  # of a chip: fewer cost as much


def row_buckets(slots: int, group: int, ratio: int) -> tuple[int, ...]:
    """Numbers of rows that a chip's decode programs have, falling: each `ratio` times less than the one before."""
    sizes = [slots * group]
    while sizes[-1] >= 1.5 * _FEWEST_ROWS:  # a last one that is hardly smaller would not pay
        sizes.append(max(-(-sizes[-1] // ratio), _FEWEST_ROWS))
    return tuple(sizes)


def slots_beside(rows: int, slots: int) -> int:
    """Slots that are kept beside so many rows, of those there are at first."""
    return min(slots, rows)


def moves(slots: int, buckets: Sequence[int], *, refill: bool) -> list[tuple[int, int]]:
    """Numbers of rows that follow each other.

    Args:
      slots: of a chip.
      buckets: `row_buckets`.
      refill: whether prompts wait for a slot.
    """
    fewer = list(itertools.combinations(buckets, 2))
    return fewer + [(few, many) for many, few in fewer if refill and few >= slots]


def prompts_at_once(slots: int, length: int) -> int:
    """U, prompts of a chip that are prefilled together, of so many slots and tokens."""
    return max(1, min(-(-slots // 4), PREFILL_TOKENS // length))


def steps_of_segment(segment: int, new_tokens: int) -> int:
    """Steps of a decode program; the first token of a completion needs none."""
    return max(1, min(segment, new_tokens - 1))


@dataclasses.dataclass(frozen=True)
class Admission:
    """Prompts that run next.

    Attributes:
      slots, prompts: `[chips, U]` places of each among its chip's slots and prompts; beyond the end of both where a
        chip has fewer.
    """

    slots: np.ndarray
    prompts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Move:
    """Another number of rows, or of slots.

    Attributes:
      rows: `[chips, R]` old row of each new one.
      slots: `[chips, B]` likewise; None where slots stay.
    """

    rows: np.ndarray
    slots: np.ndarray | None


class Schedule:
    """The state of all chips.

    Attributes:
      completions: `[chips, R]` place of each row's completion among those of its chip's prompts; -1: none.
      prompts: `[chips, B]` prompt of each slot; -1: none.
    """

    def __init__(self, chips: int, prompts: int, slots: int, group: int, at_once: int, ratio: int = 2):
        """Nothing has begun.

        Args:
          chips: that rows are dealt to.
          prompts: of each chip.
          slots: B of each chip.
          group: G.
          at_once: U, prompts of each chip that are prefilled together.
          ratio: of `row_buckets`.
        """
        self._count, self._slots, self._group, self._at_once = prompts, slots, group, at_once
        self._buckets = row_buckets(slots, group, ratio)
        self._next = np.zeros(chips, int)  # prompt of each chip
        self._waiting_rows: list[list[int]] = [[] for _ in range(chips)]  # admitted completions without a row
        self.prompts = np.full((chips, slots), -1)
        self.completions = np.full((chips, self._buckets[0]), -1)

    @property
    def busy(self) -> bool:
        """Whether a completion is under way."""
        return bool((self.prompts >= 0).any())

    def row_slots(self) -> np.ndarray:
        """`[chips, R]` slot of each row's prompt; 0 where it has none."""
        found = self._slot_of(np.maximum(self.completions, 0) // self._group)
        return np.where(self.completions >= 0, found, 0)

    def admit(self) -> Admission | None:
        """The next prompts for free slots; None where it is better to wait until more are free.

        Half of what one prefill could take, or all that is left: a prefill costs the same however full it is.
        """
        left = self._count - self._next
        free = (self.prompts < 0).sum(axis=1) * (self.prompts.shape[1] == self._slots)
        most = np.minimum(left, self._at_once)
        taken = np.minimum(most, free)
        if 2 * taken.sum() < most.sum() or not taken.any():
            return None
        shape = (len(taken), self._at_once)
        out = Admission(np.full(shape, self._slots), np.full(shape, self._count))
        for chip, count in enumerate(taken):
            prompts = self._next[chip] + np.arange(count)
            slots = np.flatnonzero(self.prompts[chip] < 0)[:count]
            out.slots[chip, :count], out.prompts[chip, :count] = slots, prompts
            self.prompts[chip, slots] = prompts
            self._waiting_rows[chip] += (prompts[:, None] * self._group + np.arange(self._group)).ravel().tolist()
        self._next += taken
        return out

    def fit(self) -> Move | None:
        """Gives every live completion a row, in the smallest bucket that holds those of the fullest chip."""
        live = max(
            int((own >= 0).sum()) + len(new) for own, new in zip(self.completions, self._waiting_rows, strict=True)
        )
        # As long as prompts wait no slot may go.
        fewest = self._slots if (self._next < self._count).any() else 0
        size = min(size for size in self._buckets if size >= max(live, fewest))
        move = self._resize(size) if size != self.completions.shape[1] else None
        in_place = size == self.prompts.shape[1] * self._group
        for chip, new in enumerate(self._waiting_rows):
            free = self._home(chip, np.asarray(new, int)) if in_place else np.flatnonzero(self.completions[chip] < 0)
            self.completions[chip, free[: len(new)]] = new
            new.clear()
        return move

    def retire(self, done: np.ndarray) -> None:
        """Frees the rows of completions that are done, `[chips, prompts, G]`, and the slots of prompts that all are."""
        flat = done.reshape(len(done), -1)
        for chip, own in enumerate(self.completions):
            own[(own >= 0) & flat[chip, np.maximum(own, 0)]] = -1
            slots = self.prompts[chip]
            slots[(slots >= 0) & done[chip].all(axis=1)[np.maximum(slots, 0)]] = -1

    def _resize(self, size: int) -> Move:
        chips, slots = len(self.prompts), slots_beside(size, self._slots)
        moved_slots = None
        if slots != self.prompts.shape[1]:
            moved_slots = np.argsort(self.prompts < 0, axis=1, kind="stable")[:, :slots]
            self.prompts = np.take_along_axis(self.prompts, moved_slots, axis=1)
        rows, completions = np.zeros((chips, size), int), np.full((chips, size), -1)
        for chip, own in enumerate(self.completions):
            (old,) = np.nonzero(own >= 0)
            new = self._home(chip, own[old]) if size == slots * self._group else np.arange(len(old))
            rows[chip, new], completions[chip, new] = old, own[old]
        self.completions = completions
        return Move(rows, moved_slots)

    def _home(self, chip: int, completions: np.ndarray) -> np.ndarray:
        """Rows in the order of slots and numbers (`decode._by_prompt`)."""
        slots = np.asarray([np.flatnonzero(self.prompts[chip] == c // self._group)[0] for c in completions], int)
        return slots * self._group + completions % self._group

    def _slot_of(self, prompts: np.ndarray) -> np.ndarray:
        """`[chips, R]` slot of each prompt."""
        return np.argmax(prompts[:, :, None] == self.prompts[:, None], axis=2)
