"""Counts of a search and of what was made of it."""

import collections
import re
from collections.abc import Sequence
from typing import Any

from data_prep.search.tree import Tree
from vlaa_jax.evaluation.tables import Table, text_table
from vlaa_jax.processing.records import ProcessRecord

_STEP = re.compile(r"^\s*Step[ \t]*\d+[ \t]*[:.]", re.MULTILINE | re.IGNORECASE)


class Report:
    """What `report.json` says.

    Attributes:
      unpublished: records of the split `train` that the published layout cannot hold.
      seconds: that the trees took to grow, over all starts.
    """

    def __init__(self):
        self._questions: collections.Counter[tuple[str, str]] = collections.Counter()
        self._sums: collections.Counter[tuple[str, str]] = collections.Counter()
        self._records: collections.Counter[str] = collections.Counter()
        self._kinds: collections.Counter[str] = collections.Counter()
        self.unpublished, self.seconds = 0, 0.0

    def add_tree(self, verifier: str, tree: Tree, dropped: str) -> None:
        """Counts a tree; `dropped` says why it is left out, '' where it is not."""
        self._questions[verifier, dropped or "kept"] += 1
        nodes = list(tree.nodes())[1:]
        for name, count in (
            ("rollouts", tree.rollouts),
            ("right", tree.right),
            ("cut", tree.cut),
            ("tokens", tree.tokens),
            ("nodes", len(nodes)),
            ("ends", sum(bool(node.ends) for node in nodes)),
        ):
            self._sums[verifier, name] += count

    def add_records(self, split: str, verifier: str, records: Sequence[ProcessRecord]) -> None:
        """Counts the exported nodes of a tree."""
        self._records[split] += len(records)
        self._sums[verifier, "records"] += len(records)
        self._kinds["in numbered steps"] += sum(bool(_STEP.search(record.process)) for record in records)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        total = self._of(None)
        records = self._records.total()
        return {
            **total,
            "splits": dict(self._records),
            "share_of_records_in_numbered_steps": self._kinds["in numbered steps"] / max(records, 1),
            "records_not_published": self.unpublished,
            "verifiers": {name: self._of(name) for name in self._verifiers()},
            "seconds": round(self.seconds, 1),
        }

    def table(self) -> str:
        """For people."""
        header = ["verifier", "questions", "kept", "all right", "all wrong", "rollouts", "right", "nodes", "records"]
        rows = []
        for name in (*self._verifiers(), None):
            found = self._of(name)
            dropped = found["dropped"]
            rows.append(
                [
                    name or "all",
                    f"{found['questions']:,}",
                    f"{found['kept']:,}",
                    *(f"{dropped.get(reason, 0):,}" for reason in ("all right", "all wrong")),
                    f"{found['rollouts']:,}",
                    f"{100 * found['share_right']:.1f} %",
                    f"{found['nodes']:,}",
                    f"{found['records']:,}",
                ]
            )
        steps = self.to_json()["share_of_records_in_numbered_steps"]
        splits = ", ".join(f"{count:,} in {split}" for split, count in self._records.items())
        return (
            f"{text_table(Table('Search', header, rows))}\n"
            f"records: {splits}; {100 * steps:.0f} % of them in numbered steps\n"
            f"{self._of(None)['tokens']:,} tokens in {self.seconds:,.0f} s"
        )

    def _verifiers(self) -> list[str]:
        return sorted({verifier for verifier, _ in self._questions})

    def _of(self, verifier: str | None) -> dict[str, Any]:
        """Counts of one verifier, or of all."""
        mine = lambda name: verifier in (None, name)  # noqa: E731
        outcomes, sums = collections.Counter(), collections.Counter()
        for (name, outcome), count in self._questions.items():
            outcomes[outcome] += count if mine(name) else 0
        for (name, what), count in self._sums.items():
            sums[what] += count if mine(name) else 0
        return {
            "questions": outcomes.total(),
            "kept": outcomes["kept"],
            "dropped": {name: count for name, count in sorted(outcomes.items()) if name != "kept" and count},
            **{name: sums[name] for name in ("rollouts", "tokens", "nodes", "ends", "records")},
            "share_right": sums["right"] / max(sums["rollouts"], 1),
            "share_cut": sums["cut"] / max(sums["rollouts"], 1),
        }
