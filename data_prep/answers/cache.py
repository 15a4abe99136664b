"""Answers by the content of their requests: what was paid for once is never asked again.

The same request under the same model name has the same key on every machine, so caches may be moved, merged and
shared. The base URL is no part of it: the same model served elsewhere is the same model. An entry names no time or
place.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import pathlib
import uuid
from collections.abc import Sequence
from typing import Protocol

from data_prep.answers.model import Answer, Request
from vlaa_jax.storage import Changed, RemoteFolder, is_remote

_PARALLEL = 16  # look-ups at once: a bucket takes tens of milliseconds each


def cache_key(model: str, request: Request) -> str:
    """The sha256 of everything that an answer depends on.

    Args:
      model: name of the model that is asked.
      request: what it is asked.
    """
    content = {
        "model": model,
        "system": request.system,
        "prompt": request.prompt,
        "image": "" if request.image is None else hashlib.sha256(request.image).hexdigest(),
        "max_tokens": request.max_tokens,
        "temperature": float(request.temperature),
        "attempt": request.attempt,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Cache:
    """A folder on disk or in a bucket; one small JSON file an answer, in 256 sub-folders."""

    def __init__(self, address: str):
        """Opens it; a folder on disk is made with the first answer.

        Args:
          address: folder, or `gs://bucket/folder`.

        Raises:
          InputError: no such bucket.
        """
        self._files: _Files = _Bucket(address) if is_remote(address) else _Disk(pathlib.Path(address))

    def find(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there; a damaged entry counts as none."""
        with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
            contents = pool.map(self._files.read, map(_name, keys))
            found = {key: _parse(content) for key, content in zip(keys, contents, strict=True) if content is not None}
        return {key: answer for key, answer in found.items() if answer is not None}

    def store(self, key: str, answer: Answer) -> None:
        """Writes an answer, whole or not at all, in place of a damaged one."""
        entry = {
            "text": answer.text,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "cost": answer.cost,
            "truncated": answer.truncated,
            "model": answer.model,
        }
        self._files.write(_name(key), json.dumps(entry, sort_keys=True).encode() + b"\n")


def _name(key: str) -> str:
    return f"{key[:2]}/{key}.json"


def _parse(content: bytes) -> Answer | None:
    """The answer as one from the cache; None for anything but an entry."""
    try:
        entry = json.loads(content)
        answer = Answer(
            text=entry["text"],
            prompt_tokens=entry["prompt_tokens"],
            completion_tokens=entry["completion_tokens"],
            cached=True,
            truncated=entry["truncated"],
            model=entry["model"],
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    kinds = (answer.text, str), (answer.prompt_tokens, int), (answer.completion_tokens, int), (answer.truncated, bool)
    return answer if all(isinstance(value, kind) for value, kind in (*kinds, (answer.model, str))) else None


class _Files(Protocol):
    """Small files by name, each whole or not there."""

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, content: bytes) -> None: ...


class _Disk:
    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / name).read_bytes()
        return None

    def write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # two may write the same answer at once
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class _Bucket:
    def __init__(self, address: str):
        self._folder = RemoteFolder(address)

    def read(self, name: str) -> bytes | None:
        found = self._folder.read(name)
        return found and found[0]

    def write(self, name: str, content: bytes) -> None:
        try:
            self._folder.write(name, content, expected=0)
        except Changed:  # a damaged entry, or another process had the same answer
            found = self._folder.read(name)
            if found is None or _parse(found[0]) is None:
                with contextlib.suppress(Changed):
                    self._folder.write(name, content, expected=found[1] if found else 0)
