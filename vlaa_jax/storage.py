"""Files that are there whole or not at all: on Google Cloud Storage (`gs://bucket/folder`), in the cache, on disk.

Shards and start checkpoints are read through the local disk: `fetch_folder` brings files there once. Run folders are
mirrored (`training/mirror.py`); checkpoints of a run go to the bucket by Orbax itself.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

from vlaa_jax.errors import InputError

# Where TensorFlow is installed, epath (and Orbax by it) would leave gs:// to it, which does not read it out of the box.
os.environ.setdefault("EPATH_USE_TF", "false")

_SCHEME = "gs://"
_PARALLEL = 4  # files fetched at once
_PASSING = (408, 429, 500, 502, 503, 504)  # answers after which a request is tried again
REQUEST_SECONDS = 60.0  # without a byte: the connection counts as dead
RETRY_SECONDS = 120.0  # of one request, with backoff


class StorageError(InputError):
    """A bucket could not be read or written: not there, refused, or not reached in `RETRY_SECONDS`."""


class Changed(Exception):
    """The object is of another generation than the one expected."""


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Whether a path, a location of shards or a working folder lies on Google Cloud Storage."""
    return os.fspath(location).startswith(_SCHEME)


def cache_folder() -> pathlib.Path:
    """Where indices, demo shards and what comes from a bucket are kept: `$VLAA_JAX_CACHE`, else `~/.cache/vlaa_jax`."""
    return pathlib.Path(os.environ.get("VLAA_JAX_CACHE", "~/.cache/vlaa_jax")).expanduser()


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One version of a file: writing it again gives another generation, even of the same bytes."""

    size: int
    generation: int


class RemoteFolder:
    """A folder of a bucket; names are relative to it, with slashes.

    Every method raises `StorageError`, which names the file or the folder, where the bucket cannot be used.
    """

    def __init__(self, address: str):
        """Opens nothing yet.

        Args:
          address: `gs://bucket` or `gs://bucket/folder`.

        Raises:
          InputError: no bucket in it, or the packages of the extra `gcs` are missing.
        """
        bucket, _, folder = address.removeprefix(_SCHEME).strip("/").partition("/")
        if not is_remote(address) or not bucket:
            raise InputError(f"{address!r}: expected gs://BUCKET/FOLDER")
        self.address = f"{_SCHEME}{bucket}/{folder}".rstrip("/")
        with _said(self.address):
            self._bucket = _client().bucket(bucket)
        self._prefix = f"{folder}/" if folder else ""

    def files(self, start: str = "") -> dict[str, RemoteFile]:
        """All files, those of sub-folders too; empty where the folder does not exist.

        Args:
          start: only those whose names begin so.
        """
        with _said(self.address):
            fields = "items(name,size,generation),nextPageToken"
            found = list(self._bucket.list_blobs(prefix=self._prefix + start, fields=fields, **_patience()))
        return {
            blob.name.removeprefix(self._prefix): RemoteFile(blob.size, blob.generation)
            for blob in found
            if not blob.name.endswith("/")  # what consoles leave for an empty folder
        }

    def download(
        self, name: str, path: pathlib.Path, *, generation: int | None = None, advance: Callable[[int], Any] = int
    ) -> None:
        """Writes a file to a local path, whose folder exists; checksums are compared.

        Args:
          generation: of the version wanted.
          advance: called with the bytes that came.
        """
        blob = self._bucket.blob(self._prefix + name, generation=generation)
        with _said(f"{self.address}/{name}"), path.open("wb") as file:
            blob.download_to_file(_Counted(file, advance), **_patience())

    def upload(self, path: pathlib.Path, name: str) -> int:
        """Writes a local file, whole or not at all; returns its generation."""
        blob = self._bucket.blob(self._prefix + name)
        with _said(f"{self.address}/{name}"):
            blob.upload_from_filename(path, **_patience())
        return blob.generation

    def remove(self, name: str) -> None:
        """Removes a file; there may be none."""
        exceptions = _exceptions()
        with _said(f"{self.address}/{name}"), contextlib.suppress(exceptions.NotFound):
            self._bucket.blob(self._prefix + name).delete(**_patience())

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Content and generation of a small file; None where there is none."""
        exceptions = _exceptions()
        with _said(f"{self.address}/{name}"):
            while True:
                blob = self._bucket.blob(self._prefix + name)
                try:
                    blob.reload(**_patience())
                except exceptions.NotFound:
                    return None
                version = self._bucket.blob(self._prefix + name, generation=blob.generation)
                with contextlib.suppress(exceptions.NotFound):  # written again meanwhile
                    return version.download_as_bytes(**_patience()), blob.generation

    def write(self, name: str, content: bytes, *, expected: int) -> int:
        """Writes a small file in place of one version; returns the new generation.

        Args:
          expected: generation that it must have now; 0 for a file that does not exist.

        Raises:
          Changed: it has another.
        """
        exceptions = _exceptions()
        blob = self._bucket.blob(self._prefix + name)
        with _said(f"{self.address}/{name}"):
            try:
                blob.upload_from_string(content, if_generation_match=expected, **_patience())
            except exceptions.PreconditionFailed:
                raise Changed(name) from None
        return blob.generation


