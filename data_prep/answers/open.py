"""From a config's section to something that answers: cache first, then the model, each answer stored as it comes."""

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.answers.cache import Cache, cache_key
from data_prep.answers.ledger import Ledger, open_ledger
from data_prep.answers.model import Answer, Model, Request, Unanswered
from data_prep.answers.section import Section, read_section

_desks: dict[tuple[int, "Answerer"], "_Desk"] = {}
_opening = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Answers the requests of one stage. It holds settings alone, so a runner may send it to its workers.

    All copies in a process share one model, its connections and its bounds, which open with the first request.

    Attributes:
      section: which model, where, how.
      cache: folder, or `gs://bucket/folder`.
      ledger: that `create_ledger` has made.
      stage: name that costs and errors are reported under.
    """

    section: Section
    cache: str
    ledger: str
    stage: str

    def answer(self, requests: Sequence[Request]) -> list[Answer | Unanswered]:
        """One result a request, in their order; from the cache where it has them.

        A request that stands in the batch twice, or that another thread has sent and waits for, is sent once. Each
        answer is in the cache before this returns or raises, so that a kill loses only what is in flight.

        Raises:
          InputError: nothing that a retry heals: a wrong key, an unknown model, a budget that is used up.
        """
        return self._desk().answer(requests)

    def flush(self) -> None:
        """Tells other processes what this one has asked and paid for; see `Ledger.flush`."""
        with _opening:
            desk = _desks.get((os.getpid(), self))
        if desk is not None:
            desk.flush()

    def _desk(self) -> "_Desk":
        with _opening:
            place = os.getpid(), self  # a forked process has none of its parent's threads
            if place not in _desks:
                _desks[place] = _Desk(self)
            return _desks[place]


def open_answerer(section: Mapping[str, Any], *, cache: str, ledger: str, stage: str) -> Answerer:
    """Checks what can be checked before anything is sent.

    Args:
      section: of the config, see `Section`.
      cache: folder of answers, or `gs://bucket/folder`.
      ledger: that `create_ledger` has made.
      stage: name that costs and errors are reported under.

    Raises:
      InputError: a field is wrong, the key's variable is not set, or there is no ledger.
    """
    checked = read_section(section, stage)
    checked.key(stage)
    open_ledger(ledger)
    return Answerer(checked, cache, ledger, stage)


class _Desk:
    """What an `Answerer` is in one process."""

    def __init__(self, answerer: Answerer):
        self._stage = answerer.stage
        self._cache = Cache(answerer.cache)
        self._ledger = open_ledger(answerer.ledger)
        self._model = _open_model(answerer, self._ledger)
        self._lock = threading.Lock()
        self._pending: dict[str, concurrent.futures.Future[Answer | Unanswered]] = {}

    def answer(self, requests: Sequence[Request]) -> list[Answer | Unanswered]:
        keys = [cache_key(self._model.name, request) for request in requests]
        by_key = dict(zip(keys, requests, strict=True))
        with self._lock:
            theirs = {key: self._pending[key] for key in by_key if key in self._pending}
            ours = {key: concurrent.futures.Future() for key in by_key if key not in theirs}
            self._pending |= ours
        try:
            self._resolve({key: by_key[key] for key in ours}, ours)
        except BaseException as error:
            for future in ours.values():
                if not future.done():
                    future.set_exception(error)  # others may wait for it
            raise
        finally:
            with self._lock:
                for key in ours:
                    del self._pending[key]
        results = {key: future.result() for key, future in (ours | theirs).items()}
        out = []
        for key in keys:
            out.append(results[key])
            if isinstance(results[key], Answer):  # whoever asks the same again has it for nothing
                results[key] = dataclasses.replace(results[key], cost=0.0, cached=True)
        return out

    def flush(self) -> None:
        self._ledger.flush()

    def _resolve(
        self, requests: Mapping[str, Request], futures: Mapping[str, concurrent.futures.Future[Answer | Unanswered]]
    ) -> None:
        """Gives every future its result."""
        found = self._cache.find(list(requests))
        for key, answer in found.items():
            futures[key].set_result(answer)
        missing = [key for key in requests if key not in found]
        if found:
            self._ledger.count(self._stage, cached=len(found))
        if not missing:
            return

        def arrived(place: int, result: Answer | Unanswered) -> None:
            if isinstance(result, Answer):
                self._cache.store(missing[place], result)
                tokens = {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens}
                self._ledger.count(self._stage, requests=1, **tokens)
            else:
                self._ledger.count(self._stage, requests=1, failed=1)
            futures[missing[place]].set_result(result)

        self._model.answer([requests[key] for key in missing], arrived)


def _open_model(answerer: Answerer, ledger: Ledger) -> Model:
    if answerer.section.policy:
        from data_prep.answers.policy import Policy

        return Policy(answerer.section.policy, batch=answerer.section.concurrency)
    from data_prep.answers.endpoint import Endpoint

    return Endpoint(answerer.section, answerer.stage, ledger)
