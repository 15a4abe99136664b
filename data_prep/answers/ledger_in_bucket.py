"""The ledger of a build on several machines: one small JSON object in a bucket.

A bucket takes about one write a second to an object. So a process takes money in blocks, reserves and settles against
its block in memory, and writes its sums now and then and when it is told to flush. All that was spent and all blocks
stand in the object, which changes by compare-and-swap: together they never exceed the budget. A killed process leaves
its block, which the next start books whole, and loses the counts since its last write.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Self

from data_prep.answers.ledger import PARTS, StageTotal, used_up, whole
from vlaa_jax.errors import InputError
from vlaa_jax.storage import Changed, RemoteFolder

_BLOCK = 32  # requests at their worst case in a block; settled ones leave most of it to others
_SHARE = 8  # a block takes no more than this part of what is free: processes come to use up a budget together
_SECONDS = 10.0  # between two writes of a process,
_PATIENCE = 20  # or this many times what the last one took, where many processes write
_MOST_SECONDS = 5.0  # between two tries of a write that another process forestalled

_COUNTS = tuple(field.name for field in dataclasses.fields(StageTotal) if field.name != "stage")

# budget: in PARTS, as all money here; 0 for none.
# stages: `_COUNTS` by stage.
# holders: by process, its `block`, the `stage` that it is for, and the number of its last `write`.
_State = dict[str, Any]
_KINDS = {"budget": int, "stages": dict, "holders": dict}


class BucketLedger:
    """A `Ledger` for processes of any machines."""

    def __init__(self, address: str):
        """Use `create` or `open`."""
        folder, _, self._name = address.rpartition("/")
        self._address, self._folder = address, RemoteFolder(folder)
        self._lock = threading.Lock()
        self._holder = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[str, int]] = {}  # reservations: stage and amount
        self._unwritten: dict[str, collections.Counter[str]] = {}  # counts and costs by stage
        self._block = 0  # as in the object
        self._budget = 0
        self._write = 0
        self._next = time.monotonic() + _SECONDS

    @classmethod
    def create(cls, path: str, budget: float) -> Self:
        """See `create_ledger`."""
        ledger = cls(path)

        def start(state: _State | None) -> _State:
            state = state or {"stages": {}}
            for holder in state.get("holders", {}).values():
                if holder["block"]:
                    _add(state, holder["stage"], {"cost": holder["block"], "interrupted": 1})
            return state | {"budget": whole(budget), "holders": {}}

        ledger._budget = ledger._swap(start)["budget"]
        return ledger

    @classmethod
    def open(cls, path: str) -> Self:
        """See `open_ledger`."""
        ledger = cls(path)
        state, _ = ledger._read()
        ledger._budget = ledger._there(state)["budget"]
        return ledger

    def reserve(self, stage: str, amount: float) -> int:
        """See `Ledger`."""
        with self._lock:
            if self._budget and self._left() < whole(amount):
                self._exchange(lambda state: self._block_for(state, stage, amount), stage)
            number = next(self._numbers)
            self._open[number] = stage, whole(amount)
            return number

    def settle(self, reservation: int, cost: float) -> None:
        """See `Ledger`."""
        with self._lock:
            if reservation in self._open:
                stage, _ = self._open.pop(reservation)
                self._note(stage, cost=whole(cost))

    def count(
        self,
        stage: str,
        *,
        requests: int = 0,
        cached: int = 0,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        failed: int = 0,
    ) -> None:
        """See `Ledger`."""
        with self._lock:
            self._note(
                stage,
                requests=requests,
                cached=cached,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                failed=failed,
            )

    def flush(self) -> None:
        """See `Ledger`."""
        with self._lock:
            if self._unwritten or self._left() > 0:
                self._exchange(lambda state: self._reserved() if state["budget"] else 0)

    def summary(self) -> list[StageTotal]:
        """See `Ledger`."""
        with self._lock:
            if self._unwritten:
                self._exchange()
            state = self._there(self._read()[0])
        return [
            StageTotal(stage=stage, **(counts | {"cost": counts["cost"] / PARTS}))
            for stage, counts in state["stages"].items()
        ]

    def _note(self, stage: str, **amounts: int) -> None:
        self._unwritten.setdefault(stage, collections.Counter()).update(amounts)
        if time.monotonic() >= self._next:
            self._exchange()

    def _reserved(self) -> int:
        return sum(amount for _, amount in self._open.values())

    def _left(self) -> int:
        """Of the block, for new reservations; below 0 once a cost was above its reservation."""
        return self._block - self._reserved() - sum(counts["cost"] for counts in self._unwritten.values())

    def _block_for(self, state: _State, stage: str, amount: float) -> int:
        """The block with which `amount` can be reserved, once all costs are in `state`; raises `BudgetExceeded`."""
        budget = state["budget"]
        spent = sum(counts["cost"] for counts in state["stages"].values())
        others = sum(holder["block"] for key, holder in state["holders"].items() if key != self._holder)
        used, needed = spent + others + self._reserved(), whole(amount)
        if budget and used + needed > budget:
            raise used_up(budget, spent, used - spent, stage, amount)
        return self._reserved() + max(needed, min(_BLOCK * needed, (budget - used) // _SHARE))

    def _exchange(self, block: Callable[[_State], int] | None = None, stage: str = "") -> None:
        """Writes what is unwritten.

        Args:
          block: of the state after that, this process's new block; None to keep what is left of the one it has.
          stage: that a new block is for.
        """
        begin = time.monotonic()
        self._write += 1

        def change(state: _State | None) -> _State | None:
            state = self._there(state)
            mine = state["holders"].get(self._holder, {"block": 0, "stage": stage, "write": 0})
            if mine["write"] == self._write:
                return None  # the answer to our write was lost on the way
            if self._block and self._holder not in state["holders"]:
                self._block = 0  # a new start has booked it, with all that was reserved and spent of it
                self._open.clear()
                for counts in self._unwritten.values():
                    counts["cost"] = 0
            left = mine["block"]
            for name, counts in self._unwritten.items():
                _add(state, name, counts)
                left -= counts["cost"]
            mine = {"block": max(left, 0), "stage": stage or mine["stage"], "write": self._write}
            state["holders"][self._holder] = mine
            mine["block"] = block(state) if block else mine["block"]
            return state

        state = self._swap(change)
        self._unwritten.clear()
        self._budget, self._block = state["budget"], state["holders"][self._holder]["block"]
        now = time.monotonic()
        self._next = now + max(_SECONDS, _PATIENCE * (now - begin))

    def _swap(self, change: Callable[[_State | None], _State | None]) -> _State:
        """Puts `change` of the state in its place; returns the new one, or the one that `change` wants no change of."""
        wait = 0.05
        while True:
            state, generation = self._read()
            changed = change(state)
            if changed is None:
                return self._there(state)
            with contextlib.suppress(Changed):
                self._folder.write(self._name, json.dumps(changed).encode(), expected=generation)
                return changed
            time.sleep(random.uniform(0, wait))
            wait = min(2 * wait, _MOST_SECONDS)

    def _read(self) -> tuple[_State | None, int]:
        """The state and its generation; None and 0 before the first start."""
        found = self._folder.read(self._name)
        if found is None:
            return None, 0
        try:
            state = json.loads(found[0])
            if not all(isinstance(state[name], kind) for name, kind in _KINDS.items()):
                raise ValueError("other fields were expected")
            return state, found[1]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"ledger: {self._address} is no ledger of a build ({error})") from None

    def _there(self, state: _State | None) -> _State:
        if state is None:
            raise InputError(f"ledger: {self._address} does not exist: the build makes it when it starts")
        return state


def _add(state: _State, stage: str, amounts: dict[str, int]) -> None:
    counts = state["stages"].setdefault(stage, dict.fromkeys(_COUNTS, 0))
    for name, amount in amounts.items():
        counts[name] += amount
