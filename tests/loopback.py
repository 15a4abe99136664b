"""A chat endpoint on loopback, over real HTTP, that answers like the models of a build and fails on demand.

`python tests/loopback.py --port=0 --faults=0.1 --seed=0` prints its base URL and serves until it is killed;
`GET /statistics` tells its counts as JSON. It reads nothing and sends nothing elsewhere.

What it answers follows from the request alone. The name of the model that is asked tells the stage: a name that holds
`captioner`, `reasoner`, `rewriter` or `verifier` gets a caption, `<think>` with reasoning and a final text, the text to
be rewritten as it stands in the prompt, or Yes or No; any other name gets one sentence. A hash of the prompt decides
which traces have an aha-moment (about a third), which rewrites are too long (about one in ten) and which verdicts are
No (about one in ten).
"""

import argparse
import base64
import dataclasses
import hashlib
import http.server
import json
import random
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

COMPLETIONS = "/v1/chat/completions"
_JSON = {"Content-Type": "application/json"}
_BLANK_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Reply:
    """What goes back.

    Attributes:
      body: of the response.
      status: of the response.
      headers: of the response.
      seconds: before it is sent.
      whole: whether it is an answer.
      drop: whether the connection is closed in place of a response.
      drip: whether blanks come in the meantime, as from servers that keep a line open.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(_JSON))
    seconds: float = 0.0
    whole: bool = False
    drop: bool = False
    drip: bool = False


Replies = Callable[[dict[str, Any], int], Reply]


class Endpoint:
    """Serves from threads while its block lasts.

    Attributes:
      reply: makes the reply to a request, from its JSON and its number counted from 0; replace it to interfere.
      requests: chat requests that came.
      answers: whole answers that were sent.
      asked: requests by name of the model.
      in_flight, most_in_flight: requests that are being answered now, and at most.
      received: headers (whatever their case) and JSON of every request, in their order.
    """

    def __init__(self, reply: Replies | None = None, *, port: int = 0):
        self.reply: Replies = reply or answer
        self.requests = self.answers = self.in_flight = self.most_in_flight = 0
        self.asked: dict[str, int] = {}
        self.received: list[tuple[Mapping[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", port), _handler(self))

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def statistics(self) -> dict[str, Any]:
        with self.lock:
            return {
                "requests": self.requests,
                "answers": self.answers,
                "most_in_flight": self.most_in_flight,
                "asked": dict(self.asked),
            }

    def serve(self) -> None:
        """Serves until `__exit__` is called from another thread."""
        self._server.serve_forever(poll_interval=0.01)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


# --- replies ---------------------------------------------------------------------------------------------------------


def completion(request: Mapping[str, Any], text: str | None, *, finish: str = "stop", **message: Any) -> Reply:
    """A whole answer; tokens are words, and 85 a picture."""
    prompt, pictures, _ = read(request)
    used = {"prompt_tokens": len(prompt.split()) + 85 * pictures, "completion_tokens": len((text or "").split())}
    body = {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": f"{request['model']}-served",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
        "usage": {**used, "total_tokens": sum(used.values())},
    }
    return Reply(json.dumps(body).encode(), whole=True)


def failed(status: int, message: str = "no", *, code: str | None = None, param: str | None = None, **headers) -> Reply:
    """An error as OpenAI words it; underscores in names of headers stand for hyphens."""
    body = {"error": {"message": message, "type": "error", "code": code, "param": param}}
    extra = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    return Reply(json.dumps(body).encode(), status, {**_JSON, **extra})


def too_many(seconds: float) -> Reply:
    return failed(429, "slow down", Retry_After=seconds)


def broken() -> Reply:
    return failed(500, "internal error", Retry_After_ms=20)


def page() -> Reply:
    """What a gateway sends in an endpoint's place."""
    return Reply(b"<html><body>Bad gateway, come back later</body></html>", 200, {"Content-Type": "text/html"})


