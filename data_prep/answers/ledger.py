"""What the stages of a build have asked and paid for, and the budget, in one SQLite file.

Money is reserved before a request is sent and settled when its end is known, so that requests in flight in any thread
or process of the machine never exceed the budget together. A reservation whose process was killed stays open; the next
start of the build books it as spent at its worst case, because the answer may have been paid for: the budget holds
whatever happened, and at most the requests in flight at the kill are overestimated.
"""

import contextlib
import dataclasses
import pathlib
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any, Self

from vlaa_jax.errors import InputError
from vlaa_jax.storage import is_remote

_PARTS = 10**9  # of a unit of currency: sums of whole numbers do not depend on their order
_BUSY_SECONDS = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS budget (amount INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS reservations (
  id INTEGER PRIMARY KEY AUTOINCREMENT, stage TEXT NOT NULL, amount INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS stages (
  stage TEXT PRIMARY KEY, requests INTEGER DEFAULT 0, cached INTEGER DEFAULT 0, prompt_tokens INTEGER DEFAULT 0,
  completion_tokens INTEGER DEFAULT 0, cost INTEGER DEFAULT 0, failed INTEGER DEFAULT 0, interrupted INTEGER DEFAULT 0
);
"""


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
      interrupted: tries under way when a process was killed; their worst case is in `cost`.
    """

    stage: str
    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    failed: int
    interrupted: int


class Ledger:
    """Safe for threads, and for processes of one machine (SQLite's locks do not reach over a network)."""

    def __init__(self, path: pathlib.Path):
        """Use `create` or `open`."""
        self._path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")

    @classmethod
    def create(cls, path: str, budget: float) -> Self:
        """Starts a build, or starts it again: what was spent stays, open reservations become spent.

        Args:
          path: local file; its folder is made.
          budget: of all stages and starts together; 0 for none.

        Raises:
          InputError: no local path, a file that is no ledger, or a budget below 0.
        """
        if is_remote(path):
            raise InputError(f"ledger: {path} lies in a bucket, expected a local file")
        if not 0 <= budget < float("inf"):
            raise InputError(f"budget is {budget}, expected 0 (none) or more")
        file = pathlib.Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _said(file):
            ledger = cls(file)
            ledger._connection.executescript(_SCHEMA)
            with ledger._transaction() as connection:
                connection.execute("DELETE FROM budget")
                connection.execute("INSERT INTO budget VALUES (?)", (_whole(budget),))
                connection.execute("INSERT OR IGNORE INTO stages (stage) SELECT DISTINCT stage FROM reservations")
                connection.execute(
                    "UPDATE stages SET (cost, interrupted) = (SELECT stages.cost + COALESCE(SUM(amount), 0), "
                    "stages.interrupted + COUNT(*) FROM reservations WHERE reservations.stage = stages.stage)"
                )
                connection.execute("DELETE FROM reservations")
        return ledger

    @classmethod
    def open(cls, path: str) -> Self:
        """The ledger of a build that has started.

        Raises:
          InputError: there is none.
        """
        file = pathlib.Path(path)
        if not file.is_file():
            raise InputError(f"ledger: {path} does not exist: the build makes it on the machine that it starts on")
        with _said(file):
            ledger = cls(file)
            ledger._connection.execute("SELECT amount FROM budget")
        return ledger

    def reserve(self, stage: str, amount: float) -> int:
        """Sets the worst case of one try aside; returns the reservation's number for `settle`.

        Raises:
          BudgetExceeded: with everything spent and reserved it would exceed the budget.
        """
        with self._transaction() as connection:
            (budget,) = connection.execute("SELECT amount FROM budget").fetchone()
            (spent,) = connection.execute("SELECT COALESCE(SUM(cost), 0) FROM stages").fetchone()
            (reserved,) = connection.execute("SELECT COALESCE(SUM(amount), 0) FROM reservations").fetchone()
            if budget and spent + reserved + _whole(amount) > budget:
                raise BudgetExceeded(
                    f"the budget of {budget / _PARTS:g} is used up: {spent / _PARTS:.4f} spent, "
                    f"{reserved / _PARTS:.4f} in flight, and the next request of stage {stage} may cost {amount:.4f}; "
                    "a start with a larger budget goes on from here"
                )
            return connection.execute(
                "INSERT INTO reservations (stage, amount) VALUES (?, ?)", (stage, _whole(amount))
            ).lastrowid

    def settle(self, reservation: int, cost: float) -> None:
        """Replaces a reservation by what the try cost; one that a new start has booked stays as booked."""
        with self._transaction() as connection:
            row = connection.execute("SELECT stage FROM reservations WHERE id = ?", (reservation,)).fetchone()
            if row is not None:
                connection.execute("DELETE FROM reservations WHERE id = ?", (reservation,))
                _add(connection, row[0], cost=_whole(cost))

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
        with self._transaction() as connection:
            _add(
                connection,
                stage,
                requests=requests,
                cached=cached,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                failed=failed,
            )

    def summary(self) -> list[StageTotal]:
        """The stages in the order of their first request."""
        names = [field.name for field in dataclasses.fields(StageTotal)]
        with self._lock:
            rows = self._connection.execute(f"SELECT {', '.join(names)} FROM stages ORDER BY rowid").fetchall()
        totals = [StageTotal(*row) for row in rows]
        return [dataclasses.replace(total, cost=total.cost / _PARTS) for total in totals]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One writer at a time, of all threads and processes."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise


def _add(connection: sqlite3.Connection, stage: str, **amounts: int) -> None:
    connection.execute("INSERT OR IGNORE INTO stages (stage) VALUES (?)", (stage,))
    sums = ", ".join(f"{name} = {name} + ?" for name in amounts)
    connection.execute(f"UPDATE stages SET {sums} WHERE stage = ?", (*amounts.values(), stage))


def _whole(amount: float) -> int:
    return round(amount * _PARTS)


@contextlib.contextmanager
def _said(path: pathlib.Path) -> Iterator[Any]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(f"ledger: {path} is no ledger of a build ({error})") from None
