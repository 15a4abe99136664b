"""The client over real HTTP: what is sent, bounds, retries, what comes back wrong, and the key."""

import base64
import dataclasses
import io
import json
import logging
import threading
import time
import traceback

import loopback
import pytest
from PIL import Image

from data_prep.answers.ledger import BudgetExceeded
from data_prep.answers.model import Answer, Request, Unanswered
from vlaa_jax.errors import InputError

SECRET = "sk-very-secret-0123456789"


def requests(count, **fields):
    return [Request(f"Question {number}", **fields) for number in range(count)]


def picture(kind, size=(40, 30)):
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


def reply_by_number(*replies):
    """These to the first requests, then answers."""

    def reply(request, number):
        return replies[number] if number < len(replies) else loopback.answer(request, number)

    return reply


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_a_text_with_a_system_message(desk, server):
    (answer,) = desk.endpoint().answer([Request("How many?", system="You count.", max_tokens=77, temperature=0.5)])
    ((_, sent),) = server.received
    assert sent == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "You count."}, {"role": "user", "content": "How many?"}],
        "max_tokens": 77,
        "temperature": 0.5,
    }
    assert answer == Answer(answer.text, 2, len(answer.text.split()), model="tiny-served")
    assert answer.text.endswith("to 2 words and 0 pictures.")


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "png"), ("TIFF", "png")],
)
def test_a_picture_stands_before_the_text_with_its_media_type(desk, server, kind, media_type):
    desk.endpoint().answer([Request("What?", picture(kind))])
    ((_, sent),) = server.received
    image, text = sent["messages"][0]["content"]
    head, _, content = image["image_url"]["url"].partition(",")
    assert head == f"data:image/{media_type};base64" and text == {"type": "text", "text": "What?"}
    decoded = base64.b64decode(content)
    assert Image.open(io.BytesIO(decoded)).size == (40, 30)
    assert decoded == picture(kind) or kind in ("BMP", "TIFF")


def test_the_bound_under_its_other_name(desk, server):
    desk.endpoint(bound_parameter="max_completion_tokens").answer(requests(1, max_tokens=9))
    assert server.received[0][1]["max_completion_tokens"] == 9 and "max_tokens" not in server.received[0][1]


