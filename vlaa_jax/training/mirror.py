"""A run folder on Google Cloud Storage: worked on in a local copy, uploaded in the background.

The copy lies in the cache folder. A file whose generation in the bucket is the one that was last seen here is ours to
change; any other was written from another machine and is brought down at the start. Uploads follow the local files
and never hold up a step; `settle` waits for them, so that a checkpoint never stands in the bucket without its lines.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping

from tqdm import tqdm

from vlaa_jax.errors import InputError
from vlaa_jax.storage import Changed, RemoteFolder, StorageError, cache_folder

LOCK = "run.lock"
CHECKPOINTS = "checkpoints"  # written to the bucket by Orbax
LEASE_SECONDS = 60.0  # a lock that was not renewed for so long belongs to a run that is dead
PATIENCE_SECONDS = 60.0  # of a checkpoint, and of the end of the run, for the uploads
_POLL_SECONDS = 1.0
_LONGEST_PAUSE = 30.0  # seconds between tries while the network is down
_REST = 9  # times what a round took: growing files use a tenth of the time at most
# Tools that read a finished run need no more than this.
_READ = ("run.json", "metrics.jsonl", "evaluation/")


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A file when it was last equal here and in the bucket."""

    generation: int
    size: int
    modified: int  # nanoseconds


