"""A server on loopback, and endpoints and answerers that ask it."""

import dataclasses
import pathlib
from typing import Any

import loopback
import pytest

from data_prep.answers.endpoint import Endpoint
from data_prep.answers.ledger import create_ledger, open_ledger
from data_prep.answers.open import Answerer, open_answerer
from data_prep.answers.section import read_section


@pytest.fixture
def server():
    with loopback.Endpoint() as running:
        yield running


@dataclasses.dataclass
class Desk:
    """Makes what asks the server; fields of the section as keywords."""

    folder: pathlib.Path
    server: loopback.Endpoint

    @property
    def path(self) -> str:
        return str(self.folder / "ledger.sqlite")

    def section(self, **fields: Any) -> dict[str, Any]:
        return {"model": "tiny", "base_url": self.server.base_url, "retries": 0, "timeout": 5.0} | fields

    def endpoint(self, budget: float = 0.0, **fields: Any) -> Endpoint:
        return Endpoint(read_section(self.section(**fields), "caption"), "caption", create_ledger(self.path, budget))

    def answerer(self, budget: float = 0.0, cache: str = "", stage: str = "caption", **fields: Any) -> Answerer:
        """As a build start has it: `create_ledger` goes on with a ledger that is there."""
        create_ledger(self.path, budget)
        cache = cache or str(self.folder / "cache")
        return open_answerer(self.section(**fields), cache=cache, ledger=self.path, stage=stage)

    def total(self):
        (total,) = open_ledger(self.path).summary()
        return total


@pytest.fixture
def desk(tmp_path, server):
    return Desk(tmp_path, server)