@pytest.mark.parametrize("request_", [Request("x", b"no picture"), Request("a\ud83d")])
def test_what_cannot_be_sent_costs_one_request(desk, server, request_):
    bad, good = desk.endpoint().answer([request_, Request("y")])
    assert isinstance(bad, Unanswered) and bad.reason.startswith("not sent: ")
    assert isinstance(good, Answer) and server.requests == 1


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_no_more_in_flight_than_concurrency_in_all_threads(desk, server):
    server.reply = loopback.delayed(0.05)
    endpoint = desk.endpoint(concurrency=4)
    threads = [threading.Thread(target=endpoint.answer, args=(requests(10),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.answers == 30 and server.most_in_flight == 4


def test_results_keep_their_order(desk, server):
    def slow_first(request, number):
        reply = loopback.completion(request, request["messages"][0]["content"])
        return dataclasses.replace(reply, seconds=0.1 - 0.02 * number)

    server.reply = slow_first
    results = desk.endpoint(concurrency=5).answer(requests(5))
    assert [result.text for result in results] == [f"Question {number}" for number in range(5)]


def test_requests_a_minute(desk, server):
    started = time.monotonic()
    desk.endpoint(requests_a_minute=1200).answer(requests(11))
    assert time.monotonic() - started >= 0.5


def test_retries_are_paced_too(desk, server):
    server.reply = reply_by_number(*[loopback.failed(500, Retry_After_ms=1)] * 5)
    started = time.monotonic()
    desk.endpoint(requests_a_minute=600, retries=5).answer(requests(1))
    assert server.requests == 6 and time.monotonic() - started >= 0.5


def test_tokens_a_minute_counts_what_was_used(desk, server):
    # Each may use 10,074 tokens, ten seconds of the minute, and uses about a dozen.
    endpoint = desk.endpoint(tokens_a_minute=60_000, concurrency=1)
    started = time.monotonic()
    endpoint.answer(requests(3, max_tokens=10_000))
    assert time.monotonic() - started < 10
    started = time.monotonic()
    desk.endpoint(tokens_a_minute=60_000, concurrency=2).answer(requests(2, max_tokens=500))
    assert time.monotonic() - started >= 0.5  # the second waits for the worst case of the first


# --- what heals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        loopback.too_many(0.01),
        loopback.failed(500, Retry_After_ms=10),
        loopback.failed(503, Retry_After_ms=10),
        loopback.Reply(drop=True),
        loopback.page(),
        loopback.half(loopback.completion({"model": "m", "messages": []}, "never whole")),
    ],
    ids=["429", "500", "503", "dropped", "html", "half"],
)
def test_a_fault_that_passes_is_tried_again(desk, server, fault):
    server.reply = reply_by_number(fault)
    (result,) = desk.endpoint(retries=1).answer(requests(1))
    assert isinstance(result, Answer) and server.requests == 2


def test_retry_after_is_honoured(desk, server):
    server.reply = reply_by_number(loopback.too_many(0.9))  # the client's own first wait is at most half a second
    started = time.monotonic()
    desk.endpoint(retries=1).answer(requests(1))
    assert time.monotonic() - started >= 0.9


def test_many_faults(desk, server):
    server.reply = loopback.faulty(0.2, seed=1)
    results = desk.endpoint(retries=8, concurrency=16).answer(requests(60))
    assert all(isinstance(result, Answer) for result in results)
    assert server.answers == 60 < server.requests


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (loopback.too_many(0.01), "rate limit: 429 to the last try"),
        (loopback.failed(500, Retry_After_ms=10), "server error: 500 to the last try"),
        (loopback.failed(400, "too  long\n"), "request refused: 400 ("),
        (loopback.failed(413, "too big"), "request refused: 413 ("),
        (loopback.page(), "not JSON: '<html><body>Bad gateway"),
        (loopback.Reply(b'{"choices": [{"mess'), 'not JSON: \'{"choices"'),
        (loopback.Reply(b"[" * 100_000), "not JSON: '[[["),
        (loopback.Reply(b"\xff\xfe\x00"), "not JSON: "),
        (loopback.Reply(b"null"), "no message in the completion: "),
        (loopback.Reply(b'{"choices": []}'), "no message in the completion: "),
        (loopback.Reply(drop=True), "no connection (RemoteProtocolError)"),
        (loopback.completion({"model": "m", "messages": []}, None), "no text in the message"),
        (loopback.completion({"model": "m", "messages": []}, "x", finish="content_filter"), "blocked by the endpoint"),
    ],
)
def test_why_there_is_no_answer(desk, server, reply, reason):
    server.reply = lambda request, number: reply
    (result,) = desk.endpoint().answer(requests(1))
    assert isinstance(result, Unanswered) and result.reason.startswith(reason)
    assert server.requests == 1


def test_a_stall_ends_with_the_timeout(desk, server):
    server.reply = reply_by_number(loopback.stalled(30))
    started = time.monotonic()
    stalled, answered = desk.endpoint(timeout=1, concurrency=1).answer(requests(2))
    assert stalled == Unanswered("no answer in time: 1 s") and isinstance(answered, Answer)
    assert time.monotonic() - started < 20


def test_blanks_keep_a_line_open_no_longer_than_the_timeout(desk, server):
    server.reply = lambda request, number: dataclasses.replace(loopback.answer(request), seconds=30, drip=True)
    assert desk.endpoint(timeout=1).answer(requests(1)) == [Unanswered("no answer in time: 1 s")]
    server.reply = lambda request, number: dataclasses.replace(loopback.answer(request), seconds=0.2, drip=True)
    assert isinstance(desk.endpoint().answer(requests(1))[0], Answer)


def test_no_server(desk, server):
    (result,) = desk.endpoint(base_url="http://127.0.0.1:9/v1").answer(requests(1))
    assert result == Unanswered("no connection (ConnectError)")


def test_an_endpoint_that_is_down_stops_the_build(desk, server):
    server.reply = lambda request, number: loopback.failed(500)
    with pytest.raises(InputError, match=r"tiny at http.* has not answered the last 20 requests \(server error: 500"):
        desk.endpoint(concurrency=2).answer(requests(50))
    assert server.requests < 25


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (loopback.failed(401, f"Incorrect API key: {SECRET}"), r"refuses \$TEST_KEY \(401\)"),
        (loopback.failed(403), r"refuses \$TEST_KEY \(403\)"),
        (loopback.failed(404, "no such model", code="model_not_found"), r"is not there \(404\)"),
        (loopback.failed(402, "Insufficient Balance"), r"has no money left on the account \(402\)"),
        (loopback.failed(429, "quota", code="insufficient_quota"), r"has no money left on the account \(429\)"),
        (
            loopback.failed(400, "use max_completion_tokens", code="unsupported_parameter", param="max_tokens"),
            r"does not take the field max_tokens \(.*use max_completion_tokens",
        ),
    ],
)
def test_what_no_retry_heals_stops_at_once(desk, server, monkeypatch, reply, said):
    monkeypatch.setenv("TEST_KEY", SECRET)
    server.reply = lambda request, number: reply
    with pytest.raises(InputError, match=rf"stage caption: model tiny at http://127.0.0.1:\d+/v1 {said}"):
        desk.endpoint(key_variable="TEST_KEY", concurrency=2).answer(requests(40))
    assert server.requests <= 2  # those in flight


