"""Where a search keeps its trees, and how one that is started again knows which of them are whole.

A chunk of questions is one file, which appears when all of its trees have grown: what is lost by a kill is the chunks
under way, and they are grown again as they were.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlaa_jax.errors import InputError
from vlaa_jax.storage import replace_file

SETTINGS = "search.json"  # what the trees were made from
REPORT = "report.json"  # written last
# Not compared: the same policy and questions, known by their contents, may lie elsewhere when a search goes on.
_WHERE = ("config.model.checkpoint", "config.data.questions")


class SearchFolder:
    """The output folder.

    Attributes:
      path: of it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)

    def begin(self, made_from: Mapping[str, Any]) -> None:
        """Makes the folder, or compares it with what its trees were made from.

        Args:
          made_from: all that the trees and what is exported of them depend on, JSON-serialisable.

        Raises:
          InputError: the folder holds something else; names the first field that differs.
        """
        path = self.path / SETTINGS
        text = json.dumps(made_from, indent=1, sort_keys=True) + "\n"
        if path.exists():
            before, now = _flat(self.settings()), _flat(json.loads(text))
            for field in sorted(before.keys() | now.keys()):
                if before.get(field) != now.get(field) and field not in _WHERE:
                    raise InputError(
                        f"{field} is {now.get(field)!r}, but the trees in {self.path} were made with "
                        f"{before.get(field)!r}: name another folder with --out"
                    )
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} is not empty and holds no search: name a new folder with --out")
        (self.path / "trees").mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())

    def settings(self) -> dict[str, Any]:
        """What the trees were made from.

        Raises:
          InputError: no search lies there.
        """
        try:
            return json.loads((self.path / SETTINGS).read_text())
        except (OSError, ValueError):
            raise InputError(
                f"{self.path} holds no search: expected a folder made by `python -m data_prep search`"
            ) from None

    def missing(self, count: int) -> list[int]:
        """Numbers of the chunks, of `count`, whose trees are still to grow."""
        return [number for number in range(count) if not self._chunk(number).exists()]

    def write(self, number: int, trees: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Keeps the trees of a chunk, a line each, and how long they took."""
        lines = [json.dumps(tree, ensure_ascii=False) + "\n" for tree in trees]
        # Beside the trees, which are the same however long they took; and first, so that no tree is without its time.
        replace_file(self._chunk(number).with_suffix(".seconds"), f"{seconds:.1f}\n".encode())
        replace_file(self._chunk(number), "".join(lines).encode())

    def trees(self) -> Iterator[dict[str, Any]]:
        """All trees that are there, in the order of their chunks."""
        for path in sorted((self.path / "trees").glob("*.jsonl")):
            with path.open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)

    def seconds(self) -> float:
        """That the trees took."""
        return sum(float(path.read_text()) for path in (self.path / "trees").glob("*.seconds"))

    def _chunk(self, number: int) -> pathlib.Path:
        return self.path / "trees" / f"{number:05d}.jsonl"


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Fields of nested objects by their names with dots."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        field: leaf
        for key, inner in value.items()
        for field, leaf in _flat(inner, f"{name}.{key}" if name else key).items()
    }
