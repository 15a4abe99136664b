"""Where the shards of a build go: a folder on disk or in a bucket, which holds a whole data set at the end, or none."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import MANIFEST, Shard, appearing, finish, shard_name, write_shard
from vlaa_jax.storage import RemoteFolder, is_remote


class Destination(Protocol):
    """May be pickled: workers write shards side by side."""

    def forget(self, *, begun: bool) -> None:
        """Removes what a build that was ended left: half a data set, or just before its end a whole one.

        Args:
          begun: whether this build has begun its last step; otherwise a whole data set is somebody's.
        """

    def appearing(self) -> AbstractContextManager["Destination"]:
        """Where to write; it becomes the data set when the block ends without an error.

        Raises:
          InputError: there is something already.
        """

    def write(self, split: str, number: int, records: Iterable[Record], *, name: str, count: int) -> Shard:
        """Writes one shard.

        Args:
          split, number, records: as `write_shard` takes them.
          name: of the data set.
          count: shards of the split.
        """

    def finish(self, shards: Sequence[Shard], **about: Any) -> None:
        """Makes a data set of the shards; takes what `shards.finish` takes."""


def destination(address: str) -> Destination:
    """The destination at a path or at `gs://bucket/folder`."""
    return _Bucket(address) if is_remote(address) else _Disk(pathlib.Path(address))


class _Disk:
    def __init__(self, path: pathlib.Path):
        self._path = path

    def forget(self, *, begun: bool) -> None:
        for half in self._path.parent.glob(f".{self._path.name}.*"):
            shutil.rmtree(half)
        if begun and self._path.exists():
            shutil.rmtree(self._path)

    @contextlib.contextmanager
    def appearing(self) -> Iterator[Self]:
        with appearing(self._path) as folder:
            yield type(self)(folder)

    def write(self, split: str, number: int, records: Iterable[Record], *, name: str, count: int) -> Shard:
        return write_shard(self._path, split, number, records)

    def finish(self, shards: Sequence[Shard], **about: Any) -> None:
        finish(self._path, shards, **about)


class _Bucket:
    """A folder without a manifest is no data set: it comes last and goes first."""

    def __init__(self, address: str):
        self._address = address

    def forget(self, *, begun: bool) -> None:
        folder = RemoteFolder(self._address)
        names = folder.files()
        if begun or MANIFEST not in names:
            for name in sorted(names, key=lambda name: name != MANIFEST):
                folder.remove(name)

    @contextlib.contextmanager
    def appearing(self) -> Iterator[Self]:
        if RemoteFolder(self._address).files():
            raise InputError(f"{self._address} exists already: name a new directory, or remove it first")
        yield self

    def write(self, split: str, number: int, records: Iterable[Record], *, name: str, count: int) -> Shard:
        with tempfile.TemporaryDirectory() as folder:
            shard = write_shard(pathlib.Path(folder), split, number, records)
            RemoteFolder(self._address).upload(pathlib.Path(folder, shard.part), shard_name(name, shard, count))
        return shard

    def finish(self, shards: Sequence[Shard], **about: Any) -> None:
        remote = RemoteFolder(self._address)
        with tempfile.TemporaryDirectory() as home:
            folder = pathlib.Path(home)
            for shard in shards:
                (folder / shard.part).touch()  # TFDS looks for the names alone
            finish(folder, shards, **about)
            described = [path for path in folder.iterdir() if path.stat().st_size]
            for path in sorted(described, key=lambda path: path.name == MANIFEST):
                remote.upload(path, path.name)
