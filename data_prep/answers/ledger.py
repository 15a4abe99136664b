"""What the stages of a build have asked and paid for, and the budget, over all workers and starts.

Money is reserved before a request is sent and settled when its end is known, so that requests in flight in any thread,
process or machine never exceed the budget together. What was reserved when a worker was killed stays reserved; the next
start of the build books it as spent at its worst case, because the answer may have been paid for: the budget holds
whatever happened.
"""

import dataclasses
from typing import Any, Protocol

from vlaa_jax.errors import InputError
from vlaa_jax.storage import is_remote

PARTS = 10**9  # of a unit of currency: sums of whole numbers do not depend on their order


class BudgetExceeded(InputError):
    """A request was not sent, because it could exceed the budget."""


@dataclasses.dataclass(frozen=True)
class StageTotal:
    """A stage over all starts of the build.

    Attributes:
      stage: its name.
      requests: that a model was asked, however they ended.
      cached: answers that were there already.
      prompt_tokens, completion_tokens: of answers that a model gave.
      cost: with tries that may have been paid for though no answer came.
      failed: requests that have no answer after all retries.
      interrupted: reservations (in a bucket, blocks of money) that a killed worker left; their worst case is in `cost`.
    """

    stage: str
    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    failed: int
    interrupted: int


class Ledger(Protocol):
    """Safe for threads and processes; `create_ledger` and `open_ledger` say where."""

    def reserve(self, stage: str, amount: float) -> int:
        """Sets the worst case of one try aside; returns the reservation's number for `settle`.

        Raises:
          BudgetExceeded: with everything spent and reserved it would exceed the budget.
        """

    def settle(self, reservation: int, cost: float) -> None:
        """Replaces a reservation by what the try cost; one that a new start has booked stays as booked."""

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
        """Adds to a stage's counts, see `StageTotal`."""

    def flush(self) -> None:
        """Makes all of the above known to other processes, and gives back money that nothing is reserved for."""

    def summary(self) -> list[StageTotal]:
        """The stages in the order of their first request; what other processes have not flushed may be missing."""


def create_ledger(path: str, budget: float) -> Ledger:
    """Starts a build, or starts it again: what was spent stays, what was reserved becomes spent.

    Args:
      path: local file, whose folder is made, for workers on one machine; `gs://bucket/folder/name` for any.
      budget: of all stages and starts together; 0 for none.

    Raises:
      InputError: a file that is no ledger, or a budget below 0.
    """
    if not 0 <= budget < float("inf"):
        raise InputError(f"budget is {budget}, expected 0 (none) or more")
    return _class(path).create(path, budget)


def open_ledger(path: str) -> Ledger:
    """The ledger of a build that has started.

    Raises:
      InputError: there is none.
    """
    return _class(path).open(path)


def _class(path: str) -> type[Any]:
    if is_remote(path):
        from data_prep.answers.ledger_in_bucket import BucketLedger

        return BucketLedger
    from data_prep.answers.ledger_on_disk import DiskLedger

    return DiskLedger


def whole(amount: float) -> int:
    """Money in `PARTS`."""
    return round(amount * PARTS)


def used_up(budget: int, spent: int, reserved: int, stage: str, amount: float) -> BudgetExceeded:
    """The error of `Ledger.reserve`, from sums in `PARTS`."""
    return BudgetExceeded(
        f"the budget of {budget / PARTS:g} is used up: {spent / PARTS:.4f} spent, {reserved / PARTS:.4f} in flight, "
        f"and the next request of stage {stage} may cost {amount:.4f}; a start with a larger budget goes on from here"
    )
