"""The part of a config that says which model answers a stage, where, how fast, and at what price."""

import dataclasses
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

from vlaa_jax.errors import InputError

POLICY = "policy:"
_BOUNDS = ("max_tokens", "max_completion_tokens")


@dataclasses.dataclass(frozen=True)
class Section:
    """How one stage is answered.

    Attributes:
      model: name that the endpoint knows, or `policy:DIRECTORY` for our own policy in process.
      base_url: of the endpoint, such as `http://localhost:8000/v1`; unused by a policy.
      key_variable: environment variable that holds the key; '' where the endpoint asks for none.
      max_tokens, temperature: of the stage's requests.
      concurrency: requests in flight, or rows of a policy's batch, in one process.
      requests_a_minute, tokens_a_minute: bounds of one process; 0 for none.
      retries: of a request, after 429, 5xx and broken connections.
      timeout: seconds of one try.
      price_prompt, price_completion: of a million tokens, in any currency.
      bound_parameter: under which `max_tokens` is sent. `max_tokens` is what the paper's three models (GPT-4o,
        DeepSeek-R1, GPT-3.5) and local servers read; OpenAI's reasoning models refuse it for `max_completion_tokens`.
    """

    model: str
    base_url: str = ""
    key_variable: str = ""
    max_tokens: int = 1024
    temperature: float = 0.0
    concurrency: int = 8
    requests_a_minute: float = 0
    tokens_a_minute: float = 0
    retries: int = 5
    timeout: float = 120.0
    price_prompt: float = 0.0
    price_completion: float = 0.0
    bound_parameter: str = "max_tokens"

    @property
    def policy(self) -> str:
        """Directory of the policy in process; '' for an endpoint."""
        return self.model.removeprefix(POLICY) if self.model.startswith(POLICY) else ""

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of one request."""
        return (prompt_tokens * self.price_prompt + completion_tokens * self.price_completion) / 1e6

    def key(self, stage: str) -> str:
        """The endpoint's key; '' where it asks for none.

        Raises:
          InputError: the variable is not set, or holds what no HTTP header can; names it, never what it holds.
        """
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise InputError(f"stage {stage}: the environment variable {self.key_variable} with the key is not set")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"stage {stage}: {self.key_variable} holds no key: expected one word of ASCII characters")
        return key


def read_section(fields: Mapping[str, Any], stage: str) -> Section:
    """Checks a config's section.

    Raises:
      InputError: names stage and field, and what was expected.
    """
    known = {field.name: field.type for field in dataclasses.fields(Section)}
    unknown = sorted(set(fields.keys()) - set(known))
    if unknown:
        raise InputError(f"stage {stage}: unknown field {unknown[0]!r}, expected {', '.join(known)}")
    if "model" not in fields.keys() or not fields["model"]:
        raise InputError(f"stage {stage}: model is not set: expected a name, or {POLICY}DIRECTORY")
    for name in fields.keys():
        value, kind = fields[name], known[name]
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise InputError(f"stage {stage}: {name} is {value!r}, expected {kind.__name__}")
        if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
            raise InputError(f"stage {stage}: {name} is {value}, expected 0 or more")
    section = Section(**{name: fields[name] for name in fields.keys()})
    for name in ("max_tokens", "concurrency", "timeout"):
        if not getattr(section, name):
            raise InputError(f"stage {stage}: {name} is 0, expected more")
    if section.bound_parameter not in _BOUNDS:
        raise InputError(
            f"stage {stage}: bound_parameter is {section.bound_parameter!r}, expected {' or '.join(_BOUNDS)}"
        )
    if not section.policy:
        _check_url(section.base_url, stage)
    return section


def _check_url(url: str, stage: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise InputError(f"stage {stage}: base_url is {url!r}, expected http://... or https://...")
    if parts.username or parts.password or parts.query:
        raise InputError(f"stage {stage}: base_url holds a name, a password or a query: keys belong into key_variable")
