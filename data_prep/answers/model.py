"""The one interface of everything that answers a request."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Request:
    """One turn: a prompt, and a picture or none.

    Attributes:
      prompt: the user's text.
      image: encoded picture before it.
      system: the system message; '' for none.
      max_tokens: bound on the answer.
      temperature: 0 is greedy.
      attempt: tells requests apart that ask the same again.
    """

    prompt: str
    image: bytes | None = None
    system: str = ""
    max_tokens: int = 1024
    temperature: float = 0.0
    attempt: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
      text: of the answer.
      prompt_tokens, completion_tokens: as the model counts them; 0 where it does not say.
      cost: in the currency of the config's prices; 0 for one from the cache.
      cached: whether it was there already.
      truncated: whether `max_tokens` cut it.
      model: that answered, as it names itself.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost: float = 0.0
    cached: bool = False
    truncated: bool = False
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Unanswered:
    """Why a request has no answer, after all retries.

    Attributes:
      reason: one sentence; its first words are the same for the same kind of failure.
    """

    reason: str


Arrived = Callable[[int, Answer | Unanswered], None]


def ignore(place: int, result: Answer | Unanswered) -> None:
    """The `Arrived` of a caller who waits for all results."""


class Model(Protocol):
    """Answers batches. An endpoint asks many at once, the policy in process runs one batch through the sampler.

    Attributes:
      name: that answers are known by in the cache.
    """

    name: str

    def answer(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Answer | Unanswered]:
        """One result a request, in their order.

        Args:
          requests: the batch.
          arrived: called with place and result as each arrives, from any thread.

        Raises:
          InputError: nothing that a retry heals: a wrong key, an unknown model, a budget that is used up. What was
            under way has arrived before.
        """
        ...