def half(reply: Reply) -> Reply:
    """An answer that breaks off, under headers that call it whole."""
    return dataclasses.replace(reply, body=reply.body[: len(reply.body) // 2], whole=False)


def stalled(seconds: float) -> Reply:
    """No answer; the connection is closed at the end of its time."""
    return Reply(seconds=seconds, drop=True)


def delayed(seconds: float, reply: Replies | None = None) -> Replies:
    """The same replies, each after so many seconds."""

    def replies(request: dict[str, Any], number: int) -> Reply:
        return dataclasses.replace((reply or answer)(request, number), seconds=seconds)

    return replies


def faulty(share: float, seed: int, reply: Replies | None = None) -> Replies:
    """Replies of which a share are faults of all kinds, drawn by the number of the request."""

    def replies(request: dict[str, Any], number: int) -> Reply:
        whole = (reply or answer)(request, number)
        draw = random.Random(f"{seed} {number}")
        if draw.random() >= share:
            return whole
        return draw.choice([too_many(0.02), broken(), page(), half(whole), Reply(drop=True)])

    return replies


# --- the models ------------------------------------------------------------------------------------------------------


def answer(request: dict[str, Any], number: int = 0) -> Reply:
    """What the stage's model says, see the head of this file."""
    prompt, pictures, digest = read(request)
    name = request["model"]
    if "captioner" in name:
        text = _caption(digest)
    elif "reasoner" in name:
        text = _reasoning(digest)
    elif "rewriter" in name:
        text = _rewritten(prompt, digest)
    elif "verifier" in name:
        text = "No" if digest[3] % 10 == 0 else "Yes"
    else:
        text = f"Answer {digest.hex()[:8]} to {len(prompt.split())} words and {pictures} pictures."
    return completion(request, text)


def read(request: Mapping[str, Any]) -> tuple[str, int, bytes]:
    """The user's text, the number of pictures, and a hash of both; refuses a picture that is no base64 data URL."""
    prompt, pictures = [], []
    for message in request["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "image_url":
                pictures.append(base64.b64decode(part["image_url"]["url"].partition(";base64,")[2], validate=True))
            elif message["role"] == "user":
                prompt.append(part["text"])
    digest = hashlib.sha256("\n".join(prompt).encode())
    for picture in pictures:
        digest.update(hashlib.sha256(picture).digest())
    return "\n".join(prompt), len(pictures), digest.digest()


_THINGS = ("a red sphere", "a blue cube", "a line chart", "a green metal cylinder", "a table of numbers", "a triangle")
_PLACES = ("on the left", "in the middle", "on the right", "in the background", "near the lower edge")


def _caption(digest: bytes) -> str:
    said = (f"{_THINGS[byte % len(_THINGS)]} {_PLACES[byte % len(_PLACES)]}" for byte in digest[4:7])
    return f"The scene shows {', '.join(said)}. The background is plain."


def _reasoning(digest: bytes) -> str:
    count = digest[4] % 7 + 1
    aha = "Wait, let me check that again, one may be hidden.\n" if digest[1] % 3 == 0 else ""
    return (
        f"<think>\nFirst I look at the whole picture. I see {_THINGS[digest[5] % len(_THINGS)]}.\n{aha}"
        f"Then I go through what the question asks for, one after the other, and arrive at {count}.\n</think>\n\n"
        f"**Answer:** {count}"
    )


def _rewritten(prompt: str, digest: bytes) -> str:
    """The trace in the prompt: all from its last think tag on."""
    text = prompt[max(prompt.rfind("<think>"), 0) :].rstrip()
    if digest[2] % 10 == 0:
        text += "\n\nIn other words, " + "what the image shows leads to exactly this answer and to no other, " * 2
    return text


# --- HTTP ------------------------------------------------------------------------------------------------------------


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, request: object, address: object) -> None:
        """A client that hangs up is no error of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)


def _handler(endpoint: Endpoint) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *message: object) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            if self.path == "/statistics":
                return self.send(Reply(json.dumps(endpoint.statistics()).encode()))
            return self.send(failed(404))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path != COMPLETIONS:
                return self.send(failed(404, "no such path"))
            request = json.loads(body)
            with endpoint.lock:
                number = endpoint.requests
                endpoint.requests += 1
                endpoint.asked[request["model"]] = endpoint.asked.get(request["model"], 0) + 1
                endpoint.received.append((self.headers, request))
                endpoint.in_flight += 1
                endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
            try:
                reply = endpoint.reply(request, number)
                if not reply.drip:
                    endpoint.closing.wait(reply.seconds)
            finally:
                with endpoint.lock:  # before the response: its client may send the next one at once
                    endpoint.in_flight -= 1
            return self.send(reply)

        def send(self, reply: Reply) -> None:
            if reply.drop:
                self.close_connection = True
                return
            if reply.whole:
                with endpoint.lock:  # before it is sent: its client may count at once
                    endpoint.answers += 1
            self.send_response(reply.status)
            blanks = round(reply.seconds / _BLANK_SECONDS) if reply.drip else 0
            for name, value in {**reply.headers, "Content-Length": str(blanks + len(reply.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            for _ in range(blanks):
                self.wfile.write(b" ")
                endpoint.closing.wait(_BLANK_SECONDS)
            self.wfile.write(reply.body)

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--seconds", type=float, default=0.0, help="before each answer")
    options = parser.parse_args()
    endpoint = Endpoint(delayed(options.seconds, faulty(options.faults, options.seed)), port=options.port)
    print(endpoint.base_url, flush=True)
    endpoint.serve()


if __name__ == "__main__":
    main()
