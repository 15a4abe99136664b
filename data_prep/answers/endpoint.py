"""Any OpenAI-compatible endpoint as a model, through the openai client: chat completions, many in flight.

All calls of a process share one event loop in a thread of its own, so connections are kept from batch to batch and the
bounds on what is in flight and on what is sent a minute hold over all threads of a runner.

The client's own retries with back-off are used, for 429, 5xx and broken connections; it waits as long as `Retry-After`
says, up to two minutes. A body that is no JSON (a page of a gateway, an answer that broke off) counts as a broken
connection. Every try is paced, reserved and settled on its own: one that ended without an answer may have been paid
for, so it is booked at its worst case.
"""

import asyncio
import contextvars
import dataclasses
import functools
import ssl
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import httpx2  # the transport of the openai client
import openai

from data_prep.answers.completions import read_completion, usage
from data_prep.answers.images import data_url, image_tokens
from data_prep.answers.ledger import BudgetExceeded, Ledger
from data_prep.answers.model import Answer, Arrived, Request, Unanswered, ignore
from data_prep.answers.section import Section
from vlaa_jax.errors import InputError

_GIVE_UP = 20  # requests in a row without an answer: the endpoint is down
_CONNECT_SECONDS = 10.0
_TEMPLATE_TOKENS = 64  # of the chat template around two messages
_NO_KEY = "none"  # the client wants one; without, it would take OPENAI_API_KEY


@dataclasses.dataclass
class _Sending:
    """One request on its way.

    Attributes:
      tokens: bound on what it may use.
      worst_cost: of one try.
      cost: of the last try.
      completion: that it brought.
      failure: why it failed, where the client cannot say it.
    """

    tokens: int
    worst_cost: float
    cost: float = 0.0
    completion: Any = None
    failure: str = ""


# The client repeats requests by itself: this tells a try whose it is.
_SENDING: contextvars.ContextVar[_Sending] = contextvars.ContextVar("sending")