class Mirror:
    """A remote run folder and its local copy.

    Attributes:
      address: `gs://bucket/folder`.
      local: the copy; its last part is the folder's name.
    """

    def __init__(self, address: str, *, reading: bool = False):
        """Opens it; nothing is transferred yet.

        Args:
          reading: a copy of its own with what tools read, beside that of a run that may be going on.

        Raises:
          InputError: see `RemoteFolder`.
        """
        self._remote = RemoteFolder(address)
        self.address = self._remote.address
        key = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self._home = cache_folder() / "runs" / (f"{key}-reading" if reading else key)
        self.local = self._home / self.address.rpartition("/")[2]
        self._state_path = self._home / "state.json"
        self._reading = reading
        self._lease: _Lease | None = None
        self._thread: threading.Thread | None = None
        self._news = threading.Condition()
        self._wanted = self._done = 0  # rounds of uploads: asked for, and finished without an error
        self._ended = threading.Event()
        self._trouble = ""
        self._owner, self._seen = "", {}

    def pull(self) -> None:
        """Brings down what another machine wrote, and removes what it removed.

        Raises:
          StorageError: the bucket cannot be read.
        """
        self.local.mkdir(parents=True, exist_ok=True)
        self._owner, self._seen = self._read_state()
        found = {name: file for name, file in self._remote.files().items() if self._is_ours(name)}
        for name, file in found.items():
            path = self.local / name
            seen = self._seen.get(name)
            if path.exists() and seen is not None and seen.generation == file.generation:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._home / uuid.uuid4().hex
            try:
                self._remote.download(name, temporary, generation=file.generation)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._note(name, file.generation, path.stat())
        for name in self._seen.keys() - found.keys():
            (self.local / name).unlink(missing_ok=True)
            del self._seen[name]
        self._write_state()

    def begin(self) -> None:
        """Claims the remote folder and starts to upload.

        Raises:
          InputError: another process trains there, or the folder cannot be written.
        """
        if self._lease is not None:
            return
        self._lease = _Lease(self._remote, self._owner)
        self._lease.take()
        self.pull()  # what came between the first look and the lock
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()
        # By itself: an upload may take longer than a lease.
        threading.Thread(target=self._keep_lease, name="lease", daemon=True).start()

    def settle(self) -> bool:
        """Waits until what the local files hold now is in the bucket; False after `PATIENCE_SECONDS`.

        Raises:
          InputError: another process has taken the folder over.
        """
        if self._thread is None:
            return True
        with self._news:
            self._wanted += 1
            wanted = self._wanted
            self._news.notify_all()
            settled = self._news.wait_for(lambda: self._done >= wanted or bool(self._lease.lost), PATIENCE_SECONDS)
        if self._lease.lost:
            raise InputError(f"{self.address}: {self._lease.lost}; this one ends")
        return settled

    def close(self) -> None:
        """Uploads the rest, that of an earlier run here too, gives the folder free and ends the thread.

        Raises:
          InputError: something could not be uploaded: names it, and where the local copy lies.
        """
        if self._lease is None and not self._reading and self._unsent(self._files()):
            self.begin()
        if self._thread is None:
            return
        try:
            settled = self.settle()
        finally:
            thread, self._thread = self._thread, None
            self._ended.set()
            with self._news:
                self._news.notify_all()
        if not settled:
            rest = ", ".join(self._unsent(self._files()))
            raise InputError(
                f"{self.address}: not uploaded: {rest} ({self._trouble or 'too slow'}); the local copy is "
                f"{self.local}, and the same command uploads it"
            )
        thread.join()
        with contextlib.suppress(StorageError):  # it would run out by itself
            self._lease.give_back()

    def _work(self) -> None:
        failures, pause, wanted = 0, _POLL_SECONDS, 0
        while True:
            with self._news:
                self._news.wait_for(lambda before=wanted: self._ended.is_set() or self._wanted > before, pause)
                if self._ended.is_set() or self._lease.lost:
                    return
                wanted = self._wanted
            began = time.monotonic()
            try:
                self._upload()
            except (StorageError, OSError) as error:
                self._trouble = str(error)
                if not failures:
                    _say(f"warning: {error}; the run goes on and uploads are tried again")
                failures += 1
                pause = min(2.0 ** (failures - 1), _LONGEST_PAUSE)
                continue
            if failures:
                _say(f"{self.address}: uploads go on")
            failures, self._trouble = 0, ""
            pause = max(_POLL_SECONDS, _REST * (time.monotonic() - began))
            with self._news:
                self._done = wanted
                self._news.notify_all()

    def _keep_lease(self) -> None:
        while not self._ended.wait(LEASE_SECONDS / 4) and not self._lease.lost:
            with contextlib.suppress(StorageError):  # the uploads say what is wrong with the network
                self._lease.renew()
        with self._news:
            self._news.notify_all()

    def _upload(self) -> None:
        """One round: every file that differs from what the bucket has."""
        files, copy = self._files(), self._home / "sending"
        for name in self._unsent(files):
            # The file may grow meanwhile: what is sent is a copy, and a later round sends the rest.
            shutil.copyfile(self.local / name, copy)
            self._note(name, self._remote.upload(copy, name), files[name])
            self._write_state()
        for name in self._seen.keys() - files.keys():
            self._remote.remove(name)
            del self._seen[name]
            self._write_state()

    def _unsent(self, files: Mapping[str, os.stat_result]) -> list[str]:
        """Those that differ from what the bucket has."""
        out = []
        for name, status in files.items():
            seen = self._seen.get(name)
            if seen is None or (seen.size, seen.modified) != (status.st_size, status.st_mtime_ns):
                out.append(name)
        return out

    def _files(self) -> dict[str, os.stat_result]:
        out = {}
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            with contextlib.suppress(FileNotFoundError):  # removed in this moment
                if self._is_ours(name) and path.is_file():
                    out[name] = path.stat()
        return out

    def _is_ours(self, name: str) -> bool:
        """Neither a checkpoint, nor a lock, nor a file that is being written under a temporary name."""
        if self._reading and not name.startswith(_READ):
            return False
        folder, *_, last = name.split("/") if "/" in name else ("", name)
        return folder != CHECKPOINTS and name != LOCK and not last.startswith(".")

    def _note(self, name: str, generation: int, status: os.stat_result) -> None:
        self._seen[name] = _Seen(generation, status.st_size, status.st_mtime_ns)

    def _read_state(self) -> tuple[str, dict[str, _Seen]]:
        try:
            state = json.loads(self._state_path.read_bytes())
            return state["owner"], {name: _Seen(**seen) for name, seen in state["seen"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return uuid.uuid4().hex, {}

    def _write_state(self) -> None:
        state = {"owner": self._owner, "seen": {name: dataclasses.asdict(seen) for name, seen in self._seen.items()}}
        temporary = self._home / uuid.uuid4().hex
        temporary.write_text(json.dumps(state))
        temporary.replace(self._state_path)


class _Lease:
    """The lock of a remote run folder: an object that its owner writes again and again, by its generation.

    No clock is compared: who finds a lock watches it for `LEASE_SECONDS`.

    Attributes:
      lost: why it is no longer ours, '' while it is.
    """

    def __init__(self, remote: RemoteFolder, owner: str):
        self._remote, self._owner = remote, owner
        self._generation = 0
        self.lost = ""

    def take(self) -> None:
        """Writes the lock, after a while where a dead run left one.

        Raises:
          InputError: another process holds it.
        """
        held = self._remote.read(LOCK)
        if held is not None and _owner(held[0])["owner"] != self._owner:
            self._watch(*held)
        self._generation = held[1] if held is not None else 0
        try:
            self._write()
        except Changed:
            raise InputError(f"{self._remote.address}: another process began to train in this folder now") from None

    def renew(self) -> None:
        """Keeps it from running out; sets `lost` where another process has taken it."""
        try:
            self._write()
        except Changed:
            held = self._remote.read(LOCK)
            if held is not None and _owner(held[0])["owner"] != self._owner:
                self.lost = f"{_named(held[0])} has begun to train in this folder"
                return
            # A write that seemed to fail had arrived, or somebody removed the lock.
            self._generation = 0 if held is None else held[1]

    def give_back(self) -> None:
        self._remote.remove(LOCK)

    def _write(self) -> None:
        content = {"owner": self._owner, "host": socket.gethostname(), "process": os.getpid()}
        self._generation = self._remote.write(LOCK, json.dumps(content).encode(), expected=self._generation)

    def _watch(self, content: bytes, generation: int) -> None:
        who = f"{self._remote.address}: {_named(content)}"
        _say(f"{who} was the last to train in this folder; waiting {LEASE_SECONDS:.0f} s to see whether it still does")
        until = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < until:
            time.sleep(LEASE_SECONDS / 20)
            held = self._remote.read(LOCK)
            if held is None or held[1] != generation:
                raise InputError(f"{who} is training in this folder; wait for its end")


def _owner(content: bytes) -> dict[str, str]:
    try:
        return {"owner": "", "host": "?", "process": "?"} | json.loads(content)
    except (ValueError, TypeError):
        return {"owner": "", "host": "?", "process": "?"}


def _named(content: bytes) -> str:
    holder = _owner(content)
    return f"process {holder['process']} of {holder['host']}"


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)  # keeps a progress bar whole
