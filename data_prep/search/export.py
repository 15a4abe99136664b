"""From trees to judged partial solutions: shards of process records, and the published layout beside them.

Every root-to-node path is one record, its value that of the node. The published layout (`index, image_path, question,
process, value`, section 6.1 of our notes on ViLBench) has one picture a question: questions with another number are in
the shards alone. It holds the split `train`; what is held out is in the shards alone too.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from PIL import Image

from data_prep.search.folder import REPORT, SearchFolder
from data_prep.search.report import Report
from data_prep.search.tree import Node, Rules, Tree
from data_prep.search.values import Valuation
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import RecordSource, finish, write_split
from vlaa_jax.storage import replace_file

SHARDS, PROCESS, IMAGES = "shards", "process.json", "images"
TRAIN, HELDOUT = "train", "heldout"
_DESCRIPTION = "Partial solutions with values, found by tree search over the steps of a policy's solutions."


@dataclasses.dataclass(frozen=True)
class Selection:
    """What of the trees is exported.

    Attributes:
      drop_decided: whether questions are left out whose rollouts are all right or all wrong.
      least_visits: of a node; one at which rollouts end has a verified answer and needs none.
    """

    drop_decided: bool
    least_visits: int

    def dropped(self, tree: Tree) -> str:
        """Why a tree is left out, '' where it is not."""
        if self.drop_decided and tree.right in (0, tree.rollouts):
            return "all right" if tree.right else "all wrong"
        return "" if any(self.nodes(tree)) else "no node with enough visits"

    def nodes(self, tree: Tree) -> Iterator[tuple[int, Node]]:
        """Those that are exported, with their places among the nodes of the tree."""
        for place, node in enumerate(tree.nodes()):
            if node is not tree.root and (node.ends or node.visits >= self.least_visits):
                yield place, node


def process_of(node: Node) -> str:
    """The partial solution that ends with a node's step."""
    return "".join(node.texts).strip()


def process_records(record: Record, tree: Tree, selection: Selection, value: Valuation) -> list[ProcessRecord]:
    """The exported nodes of a question's tree, every prefix once; ids are QUESTION/PLACE OF THE NODE."""
    return [
        ProcessRecord(f"{record.id}/{place}", record.images, record.question, process_of(node), value(node))
        for place, node in selection.nodes(tree)
    ]


def held_out(ids: Sequence[str], share: float, seed: int) -> set[str]:
    """A share of the questions, drawn by the seed; at least one where the share is above 0 and there are two."""
    count = max(round(share * len(ids)), 1) if share and len(ids) > 1 else 0
    return set(sorted(ids, key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest())[:count])


def export(
    folder: SearchFolder,
    source: RecordSource,
    rules: Rules,
    selection: Selection,
    value: Valuation,
    *,
    heldout: float,
    seed: int,
    name: str,
    version: str,
    records_per_shard: int,
) -> Report:
    """Writes all that is made of the trees; the report last, so that a folder without one is exported again.

    Args:
      folder: with all trees.
      source: the questions.
      rules: of the trees.
      selection: what is exported.
      value: of the nodes.
      heldout: share of the questions in the split `heldout`.
      seed: of the draw of these.
      name, version: of the data set.
      records_per_shard: most records of one shard.

    Raises:
      InputError: nothing is left of the trees.
    """
    report, kept = Report(), []
    for stored in folder.trees():
        tree = Tree.from_json(rules, stored)
        reason = selection.dropped(tree)
        report.add_tree(stored["verifier"], tree, reason)
        if not reason:
            kept.append(stored["id"])
    apart = held_out(kept, heldout, seed)

    def records(split: str, published: "_Published") -> Iterator[ProcessRecord]:
        for stored in folder.trees():
            tree = Tree.from_json(rules, stored)
            if (HELDOUT if stored["id"] in apart else TRAIN) != split or selection.dropped(tree):
                continue
            record = source[stored["place"]]
            found = process_records(record, tree, selection, value)
            report.add_records(split, stored["verifier"], found)
            if split == TRAIN:
                published.add(stored["place"], record, found)
            yield from found

    with _appearing(folder.path) as made, _Published.open(made) as published:
        shards = made / SHARDS
        shards.mkdir()
        written = [
            shard
            for split in (TRAIN, *((HELDOUT,) if apart else ()))
            for shard in write_split(
                shards, split, records(split, published), kind=ProcessRecord, records_per_shard=records_per_shard
            )
        ]
        finish(shards, written, kind=ProcessRecord, name=name, version=version, description=_DESCRIPTION)
        report.unpublished = published.left
    report.seconds = folder.seconds()
    replace_file(folder.path / REPORT, f"{json.dumps(report.to_json(), indent=1, sort_keys=True)}\n".encode())
    return report


@contextlib.contextmanager
def _appearing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder whose content then lies in `path`, in place of what an export that was ended left there."""
    made = path / ".export"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    yield made
    for item in sorted(made.iterdir()):
        target = path / item.name
        if target.is_dir():
            shutil.rmtree(target)
        item.replace(target)
    made.rmdir()


class _Published:
    """The published layout: one JSON array, a record a line, and the pictures that it names.

    Attributes:
      left: records of questions that have not one picture.
    """

    def __init__(self, file: TextIO, images: pathlib.Path):
        self._file, self._images, self._index = file, images, 0
        self.left = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: pathlib.Path) -> Iterator["_Published"]:
        """Begins the file, and ends it behind the block."""
        images = folder / IMAGES
        images.mkdir()
        with (folder / PROCESS).open("w", encoding="utf-8") as file:
            file.write("[")
            yield cls(file, images)
            file.write("\n]\n")

    def add(self, place: int, record: Record, found: Sequence[ProcessRecord]) -> None:
        """Adds the records of a question."""
        if len(record.images) != 1:
            self.left += len(found)
            return
        (encoded,) = record.images
        name = f"{place:06d}.{Image.open(io.BytesIO(encoded)).format.lower()}"
        (self._images / name).write_bytes(encoded)
        for each in found:
            self._write(
                {
                    "index": self._index,
                    "image_path": f"{IMAGES}/{name}",
                    "question": each.question,
                    "process": each.process,
                    "value": each.value,
                }
            )

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(f"{',' if self._index else ''}\n{json.dumps(row, ensure_ascii=False)}")
        self._index += 1
