"""Searches with a policy that needs no model, on a few digit scenes."""

import pathlib
from types import SimpleNamespace

import pytest
import tiny
from small_search import FakePolicy, config

from data_prep.search import settings
from data_prep.search.search import search


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "scenes"
    tiny.write_scenes(path)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The index of the scenes is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def searching(monkeypatch, scenes, cache):
    """`run(out, stop=..., **changes)` searches with a fake policy, which is interrupted in its call number `stop`."""
    monkeypatch.setenv("VLAA_JAX_CACHE", str(cache))

    def run(out: pathlib.Path, *, stop: int = 0, worker: int = 0, workers: int = 1, **changes) -> FakePolicy:
        made = config(scenes, **changes)
        policy = FakePolicy(made.search.rollouts, stop=stop)
        monkeypatch.setattr(settings, "policy", lambda *_: policy)
        search(made, out, worker=worker, workers=workers, trees=4)
        return policy

    return SimpleNamespace(run=run, scenes=scenes)