# --- money -----------------------------------------------------------------------------------------------------------


def test_tokens_have_their_price(desk, server):
    (answer,) = desk.endpoint(price_prompt=1.0, price_completion=3.0).answer(requests(1))
    cost = (answer.prompt_tokens + 3 * answer.completion_tokens) / 1e6
    assert answer.cost == pytest.approx(cost) and desk.total().cost == pytest.approx(cost)


def test_what_was_refused_costs_nothing(desk, server):
    server.reply = lambda request, number: loopback.failed(400)
    desk.endpoint(price_prompt=1.0, price_completion=3.0).answer(requests(3))
    assert desk.total().cost == 0


@pytest.mark.parametrize("fault", [loopback.page(), loopback.Reply(drop=True), loopback.stalled(30)])
def test_a_try_that_may_have_been_paid_for_costs_its_worst_case(desk, server, fault):
    server.reply = reply_by_number(fault)
    (answer,) = desk.endpoint(price_completion=1e6, retries=1, timeout=1).answer([Request("Hi", max_tokens=50)])
    assert answer.cost == answer.completion_tokens == desk.total().cost - 50


def test_an_endpoint_that_counts_no_tokens_costs_its_worst_case(desk, server):
    body = {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}]}
    server.reply = lambda request, number: loopback.Reply(json.dumps(body).encode())
    (answer,) = desk.endpoint(price_completion=1e6).answer([Request("Hi", max_tokens=50)])
    assert (answer.text, answer.completion_tokens, answer.cost) == ("Yes", 0, 50)


def test_the_budget_stops_before_it_is_exceeded_and_keeps_what_was_paid(desk, server):
    arrived = {}
    endpoint = desk.endpoint(budget=100.0, price_completion=1e6, concurrency=4)
    server.reply = lambda request, number: loopback.completion(request, "word " * 7)
    with pytest.raises(BudgetExceeded, match="the budget of 100 is used up"):
        endpoint.answer(requests(60, max_tokens=20), lambda place, result: arrived.__setitem__(place, result))
    # 7 of at most 20 a request: the last is sent where 20 are left, even if others in flight held them for a while.
    assert desk.total().cost == 7 * server.requests and 80 < desk.total().cost <= 100
    assert len(arrived) == server.requests and all(answer.cost == 7 for answer in arrived.values())


def test_one_request_above_the_whole_budget_is_not_sent(desk, server):
    with pytest.raises(BudgetExceeded):
        desk.endpoint(budget=1.0, price_prompt=1e6).answer([Request("x" * 10_000)])
    assert server.requests == 0


def test_a_storage_that_fails_stops_the_batch(desk, server):
    def full(place, result):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        desk.endpoint(concurrency=1).answer(requests(5), full)
    assert server.requests == 1


# --- the key ---------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_said_nowhere(desk, server, monkeypatch, caplog):
    monkeypatch.setenv("TEST_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    echo = f"who is Bearer {SECRET}?"
    server.reply = reply_by_number(
        loopback.failed(400, echo),
        loopback.Reply(echo.encode()),
        loopback.Reply(json.dumps({"error": echo}).encode()),
        loopback.failed(500, echo, Retry_After_ms=1),
        loopback.failed(500, echo, Retry_After_ms=1),
        loopback.failed(401, echo),
    )
    endpoint = desk.endpoint(key_variable="TEST_KEY", concurrency=1)
    said = [repr(endpoint), repr(endpoint.answer(requests(3)))]
    with pytest.raises(InputError) as error:
        desk.endpoint(key_variable="TEST_KEY", concurrency=1).answer(requests(3))
    said += ["".join(traceback.format_exception(error.value)), caplog.text]
    assert {headers["Authorization"] for headers, _ in server.received} == {f"Bearer {SECRET}"}
    assert "[key]" in said[1]
    for text in said:
        assert SECRET not in text
    for path in desk.folder.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


def test_keys_of_others_stay_at_home(desk, server, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, SECRET)
    desk.endpoint().answer(requests(1))
    ((headers, _),) = server.received
    assert headers["Host"] and SECRET not in str(headers)
