"""What is the bucket's ledger's own: blocks of money, few writes, writes that collide or whose answer is lost."""

import concurrent.futures
import json

import pytest

from data_prep.answers import ledger_in_bucket
from data_prep.answers.ledger import PARTS, BudgetExceeded, create_ledger, open_ledger
from vlaa_jax.storage import Changed, RemoteFolder

pytestmark = pytest.mark.quick


def blocks(bucket) -> list[float]:
    state = json.loads(bucket.files()["ledger"])
    return [holder["block"] / PARTS for holder in state["holders"].values() if holder["block"]]


def cost(path: str) -> float:
    return sum(stage.cost for stage in open_ledger(path).summary())


def test_a_block_serves_many_requests_and_its_rest_goes_back(bucket):
    path = bucket.address("ledger")
    create_ledger(path, 10.0)
    ledger = open_ledger(path)
    for _ in range(100):
        ledger.count("caption", requests=1, prompt_tokens=7)
        ledger.settle(ledger.reserve("caption", 0.01), 0.001)
    assert blocks(bucket) == [0.32]
    assert sum(request.startswith("POST") for request in bucket.emulator.requests if "ledger" in request) <= 2
    flying = ledger.reserve("caption", 0.01)
    ledger.flush()
    assert blocks(bucket) == [0.01]  # what is in flight stays set aside
    (stage,) = open_ledger(path).summary()
    assert (stage.requests, stage.prompt_tokens, stage.cost) == (100, 700, pytest.approx(0.1))
    ledger.settle(flying, 0.01)
    ledger.flush()
    assert blocks(bucket) == [] and cost(path) == pytest.approx(0.11)


def test_without_a_budget_nothing_is_set_aside(bucket):
    ledger = create_ledger(bucket.address("ledger"), 0)
    reservation = ledger.reserve("caption", 1e6)
    ledger.settle(ledger.reserve("caption", 5.0), 4.0)
    ledger.flush()
    assert blocks(bucket) == [] and cost(bucket.address("ledger")) == 4.0
    ledger.settle(reservation, 1.0)
    assert ledger.summary()[0].cost == 5.0


def test_blocks_shrink_towards_the_end(bucket):
    path = bucket.address("ledger")
    create_ledger(path, 1.0)
    workers = [open_ledger(path) for _ in range(12)]
    for worker in workers:
        worker.reserve("caption", 0.01)
    assert sum(blocks(bucket)) < 1.0
    assert blocks(bucket) == sorted(blocks(bucket), reverse=True) and blocks(bucket)[0] == 0.125


def test_sums_are_written_now_and_then_without_a_flush(bucket, monkeypatch):
    path = bucket.address("ledger")
    monkeypatch.setattr(ledger_in_bucket, "_SECONDS", 0.0)
    monkeypatch.setattr(ledger_in_bucket, "_PATIENCE", 0)
    ledger = create_ledger(path, 1.0)
    ledger.settle(ledger.reserve("caption", 0.01), 0.005)
    ledger.count("caption", requests=1)
    assert open_ledger(path).summary() == ledger.summary()
    assert blocks(bucket) == [pytest.approx(0.12)]  # kept


def test_many_threads_with_ledgers_of_their_own_never_exceed_the_budget(bucket):
    path = bucket.address("ledger")
    create_ledger(path, 0.5)

    def work(_):
        ledger, spent = open_ledger(path), 0
        for _ in range(20):
            try:
                reservation = ledger.reserve("caption", 0.01)
            except BudgetExceeded:
                break
            state = json.loads(bucket.files()["ledger"])
            booked = sum(stage["cost"] for stage in state["stages"].values())
            assert booked + sum(holder["block"] for holder in state["holders"].values()) <= 0.5 * PARTS
            ledger.settle(reservation, 0.01)
            spent += 1
        ledger.flush()
        return spent

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        spent = sum(pool.map(work, range(6)))
    assert 25 <= spent <= 50 and cost(path) == pytest.approx(spent * 0.01)
    assert blocks(bucket) == []


def test_what_a_killed_worker_held_is_booked_whole(bucket):
    path = bucket.address("ledger")
    create_ledger(path, 1.0)
    killed = open_ledger(path)
    killed.settle(killed.reserve("distil", 0.01), 0.001)
    (stage,) = create_ledger(path, 1.0).summary()
    assert (stage.stage, stage.cost, stage.interrupted) == ("distil", 0.125, 1)
    # It was not killed after all: what it spends from now on comes from a new block.
    killed.settle(killed.reserve("distil", 0.01), 0.002)
    killed.count("distil", requests=2)
    killed.flush()
    (stage,) = open_ledger(path).summary()
    assert (stage.cost, stage.interrupted, stage.requests) == (0.125, 1, 2)
    killed.settle(killed.reserve("distil", 0.01), 0.004)
    killed.flush()
    assert cost(path) == pytest.approx(0.129)


def test_a_write_whose_answer_was_lost_is_not_repeated(bucket, monkeypatch):
    path = bucket.address("ledger")
    ledger = create_ledger(path, 1.0)
    ledger.settle(ledger.reserve("caption", 0.2), 0.1)
    ledger.count("caption", requests=1)
    lost = iter([True])
    write = RemoteFolder.write

    def unsure(self, name, content, *, expected):
        """The client tried again, and met its own write."""
        generation = write(self, name, content, expected=expected)
        if next(lost, False):
            raise Changed(name)
        return generation

    monkeypatch.setattr(RemoteFolder, "write", unsure)
    ledger.flush()
    assert next(lost, None) is None
    (stage,) = open_ledger(path).summary()
    assert (stage.cost, stage.requests) == (0.1, 1) and blocks(bucket) == []
