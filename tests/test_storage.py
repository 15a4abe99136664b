"""Reading and writing a bucket: real HTTP to a server on loopback."""

import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from vlaa_jax import storage
from vlaa_jax.errors import InputError
from vlaa_jax.storage import Changed, RemoteFile, RemoteFolder, StorageError, fetch_folder

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def everything(name: str) -> bool:
    return True


def fetched(bucket, folder: str = "data") -> dict[str, bytes]:
    directory = fetch_folder(bucket.address(folder), everything, expected="shards")
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_files_go_up_and_come_down(bucket, tmp_path):
    folder = RemoteFolder(bucket.address("a/b/"))
    assert folder.address == bucket.address("a/b")
    assert folder.files() == {}
    # Above 8 MB the client sends in parts.
    contents = {"small": b"1", "empty": b"", "sub/large": random.Random(0).randbytes(9_000_001)}
    generations = {}
    for name, content in contents.items():
        (tmp_path / "out").write_bytes(content)
        generations[name] = folder.upload(tmp_path / "out", name)
    assert bucket.files("a/b") == contents
    assert folder.files() == {name: RemoteFile(len(data), generations[name]) for name, data in contents.items()}
    for name, content in contents.items():
        folder.download(name, tmp_path / "in")
        assert (tmp_path / "in").read_bytes() == content
    folder.remove("small")
    folder.remove("small")
    assert set(bucket.files("a/b")) == {"empty", "sub/large"}
    assert set(RemoteFolder(bucket.address("")).files()) == {"a/b/empty", "a/b/sub/large"}


def test_a_small_file_is_written_only_over_the_version_expected(bucket):
    folder = RemoteFolder(bucket.address("run"))
    assert folder.read("lock") is None
    first = folder.write("lock", b"one", expected=0)
    with pytest.raises(Changed):
        folder.write("lock", b"two", expected=0)
    second = folder.write("lock", b"three", expected=first)
    with pytest.raises(Changed):
        folder.write("lock", b"four", expected=first)
    assert folder.read("lock") == (b"three", second)


def test_a_small_file_that_is_written_again_while_it_is_read_is_the_new_one(bucket):
    bucket.write("run/state", b"one")
    asked = iter([False, True])  # its generation, then its content

    def interfere(method, name):
        if next(asked, False):
            bucket.write("run/state", b"two")

    bucket.emulator.interfere = interfere
    content, generation = RemoteFolder(bucket.address("run")).read("state")
    assert content == b"two"
    RemoteFolder(bucket.address("run")).write("state", b"three", expected=generation)


def test_a_folder_is_fetched_once_for_each_version_of_its_files(bucket, emulator):
    bucket.write("data/a", b"one")
    bucket.write("data/sub/b", b"two")
    bucket.write("data2/c", b"not of this folder")
    assert fetched(bucket) == {"a": b"one", "sub/b": b"two"}
    before = len(emulator.requests)
    assert fetched(bucket) == {"a": b"one", "sub/b": b"two"}
    assert len(emulator.requests) - before == 1, "the listing alone"
    bucket.write("data/a", b"ONE")
    assert fetched(bucket) == {"a": b"ONE", "sub/b": b"two"}


def test_what_came_before_an_interruption_is_kept(bucket, emulator, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.5)
    for number in range(6):
        bucket.write(f"data/{number}", b"x" * 100)
    emulator.interfere = lambda method, name: 503 if name == "data/5" else None
    with pytest.raises(StorageError, match=rf"{bucket.address('data/5')}: the server answers 503; gave up after"):
        fetched(bucket)
    emulator.interfere = lambda method, name: None
    before = len(emulator.requests)
    assert len(fetched(bucket)) == 6
    assert [name for name in emulator.requests[before:] if name != "GET "] == ["GET data/5"]


FETCH = """
import sys
from vlaa_jax.storage import fetch_folder
folder = fetch_folder(sys.argv[1], lambda name: True, expected="shards")
assert sorted(len(path.read_bytes()) for path in folder.iterdir()) == [1000000] * 4, list(folder.iterdir())
"""


def test_processes_of_one_host_fetch_each_file_once(bucket, emulator):
    for number in range(4):
        bucket.write(f"data/{number}", bytes(1_000_000))
    before = len(emulator.requests)
    command = [sys.executable, "-c", FETCH, bucket.address("data")]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sorted(name for name in emulator.requests[before:] if name != "GET ") == [f"GET data/{n}" for n in range(4)]


def test_errors_of_the_server_and_a_stall_are_ridden_out(bucket, emulator, monkeypatch):
    monkeypatch.setattr(storage, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(storage, "RETRY_SECONDS", 20.0)
    contents = {str(number): bytes([number]) * 100_000 for number in range(4)}
    for name, content in contents.items():
        bucket.write(f"data/{name}", content)
    troubles = iter([503, 429, "stall", 500, "stall"])

    def interfere(method: str, name: str) -> int | None:
        trouble = next(troubles, None)
        if trouble == "stall":
            time.sleep(1)
            return 503
        return trouble

    emulator.interfere = interfere
    assert fetched(bucket) == contents
    assert next(troubles, None) is None


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("gs://", "'gs://': expected gs://BUCKET/FOLDER"),
        ("gs://no-such-bucket/data", "gs://no-such-bucket/data: no such bucket or file (404)"),
        ("gs://{}/none", "gs://{}/none: no such folder, or nothing in it; expected shards"),
    ],
)
def test_what_is_not_there_is_named(bucket, address, sentence):
    with pytest.raises(InputError) as caught:
        fetch_folder(address.format(bucket.name), everything, expected="shards")
    assert str(caught.value) == sentence.format(bucket.name)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "access was refused (403): expected rights to read and write objects and to see the bucket"),
        (401, "no Google credentials found: run 'gcloud auth application-default login'"),
    ],
)
def test_no_permission(bucket, emulator, tmp_path, status, reason):
    bucket.write("data/a", b"one")
    emulator.interfere = lambda method, name: status
    with pytest.raises(InputError) as caught:
        fetched(bucket)
    assert str(caught.value).startswith(f"{bucket.address('data')}: {reason}")
    (tmp_path / "out").write_bytes(b"1")
    with pytest.raises(InputError) as caught:
        RemoteFolder(bucket.address("data")).upload(tmp_path / "out", "b")
    assert str(caught.value).startswith(f"{bucket.address('data/b')}: {reason}")


def test_orbax_reads_a_bucket_without_tensorflow_where_that_is_installed(bucket, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise ImportError('not wanted')")
    bucket.write("a", b"one")
    code = f"import vlaa_jax.storage; from etils import epath; print(epath.Path({bucket.address('a')!r}).read_text())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "one\n", done.stderr


def test_without_the_extra():
    code = (
        "import sys; sys.modules['gcsfs'] = None  # as if it were not installed\n"
        "from vlaa_jax.errors import run_command\n"
        "from vlaa_jax.processing.shards import RecordSource\n"
        "run_command(lambda: RecordSource('gs://bucket/data:train') and None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: gs://bucket/data: gs:// paths need more packages: pip install 'vlaa_jax[gcs]'\n"
