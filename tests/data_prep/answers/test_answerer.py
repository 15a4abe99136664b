"""Cache, model and ledger together: nothing is asked or paid twice, whatever is killed."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import urllib.request

import loopback
import pytest

from data_prep.answers.ledger import BudgetExceeded
from data_prep.answers.model import Answer, Request, Unanswered
from data_prep.answers.open import open_answerer
from vlaa_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[3]


def requests(count, **fields):
    return [Request(f"Question {number}", **fields) for number in range(count)]


def texts(results):
    return [result.text for result in results]


def test_a_second_build_asks_nothing(desk, server):
    first = desk.answerer(price_completion=1.0).answer(requests(5))
    second = desk.answerer(price_completion=1.0, concurrency=3).answer(requests(7))
    assert texts(second[:5]) == texts(first) and server.requests == 7
    assert [answer.cached for answer in second] == [True] * 5 + [False] * 2
    assert [answer.cost > 0 for answer in second] == [False] * 5 + [True] * 2
    total = desk.total()
    assert (total.requests, total.cached, total.failed) == (7, 5, 0)
    assert total.completion_tokens == sum(answer.completion_tokens for answer in first + second[5:])
    assert total.cost == pytest.approx(sum(answer.cost for answer in first + second))


def test_in_a_bucket(desk, server, bucket):
    cache = bucket.address("cache")
    first = desk.answerer(cache=cache).answer(requests(3))
    assert texts(desk.answerer(cache=cache, concurrency=3).answer(requests(3))) == texts(first)
    assert server.requests == 3 and len(bucket.files("cache")) == 3


def test_failures_are_not_kept(desk, server):
    server.reply = lambda request, number: loopback.failed(400) if number == 1 else loopback.answer(request)
    results = desk.answerer(concurrency=1).answer(requests(3))
    assert [type(result) for result in results] == [Answer, Unanswered, Answer]
    assert all(isinstance(result, Answer) for result in desk.answerer(concurrency=1).answer(requests(3)))
    assert server.requests == 4
    total = desk.total()
    assert (total.requests, total.cached, total.failed) == (4, 2, 1)


def test_duplicates_in_a_batch_are_sent_once(desk, server):
    results = desk.answerer(price_completion=1.0).answer([*requests(2), *requests(2), Request("Question 0", attempt=1)])
    assert server.requests == 3
    assert [result.cached for result in results] == [False, False, True, True, False]
    assert desk.total().cost == pytest.approx(sum(result.cost for result in results))


def test_duplicates_in_threads_and_copies_are_sent_once(desk, server):
    server.reply = loopback.delayed(0.1)
    copies = [pickle.loads(pickle.dumps(desk.answerer())) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda copy: texts(copy.answer(requests(6))), copies))
    assert server.requests == 6 and results == [results[0]] * 4


def test_who_waits_for_another_thread_hears_of_its_error(desk, server):
    asked = threading.Event()

    def reply(request, number):
        asked.set()
        return dataclasses.replace(loopback.failed(401), seconds=0.2)

    server.reply = reply
    answerer = desk.answerer()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(answerer.answer, requests(1))
        asked.wait(5)
        with pytest.raises(InputError, match="401"):
            answerer.answer(requests(1))
        with pytest.raises(InputError, match="401"):
            other.result()
    server.reply = loopback.answer
    assert isinstance(answerer.answer(requests(1))[0], Answer)  # nothing is left behind


def test_a_damaged_entry_is_asked_again(desk, server):
    answerer = desk.answerer()
    (first,) = answerer.answer(requests(1))
    (entry,) = (desk.folder / "cache").rglob("*.json")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:20])
    (again,) = answerer.answer(requests(1))
    assert again == first and entry.read_bytes() == whole and server.requests == 2


def test_the_budget_ends_a_build_and_nothing_paid_is_lost(desk, server):
    server.reply = lambda request, number: loopback.completion(request, "word " * 7)
    fields = {"price_completion": 1e6, "concurrency": 4}
    with pytest.raises(BudgetExceeded):
        desk.answerer(budget=100.0, **fields).answer(requests(60, max_tokens=20))
    paid = server.requests
    assert desk.total().cost == 7 * paid <= 100
    results = desk.answerer(budget=1000.0, **fields).answer(requests(60, max_tokens=20))
    assert server.requests == 60 and sum(answer.cached for answer in results) == paid


KILLED = """
import sys
from data_prep.answers.ledger import create_ledger
from data_prep.answers.model import Request
from data_prep.answers.open import open_answerer
folder, url = sys.argv[1:]
create_ledger(f"{folder}/ledger", 0)
section = {"model": "tiny", "base_url": url, "concurrency": 4, "retries": 8, "price_completion": 1.0}
answerer = open_answerer(section, cache=f"{folder}/cache", ledger=f"{folder}/ledger", stage="caption")
print("\\n".join(answer.text for answer in answerer.answer([Request(f"Question {n}") for n in range(40)])))
"""


def test_a_killed_build_pays_for_no_answer_twice(desk, server):
    """Killed twice, with faults all the while."""
    kills = {9: threading.Event(), 24: threading.Event()}
    faulty = loopback.delayed(0.02, loopback.faulty(0.1, 3))

    def reply(request, number):
        for answers, event in kills.items():
            if server.answers >= answers:
                event.set()
        return faulty(request, number)

    server.reply = reply

    def start():
        command = [sys.executable, "-c", KILLED, str(desk.folder), server.base_url]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    for event in kills.values():
        process = start()
        assert event.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    out, _ = start().communicate(timeout=60)
    assert 40 <= server.answers <= 40 + len(kills) * 4
    again = desk.answerer().answer(requests(40))
    assert texts(again) == out.splitlines() and all(answer.cached for answer in again)


def test_wrong_settings_stop_before_anything_is_sent(desk, server, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(InputError, match="stage caption: the environment variable NO_SUCH_KEY"):
        desk.answerer(key_variable="NO_SUCH_KEY")
    with pytest.raises(InputError, match="stage caption: unknown field 'speed'"):
        desk.answerer(speed=3)
    with pytest.raises(InputError, match="does not exist"):
        open_answerer(desk.section(), cache=str(desk.folder), ledger=str(desk.folder / "none"), stage="caption")
    assert server.requests == 0


def test_the_server_as_a_process():
    command = [sys.executable, "tests/loopback.py", "--port=0", "--faults=0.3", "--seed=2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        body = {"model": "my-verifier", "messages": [{"role": "user", "content": "Right?"}]}
        statuses = []
        for _ in range(12):
            ask = urllib.request.Request(
                url + "/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(ask) as response:
                    statuses.append(response.status)
            except OSError as error:
                statuses.append(getattr(error, "code", 0))
        with urllib.request.urlopen(url.removesuffix("/v1") + "/statistics") as response:
            counts = json.load(response)
    finally:
        process.kill()
        process.wait()
    assert counts["requests"] == 12 == counts["asked"]["my-verifier"]
    assert 4 < counts["answers"] < 12 and counts["answers"] <= statuses.count(200)