def require_folder(location: str | os.PathLike[str], expected: str) -> None:
    """Raises `InputError` where a local folder does not exist; one in a bucket is asked for when it is opened."""
    if not is_remote(location) and not pathlib.Path(location).is_dir():
        raise InputError(f"{location} does not exist: expected {expected}")


def fetch_folder(address: str, wanted: Callable[[str], bool], *, expected: str) -> pathlib.Path:
    """A local copy of files of a remote folder, fetched once for each version of them.

    The copy is named by the address and by the files' names, sizes and generations, and lies in the cache folder. A
    file is there whole or not at all; what was fetched before an interruption is kept. Processes of one host wait for
    the one that fetches.

    Args:
      address: `gs://bucket/folder`.
      wanted: which files, by name.
      expected: what they are, for the error.

    Raises:
      StorageError: the bucket cannot be read, or holds no such file.
    """
    remote = RemoteFolder(address)
    files = {name: file for name, file in remote.files().items() if wanted(name)}
    if not files:
        raise StorageError(f"{remote.address}: no such folder, or nothing in it; expected {expected}")
    key = json.dumps([remote.address, sorted((name, file.size, file.generation) for name, file in files.items())])
    name = f"{remote.address.rpartition('/')[2]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = cache_folder() / "fetched" / name
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{name}.lock")):
        missing = {name: file for name, file in files.items() if not _is_whole(folder / name, file)}
        if missing:
            _fetch(remote, missing, folder)
    return folder


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock file among the processes of this host, waiting for it."""
    with path.open("ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(path: pathlib.Path, file: RemoteFile) -> bool:
    return path.exists() and path.stat().st_size == file.size


def _fetch(remote: RemoteFolder, files: dict[str, RemoteFile], folder: pathlib.Path) -> None:
    size = sum(file.size for file in files.values())
    title = f"fetching {len(files)} files ({size / 1e9:.2f} GB) of {remote.address}"
    if not sys.stderr.isatty():  # a log gets a line in place of the bar
        print(title, file=sys.stderr, flush=True)
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    def fetch(name: str) -> None:
        temporary = partial / uuid.uuid4().hex
        remote.download(name, temporary, generation=files[name].generation, advance=bar.update)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(folder / name)

    with (
        tqdm.tqdm(total=size, desc=title, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool,
    ):
        for done in [pool.submit(fetch, name) for name in files]:
            done.result()
    partial.rmdir()


class _Counted:
    """A file to write to, which tells how much came."""

    def __init__(self, file: Any, advance: Callable[[int], Any]):
        self._file, self._advance = file, advance

    def write(self, data: bytes) -> int:
        self._advance(len(data))
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def outage(error: BaseException | None) -> str:
    """Why a bucket was not reached, from what Orbax's clients raise; '' for an error that no waiting heals."""
    if "gcsfs" not in sys.modules:
        return ""
    import aiohttp
    import requests
    from gcsfs.retry import HttpError

    if isinstance(error, HttpError):
        return f"the server answers {error.code}" if int(error.code or 0) in _PASSING else ""
    if isinstance(error, aiohttp.ClientError | TimeoutError | requests.RequestException):
        return "no connection"
    if isinstance(error, ValueError) and str(error).startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED")):  # tensorstore
        return "no connection"
    return ""


@functools.cache
def _client() -> Any:
    """One client a process; Orbax looks for credentials in the same way."""
    if any(importlib.util.find_spec(package) is None for package in ("gcsfs", "google.cloud.storage")):
        raise ImportError
    from google.cloud import storage

    return storage.Client()


def _exceptions() -> Any:
    from google.api_core import exceptions

    return exceptions


def _patience() -> dict[str, Any]:
    """Every request is safe to repeat: what is written does not depend on what was there, or names its generation."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"timeout": REQUEST_SECONDS, "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS)}


@contextlib.contextmanager
def _said(address: str) -> Iterator[None]:
    """Turns what the client raises into one sentence that names the file."""
    try:
        yield
    except (InputError, Changed):
        raise
    except ImportError:
        raise InputError(f"{address}: gs:// paths need more packages: pip install 'vlaa_jax[gcs]'") from None
    except Exception as error:  # requests, urllib3, google.auth and google.api_core each have their own families
        raise StorageError(f"{address}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    import requests
    from google.auth import exceptions as auth

    exceptions = _exceptions()
    if isinstance(error, exceptions.RetryError) and isinstance(error.cause, Exception):
        return f"{_reason(error.cause)}; gave up after {RETRY_SECONDS:.0f} s"
    if isinstance(error, requests.Timeout):
        return f"no answer within {REQUEST_SECONDS:.0f} s"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _PASSING:
        return f"the server answers {status}"
    if isinstance(error, exceptions.NotFound):
        return "no such bucket or file (404)"
    if isinstance(error, exceptions.Forbidden | exceptions.Unauthorized):
        return f"access was refused ({error.code}): expected rights to read and write objects and to see the bucket"
    if isinstance(error, auth.GoogleAuthError) or "Project was not passed" in str(error):
        return (
            "no Google credentials found: run 'gcloud auth application-default login' and set GOOGLE_CLOUD_PROJECT, "
            "or use a machine with a service account"
        )
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that is, at every moment, the old one or the new one in full."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
