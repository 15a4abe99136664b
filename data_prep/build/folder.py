"""Where a step keeps its files, and how a build that is started again knows which of them are whole.

Paths go through Beam, so that they may lie in a bucket where Beam's part for it is installed.
"""

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.drafts import Draft, from_line
from vlaa_jax.errors import InputError
from vlaa_jax.storage import is_remote

# Of a step that is whole: what it was made from, and counts. Written last.
STATE = "step.json"
FORMER = "~former"  # among what a step was made from: the fingerprint of the step before; sorted behind all fields


@dataclasses.dataclass(frozen=True)
class StepFolder:
    """One step's folder in a build.

    Attributes:
      build: folder of the build.
      number, name: of the step.
    """

    build: str
    number: int
    name: str

    @property
    def path(self) -> str:
        return join(self.build, "steps", f"{self.number}_{self.name}")

    def state(self) -> dict[str, Any] | None:
        """What `finish` wrote; None for a step that is not whole.

        Raises:
          InputError: the file is damaged.
        """
        path = join(self.path, STATE)
        content = read_file(path)
        if content is None:
            return None
        try:
            return {name: json.loads(content)[name] for name in ("inputs", "fingerprint", "counts")}
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{path} is damaged: remove it, and the step is made again") from None

    def check(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the step is whole, for a build that would make it from `inputs`.

        Raises:
          InputError: it was made from others; names the first that differs.
        """
        state = self.state()
        if state is None:
            return False
        for field in sorted(state["inputs"].keys() | inputs.keys()):
            old, new = (values.get(field) for values in (state["inputs"], inputs))
            if old != new:
                what = f"config.{field} is {new!r}, but {self.path} was made with {old!r}"
                if field == FORMER:
                    what = f"{self.path} was made from another step before it"
                raise InputError(
                    f"{what}: name another folder with --out (--config.cache={join(self.build, 'cache')} keeps the "
                    "answers), or remove that folder and those of the later steps"
                )
        return True

    def clear(self) -> None:
        """Removes what a step that was ended left here."""
        from apache_beam.io.filesystems import FileSystems

        if self.begun():
            FileSystems.delete(self.match("*"))

    def begun(self) -> bool:
        """Whether the step, whole or not, has written anything."""
        return bool(self.match("*"))

    def finish(self, inputs: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
        """Marks the step as whole."""
        state = {"inputs": dict(inputs), "fingerprint": fingerprint(inputs), "counts": counts}
        write_file(join(self.path, STATE), (json.dumps(state, indent=1, sort_keys=True) + "\n").encode())

    def match(self, pattern: str) -> list[str]:
        """Files of the folder, in order."""
        return sorted(_matches(self.path, pattern))

    def files(self) -> list[str]:
        """Those of the drafts that the step let through."""
        return self.match("drafts-*.jsonl")

    def drafts(self) -> Iterator[Draft]:
        """All drafts that the step let through."""
        for path in self.files():
            yield from read_drafts(path)


def fingerprint(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(inputs), sort_keys=True).encode()).hexdigest()


def read_drafts(path: str) -> Iterator[Draft]:
    """The drafts of a step's file."""
    for line in read_lines(path):
        yield from_line(line.decode())


def read_lines(path: str) -> Iterator[bytes]:
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path) as file:
        yield from file


def read_file(path: str) -> bytes | None:
    """None where there is no such file."""
    from apache_beam.io.filesystems import FileSystems

    if not exists(path):
        return None
    with FileSystems.open(path) as file:
        return file.read()


def exists(path: str) -> bool:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.exists(path)


def write_file(path: str, content: bytes) -> None:
    """Whole or not at all; of several workers that write the same file the last one wins."""
    import uuid

    from apache_beam.io.filesystems import FileSystems

    partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
    with FileSystems.create(partial) as file:
        file.write(content)
    FileSystems.rename([partial], [path])


def check_place(path: str) -> None:
    """Raises `InputError` for a folder that Beam cannot reach."""
    from apache_beam.io.filesystems import FileSystems

    try:
        FileSystems.get_filesystem(path)
        # Without its part for credentials Beam would ask as nobody.
        reached = not is_remote(path) or importlib.util.find_spec("google_auth_httplib2") is not None
    except ValueError:
        reached = False
    if not reached:
        raise InputError(f"{path} cannot be reached: gs:// needs pip install 'vlaa_jax[gcs]' 'apache-beam[gcp]'")


def join(*parts: str) -> str:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.join(*parts)


def _matches(folder: str, pattern: str) -> Iterator[str]:
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    try:
        for result in FileSystems.match([join(folder, pattern)]):
            yield from (entry.path for entry in result.metadata_list)
    except BeamIOError:  # no such folder yet
        return