class Endpoint:
    """A `Model`; one for each stage of a process."""

    def __init__(self, section: Section, stage: str, ledger: Ledger):
        """Sends nothing yet.

        Args:
          section: which model, where, how.
          stage: whose requests they are, for the ledger and for errors.
          ledger: of the build.

        Raises:
          InputError: the key is missing.
        """
        self.name = section.model
        self._section, self._stage = section, stage
        self._key = section.key(stage)
        self._account = _Account(ledger, stage)
        self._requests = _Pace(section.requests_a_minute)
        self._tokens = _Pace(section.tokens_a_minute)
        self._slots = asyncio.Semaphore(section.concurrency)
        self._outages = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"endpoint {stage}", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self._client = openai.AsyncOpenAI(
            api_key=self._key or _NO_KEY,
            admin_api_key="",  # these three would come from the environment, and go to whatever server is asked
            organization="",
            project="",
            base_url=section.base_url,
            timeout=openai.Timeout(section.timeout, connect=min(_CONNECT_SECONDS, section.timeout)),
            max_retries=section.retries,
            http_client=_Tries(self),
        )

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r} at {self._section.base_url!r})"

    def answer(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Answer | Unanswered]:
        """See `Model.answer`; after an error nothing more is sent, and what is in flight is waited for."""
        future = asyncio.run_coroutine_threadsafe(self._answer_all(requests, arrived), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C
            raise

    async def _answer_all(self, requests: Sequence[Request], arrived: Arrived) -> list[Answer | Unanswered]:
        errors: list[Exception] = []

        async def one(place: int) -> Answer | Unanswered | None:
            async with self._slots:
                if errors:
                    return None
                try:
                    result = await self._ask(requests[place])
                    await asyncio.to_thread(arrived, place, result)
                    return result
                except Exception as error:
                    errors.append(error)
                    return None

        results = await asyncio.gather(*(one(place) for place in range(len(requests))))
        if errors:
            raise errors[0]
        return results

    async def _ask(self, request: Request) -> Answer | Unanswered:
        try:
            sending, fields = self._prepare(request)
        except (InputError, UnicodeEncodeError) as error:
            return Unanswered(f"not sent: {error}")
        _SENDING.set(sending)
        try:
            # Raw: what is in the body is not for the client to guess.
            await self._client.chat.completions.with_raw_response.create(**fields)
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APITimeoutError:
            return self._outage(f"no answer in time: {self._section.timeout:g} s")
        except openai.APIConnectionError as error:
            return self._outage(sending.failure or f"no connection ({type(error.__cause__).__name__})")
        self._outages = 0
        result = read_completion(sending.completion)
        if isinstance(result, Unanswered):
            return Unanswered(self._without_key(result.reason))
        return dataclasses.replace(result, cost=sending.cost)

    def _prepare(self, request: Request) -> tuple[_Sending, dict[str, Any]]:
        """What a request may use at most, and what is sent.

        Raises:
          InputError, UnicodeEncodeError: its picture or its text is none.
        """
        # No tokenizer over bytes has more tokens than bytes.
        prompt_tokens = len(request.prompt.encode()) + len(request.system.encode()) + _TEMPLATE_TOKENS
        content: Any = request.prompt
        if request.image is not None:
            prompt_tokens += image_tokens(request.image)
            picture = {"type": "image_url", "image_url": {"url": data_url(request.image)}}
            content = [picture, {"type": "text", "text": request.prompt}]
        system = [{"role": "system", "content": request.system}] if request.system else []
        sending = _Sending(prompt_tokens + request.max_tokens, self._section.cost(prompt_tokens, request.max_tokens))
        return sending, {
            "model": self._section.model,
            "messages": [*system, {"role": "user", "content": content}],
            "temperature": request.temperature,
            self._section.bound_parameter: request.max_tokens,
        }

    def _refused(self, error: openai.APIStatusError) -> Unanswered:
        """What a status means for one request, or for all."""
        status, message = error.status_code, self._without_key(" ".join(error.message.split())[:200])
        if status in (401, 403):
            where = f"${self._section.key_variable}" if self._key else "a request without a key"
            self._stop(f"refuses {where} ({status})")
        if status == 404:
            self._stop("is not there (404): expected the name of a served model and the URL up to /v1")
        if status == 402 or error.code == "insufficient_quota":
            self._stop(f"has no money left on the account ({status})")
        if error.code in ("unsupported_parameter", "unsupported_value"):
            self._stop(f"does not take the field {error.param} ({message})")
        if status == 429:
            return self._outage("rate limit: 429 to the last try")
        if status >= 500:
            return self._outage(f"server error: {status} to the last try")
        return Unanswered(f"request refused: {status} ({message})")

    def _outage(self, reason: str) -> Unanswered:
        """One request without an answer; too many in a row are the endpoint's end."""
        self._outages += 1
        if self._outages >= max(_GIVE_UP, 2 * self._section.concurrency):
            self._stop(f"has not answered the last {self._outages} requests ({reason})")
        return Unanswered(reason)

    def _stop(self, what: str) -> NoReturn:
        raise InputError(
            f"stage {self._stage}: model {self._section.model} at {self._section.base_url} {what}"
        ) from None

    def _without_key(self, text: str) -> str:
        """Servers quote what they refuse."""
        return text.replace(self._key, "[key]") if self._key else text

    async def begin_try(self) -> int:
        """Waits until one more try may be sent and reserves its money; returns the reservation."""
        sending = _SENDING.get()
        await self._requests.wait(1)
        await self._tokens.wait(sending.tokens)
        return await self._account.reserve(sending.worst_cost)

    async def end_try(self, reservation: int, *, paid: bool, completion: Any = None) -> None:
        """Books a try.

        Args:
          reservation: of `begin_try`.
          paid: whether it was, or may have been.
          completion: what came; None for nothing.
        """
        sending = _SENDING.get()
        used = usage(completion) if paid else (0, 0)
        sending.completion = completion
        sending.cost = sending.worst_cost if used is None else self._section.cost(*used)
        if used is not None:
            self._tokens.give_back(sending.tokens - sum(used))
        await self._account.settle(reservation, sending.cost)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once for all stages."""
    return httpx2.create_ssl_context()


class _Tries(openai.DefaultAsyncHttpxClient):
    """The client's transport, which sees every try of a request."""

    def __init__(self, endpoint: Endpoint):
        super().__init__(verify=_certificates())
        self._endpoint = weakref.proxy(endpoint)
        self._seconds = endpoint._section.timeout

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        reservation = await self._endpoint.begin_try()
        try:
            # By the clock: a read timeout never comes where a server sends a blank now and then to keep a line open.
            async with asyncio.timeout(self._seconds):
                response = await super().send(request, **options)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            await self._endpoint.end_try(reservation, paid=False)
            raise
        except BaseException as error:
            await self._endpoint.end_try(reservation, paid=True)
            if isinstance(error, TimeoutError):
                raise httpx2.ReadTimeout("", request=request) from None  # which the client repeats
            raise
        if response.is_error:
            await self._endpoint.end_try(reservation, paid=False)
            return response
        try:
            completion = response.json()
        except (ValueError, RecursionError):
            await self._endpoint.end_try(reservation, paid=True)
            _SENDING.get().failure = f"not JSON: {self._endpoint._without_key(response.text[:80])!r}"
            raise httpx2.RemoteProtocolError("the body is no JSON", request=request) from None
        await self._endpoint.end_try(reservation, paid=True, completion=completion)
        return response


class _Account:
    """The ledger as the loop sees it: its locks are waited for in threads."""

    def __init__(self, ledger: Ledger, stage: str):
        self._ledger, self._stage = ledger, stage
        self._settled = asyncio.Condition()
        self._open = 0

    async def reserve(self, amount: float) -> int:
        """Reserves, if need be once requests in flight have turned out cheaper than their worst case.

        Raises:
          BudgetExceeded: not even then.
        """
        async with self._settled:
            while True:
                try:
                    reservation = await asyncio.to_thread(self._ledger.reserve, self._stage, amount)
                except BudgetExceeded:
                    if not self._open:
                        raise
                    await self._settled.wait()
                else:
                    self._open += 1
                    return reservation

    async def settle(self, reservation: int, cost: float) -> None:
        async with self._settled:
            await asyncio.to_thread(self._ledger.settle, reservation, cost)
            self._open -= 1
            self._settled.notify_all()


class _Pace:
    """So many a minute, evenly: each waits until those before it have had their share of the minute."""

    def __init__(self, a_minute: float):
        self._seconds = 60 / a_minute if a_minute else 0.0  # of one
        self._free = 0.0  # when the next may go, of `time.monotonic`

    async def wait(self, amount: float) -> None:
        now = time.monotonic()
        start = max(self._free, now)
        self._free = start + amount * self._seconds
        if start > now:
            await asyncio.sleep(start - now)

    def give_back(self, amount: float) -> None:
        """What was not used after all."""
        self._free -= amount * self._seconds
