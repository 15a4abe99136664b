"""The local copy of a remote run folder: who wins, what goes up when, and who may train."""

import json
import shutil
import time

import pytest

from vlaa_jax import storage
from vlaa_jax.errors import InputError
from vlaa_jax.training import mirror as mirrors
from vlaa_jax.training.mirror import Mirror
from vlaa_jax.training.run_folder import RunFolder, has_run, open_run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Short waits, and a cache folder that stands for this machine's disk."""
    monkeypatch.setattr(mirrors, "LEASE_SECONDS", 0.8)
    monkeypatch.setattr(mirrors, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.2)
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "here"))
    return tmp_path / "here"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Goes on on another machine."""
    return lambda: monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "there"))


def opened(address: str) -> Mirror:
    mirror = Mirror(address)
    mirror.pull()
    return mirror


def begun(address: str) -> Mirror:
    mirror = opened(address)
    mirror.begin()
    return mirror


def uploaded(bucket) -> dict[str, bytes]:
    return {name: data for name, data in bucket.files("run").items() if name != mirrors.LOCK}


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_follow_in_the_background(bucket):
    mirror = begun(bucket.address("run"))
    (mirror.local / "metrics.jsonl").write_text("1\n")
    (mirror.local / "evaluation").mkdir()
    (mirror.local / "evaluation" / "before.jsonl").write_text("a\n")
    (mirror.local / ".metrics.jsonl.1234").write_text("being written")
    (mirror.local / "checkpoints").mkdir()
    (mirror.local / "checkpoints" / "2").write_text("not ours")
    until(lambda: uploaded(bucket) == {"metrics.jsonl": b"1\n", "evaluation/before.jsonl": b"a\n"})
    with (mirror.local / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    (mirror.local / "evaluation" / "before.jsonl").unlink()
    until(lambda: uploaded(bucket) == {"metrics.jsonl": b"1\n2\n"})
    (mirror.local / "metrics.jsonl").write_text("1\n2\n3\n")
    mirror.close()
    assert bucket.files("run") == {"metrics.jsonl": b"1\n2\n3\n"}, "the last lines are up and the lock is gone"


def test_settle_waits_for_the_lines_and_nothing_is_sent_twice(bucket, emulator):
    mirror = begun(bucket.address("run"))
    for step in range(5):
        (mirror.local / "metrics.jsonl").write_text("line\n" * step)
        assert mirror.settle()
        assert uploaded(bucket) == {"metrics.jsonl": b"line\n" * step}
    before = len(emulator.requests)
    mirror.settle()
    assert not [request for request in emulator.requests[before:] if mirrors.LOCK not in request and "POST" in request]
    mirror.close()


def test_another_machine_gets_what_is_there_and_this_one_then_gets_its(bucket, elsewhere, monkeypatch, cache):
    mirror = begun(bucket.address("run"))
    (mirror.local / "metrics.jsonl").write_text("1\n")
    (mirror.local / "report.html").write_text("old")
    mirror.close()

    elsewhere()
    other = begun(bucket.address("run"))
    assert other.local != mirror.local
    assert (other.local / "metrics.jsonl").read_text() == "1\n"
    (other.local / "metrics.jsonl").write_text("1\n2\n")
    (other.local / "report.html").unlink()
    other.close()

    monkeypatch.setenv("VLAA_JAX_CACHE", str(cache))
    again = opened(bucket.address("run"))
    assert (again.local / "metrics.jsonl").read_text() == "1\n2\n"
    assert not (again.local / "report.html").exists()


def test_lines_that_only_this_machine_has_are_kept_and_sent(bucket):
    """It was killed before they went up; nobody wrote the file since."""
    mirror = begun(bucket.address("run"))
    (mirror.local / "metrics.jsonl").write_text("1\n")
    mirror.close()
    (mirror.local / "metrics.jsonl").write_text("1\n2\n")
    (mirror.local / "samples.jsonl").write_text("new\n")
    again = opened(bucket.address("run"))
    assert (again.local / "metrics.jsonl").read_text() == "1\n2\n"
    again.close()
    assert uploaded(bucket) == {"metrics.jsonl": b"1\n2\n", "samples.jsonl": b"new\n"}


def test_an_outage_is_said_once_and_the_run_goes_on(bucket, emulator, capsys):
    mirror = begun(bucket.address("run"))
    mirror.settle()
    emulator.interfere = lambda method, name: 503
    began = time.monotonic()
    for step in range(3):
        (mirror.local / "metrics.jsonl").write_text("line\n" * step)
    assert time.monotonic() - began < 0.1, "writing waits for nothing"
    until(lambda: mirror._trouble)
    time.sleep(1.5)
    emulator.interfere = lambda method, name: None
    assert mirror.settle()
    mirror.close()
    assert uploaded(bucket) == {"metrics.jsonl": b"line\n" * 2}
    said = capsys.readouterr().err.splitlines()
    assert [line.count("the run goes on and uploads are tried again") for line in said] == [1, 0]
    assert f"{bucket.address('run')}/" in said[0] and "the server answers 503; gave up" in said[0]
    assert said[1] == f"{bucket.address('run')}: uploads go on"


def test_what_could_not_be_uploaded_is_named_at_the_end_and_goes_up_later(bucket, emulator, monkeypatch):
    monkeypatch.setattr(mirrors, "PATIENCE_SECONDS", 0.5)
    mirror = begun(bucket.address("run"))
    (mirror.local / "run.json").write_text("{}")
    mirror.settle()
    emulator.interfere = lambda method, name: 503
    (mirror.local / "metrics.jsonl").write_text("1\n")
    with pytest.raises(InputError) as caught:
        mirror.close()
    sentence = str(caught.value)
    assert sentence.startswith(f"{bucket.address('run')}: not uploaded: metrics.jsonl (gs://")
    assert sentence.endswith(f"; the local copy is {mirror.local}, and the same command uploads it")
    emulator.interfere = lambda method, name: None
    opened(bucket.address("run")).close()
    assert bucket.files("run") == {"run.json": b"{}", "metrics.jsonl": b"1\n"}


def test_a_run_that_is_alive_keeps_others_out(bucket, elsewhere):
    mirror = begun(bucket.address("run"))
    elsewhere()
    with pytest.raises(InputError, match=r"run: process \d+ of \S+ is training in this folder; wait for its end"):
        begun(bucket.address("run"))
    mirror.close()
    begun(bucket.address("run")).close()


def test_the_lock_of_a_dead_run_on_another_machine_runs_out(bucket, capsys):
    dead = {"owner": "another", "host": "gone-host", "process": 7}
    bucket.write("run/run.lock", json.dumps(dead).encode())
    began = time.monotonic()
    mirror = begun(bucket.address("run"))
    assert time.monotonic() - began > mirrors.LEASE_SECONDS
    assert capsys.readouterr().err == (
        f"{bucket.address('run')}: process 7 of gone-host was the last to train in this folder; waiting 1 s to see "
        "whether it still does\n"
    )
    mirror.close()


def test_a_run_whose_lock_was_taken_over_ends(bucket):
    mirror = begun(bucket.address("run"))
    bucket.write("run/run.lock", json.dumps({"owner": "another", "host": "new-host", "process": 7}).encode())
    until(lambda: mirror._lease.lost)
    (mirror.local / "metrics.jsonl").write_text("1\n")
    for end in (mirror.settle, mirror.close):
        with pytest.raises(InputError, match="process 7 of new-host has begun to train in this folder; this one ends"):
            end()
    assert set(bucket.files("run")) == {"run.lock"}, "nothing of the other's is touched"


def test_the_lock_of_a_run_killed_here_is_taken_up_at_once(bucket):
    """It is our own: the lock on the local disk shows that its process is gone."""
    mirror = begun(bucket.address("run"))
    (mirror.local / "metrics.jsonl").write_text("1\n")
    mirror.settle()
    lock = bucket.files("run")[mirrors.LOCK]
    mirror.close()
    bucket.write("run/run.lock", lock)
    began = time.monotonic()
    folder = RunFolder(bucket.address("run"))
    folder.begin({"steps": 1}, prompt_sha256="ab")
    assert time.monotonic() - began < mirrors.LEASE_SECONDS / 2
    folder.close()


def test_a_run_folder_in_a_bucket(bucket, elsewhere, cache):
    address = bucket.address("runs/first")
    assert not has_run(address)
    with pytest.raises(InputError, match=rf"{address} is not the folder of a run: it has no run\.json"):
        open_run(address)
    folder = RunFolder(address)
    assert (folder.address, folder.directory.name) == (address, "first")
    assert str(folder.checkpoints) == f"{address}/checkpoints"
    folder.begin({"steps": 1}, prompt_sha256="ab")
    with pytest.raises(InputError, match=rf"{address}: another process is training in this folder"):
        RunFolder(address)
    folder.write_samples(1, [{"id": "a"}])
    folder.write_metrics(1, {"loss": 0.5})
    folder.settle()
    assert bucket.files("runs/first")["metrics.jsonl"] == b'{"step": 1, "loss": 0.5}\n'

    # A tool reads it while the run goes on, in a copy of its own.
    reader = open_run(address)
    assert reader.header()["config"] == {"steps": 1}
    assert reader.metrics() == [{"step": 1, "loss": 0.5}]
    assert reader.directory != folder.directory
    reader.close()
    folder.close()

    shutil.rmtree(cache)
    folder = RunFolder(address)
    with pytest.raises(InputError, match=rf"{address}/run\.json: config\.steps is 2 where this run began with 1"):
        folder.begin({"steps": 2}, prompt_sha256="ab")
    folder.close()
    elsewhere()
    folder = RunFolder(address)
    folder.begin({"steps": 1}, prompt_sha256="ab")
    folder.cut_after(1)
    folder.write_metrics(2, {"loss": 0.25})
    folder.close()
    assert bucket.files("runs/first")["metrics.jsonl"] == b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'
    assert len(json.loads(bucket.files("runs/first")["run.json"])["starts"]) == 2
    assert mirrors.LOCK not in bucket.files("runs/first")
