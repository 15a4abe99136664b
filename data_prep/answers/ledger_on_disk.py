"""The ledger of a build on one machine: a SQLite file."""

import contextlib
import dataclasses
import pathlib
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any, Self

from data_prep.answers.ledger import PARTS, StageTotal, used_up, whole
from vlaa_jax.errors import InputError

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


class DiskLedger:
    """A `Ledger` for processes of one machine: SQLite's locks do not reach over a network."""

    def __init__(self, path: pathlib.Path):
        """Use `create` or `open`."""
        self._path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")

    @classmethod
    def create(cls, path: str, budget: float) -> Self:
        """See `create_ledger`."""
        file = pathlib.Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _said(file):
            ledger = cls(file)
            ledger._connection.executescript(_SCHEMA)
            with ledger._transaction() as connection:
                connection.execute("DELETE FROM budget")
                connection.execute("INSERT INTO budget VALUES (?)", (whole(budget),))
                connection.execute("INSERT OR IGNORE INTO stages (stage) SELECT DISTINCT stage FROM reservations")
                connection.execute(
                    "UPDATE stages SET (cost, interrupted) = (SELECT stages.cost + COALESCE(SUM(amount), 0), "
                    "stages.interrupted + COUNT(*) FROM reservations WHERE reservations.stage = stages.stage)"
                )
                connection.execute("DELETE FROM reservations")
        return ledger

    @classmethod
    def open(cls, path: str) -> Self:
        """See `open_ledger`."""
        file = pathlib.Path(path)
        if not file.is_file():
            raise InputError(
                f"ledger: {path} does not exist: it is made where the build starts; with workers on other machines it "
                "lies in a bucket, which --out=gs://BUCKET/FOLDER says"
            )
        with _said(file):
            ledger = cls(file)
            ledger._connection.execute("SELECT amount FROM budget")
        return ledger

    def reserve(self, stage: str, amount: float) -> int:
        """See `Ledger`."""
        with self._transaction() as connection:
            (budget,) = connection.execute("SELECT amount FROM budget").fetchone()
            (spent,) = connection.execute("SELECT COALESCE(SUM(cost), 0) FROM stages").fetchone()
            (reserved,) = connection.execute("SELECT COALESCE(SUM(amount), 0) FROM reservations").fetchone()
            if budget and spent + reserved + whole(amount) > budget:
                raise used_up(budget, spent, reserved, stage, amount)
            return connection.execute(
                "INSERT INTO reservations (stage, amount) VALUES (?, ?)", (stage, whole(amount))
            ).lastrowid

    def settle(self, reservation: int, cost: float) -> None:
        """See `Ledger`."""
        with self._transaction() as connection:
            row = connection.execute("SELECT stage FROM reservations WHERE id = ?", (reservation,)).fetchone()
            if row is not None:
                connection.execute("DELETE FROM reservations WHERE id = ?", (reservation,))
                _add(connection, row[0], cost=whole(cost))

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

    def flush(self) -> None:
        """Nothing is held back."""

    def summary(self) -> list[StageTotal]:
        """See `Ledger`."""
        names = [field.name for field in dataclasses.fields(StageTotal)]
        with self._lock:
            rows = self._connection.execute(f"SELECT {', '.join(names)} FROM stages ORDER BY rowid").fetchall()
        totals = [StageTotal(*row) for row in rows]
        return [dataclasses.replace(total, cost=total.cost / PARTS) for total in totals]

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


@contextlib.contextmanager
def _said(path: pathlib.Path) -> Iterator[Any]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(f"ledger: {path} is no ledger of a build ({error})") from None
