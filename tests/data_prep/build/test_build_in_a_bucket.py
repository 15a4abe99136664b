"""A build whose folder lies in a bucket, as it does with workers on several machines."""

import hashlib
import json

import loopback
import pytest
import source_fixtures
from outcomes import SINGLE, config, contents

from data_prep.answers.ledger import BudgetExceeded, create_ledger, open_ledger
from data_prep.build.build import build
from vlaa_jax.errors import InputError
from vlaa_jax.processing.shards import RecordSource


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A config, but for its endpoint."""
    # What is not installed here gives Beam credentials, which the emulator does not ask for.
    monkeypatch.setattr("data_prep.build.build.check_place", lambda path: None)
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "fetched"))
    folders = source_fixtures.write_all(tmp_path / "sources")
    chosen = {name: folders[name] for name in ("vizwiz",)}
    return lambda url, **changes: config(chosen, url, **changes)


def ledger_of(report: bytes) -> list[dict]:
    return json.loads(report)["ledger"]


def test_it_has_the_bytes_of_one_on_disk(made, tmp_path, bucket):
    out = bucket.address("out")
    with loopback.Endpoint() as endpoint:
        build(made(endpoint.base_url, budget=10.0), str(tmp_path / "disk"), options=SINGLE)
        text = build(made(endpoint.base_url, budget=10.0), out, options=("--direct_num_workers=2",))
        asked = endpoint.requests
        assert "nothing was asked" in build(made(endpoint.base_url, budget=10.0), out, options=SINGLE)
        assert endpoint.requests == asked
    files = bucket.files("out")
    parts = ("shards/", "steps/")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name.startswith(parts)}
    assert hashes == contents(tmp_path / "disk")
    assert list(RecordSource(f"{out}/shards:sft")) == list(RecordSource(f"{tmp_path}/disk/shards:sft"))
    assert f"{out}/shards" in text
    assert ledger_of(files["report.json"]) == ledger_of((tmp_path / "disk" / "report.json").read_bytes())
    # Each worker has given back what it had not spent.
    assert all(holder["block"] == 0 for holder in json.loads(files["ledger.json"])["holders"].values())


def test_the_budget_stops_it_and_a_larger_one_goes_on(made, bucket):
    out = bucket.address("out")
    with loopback.Endpoint() as endpoint:
        budget = 0.03  # less than an answer of the reasoner may cost
        with pytest.raises(InputError, match=r"the budget of 0\.03 is used up"):
            build(made(endpoint.base_url, budget=budget), out, steps=[1, 2, 3], options=SINGLE)
        assert sum(stage.cost for stage in open_ledger(f"{out}/ledger.json").summary()) <= budget
        build(made(endpoint.base_url, budget=10.0), out, steps=[3], options=SINGLE)
        cached = len(bucket.files("out/cache"))
        assert endpoint.requests == endpoint.answers == cached
    assert "step.json" in bucket.files("out/steps/3_distil")


@pytest.mark.slow
def test_workers_in_processes_of_their_own_share_the_budget(made, bucket):
    out = bucket.address("out")
    with loopback.Endpoint() as endpoint:
        build(
            made(endpoint.base_url, budget=10.0),
            out,
            steps=[1, 2, 3],
            options=("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
        )
        requests = endpoint.requests
    totals = open_ledger(f"{out}/ledger.json").summary()
    assert sum(total.requests for total in totals) == requests
    spent = sum(total.cost for total in totals)
    again = create_ledger(f"{out}/ledger.json", 10.0)
    assert again.summary() == totals  # nothing was left to be booked
    again.settle(again.reserve("verify", 10.0 - spent - 1e-6), 0.0)
    with pytest.raises(BudgetExceeded):
        again.reserve("verify", 10.0 - spent + 1e-6)
