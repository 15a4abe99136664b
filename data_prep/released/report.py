"""What an import took, repaired and left out, by source; and where it stops because too much was left out."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import ProcessRecord, Record

# Kinds of reasons for leaving a record out.
DAMAGED = "no JSON object"
FIELD = "missing or wrong field"
SOURCE = "unknown source"
MISSING = "missing picture"
PICTURE = "unreadable picture"
GOLD = "gold that its verifier cannot read"
VALUE = "value that is no number from 0 to 1"

UNKNOWN = "unknown"  # source of what names none

_SHOWN = 5  # ids in a message


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a record is left out.

    Attributes:
      kind: one of the above.
      detail: one sentence.
    """

    kind: str
    detail: str


class Skip(Exception):
    """Raised for a record that is left out. Its reason is what is kept: an exception holds on to the whole record.

    Attributes:
      reason: why.
    """

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.reason = Reason(kind, detail)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one entry.

    Attributes:
      id: of the record, as far as it is known; else the line.
      source: it came from; `UNKNOWN` where that cannot be told.
      record: None where it is left out.
      reason: why it is left out, else None.
      repairs: names of what was repaired.
      remarks: what else a reader of the report should know, such as (`unknown verifier_type`, `grounding2`).
    """

    id: str
    source: str
    record: Record | ProcessRecord | None
    reason: Reason | None = None
    repairs: tuple[str, ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()


class Report:
    """Counts of an import.

    Args:
      max_skipped: largest share of a source's entries that may be left out, 0 to 1.
      allowed: kinds of reasons that do not count as left out.

    Attributes:
      read, written: entries and records, by source.
      skipped: ids and reasons of what was left out, in the file's order.
    """

    def __init__(self, max_skipped: float, allowed: Iterable[str] = ()):
        self._max_skipped, self._allowed = max_skipped, set(allowed)
        self.read: collections.Counter[str] = collections.Counter()
        self.written: collections.Counter[str] = collections.Counter()
        self.skipped: list[Outcome] = []
        self._repairs: collections.Counter[tuple[str, str]] = collections.Counter()
        self._remarks: collections.Counter[tuple[str, str]] = collections.Counter()
        self._verifiers: collections.Counter[str] = collections.Counter()

    def add(self, outcome: Outcome) -> None:
        """Counts one entry."""
        self.read[outcome.source] += 1
        self._remarks.update(outcome.remarks)
        if outcome.reason is not None:
            self.skipped.append(outcome)
            return
        self.written[outcome.source] += 1
        self._repairs.update((outcome.source, name) for name in outcome.repairs)
        if isinstance(outcome.record, Record):
            self._verifiers[outcome.record.verifier] += 1

    def check(self) -> None:
        """Raises `InputError` where too much of a source is left out."""
        counted = [outcome for outcome in self.skipped if outcome.reason.kind not in self._allowed]
        by_source = collections.Counter(outcome.source for outcome in counted)
        # An entry without a source is measured against the whole file: it is all that there is of its kind.
        read = self.read | {UNKNOWN: self.read.total()}
        over = [source for source in sorted(by_source) if by_source[source] > self._max_skipped * read[source]]
        if not over:
            return
        lines = [f"too much would be left out (--max-skipped={self._max_skipped:g}), nothing was written"]
        for source in over:
            lines.append(f"{source}: {by_source[source]} of {read[source]}")
            own = [outcome for outcome in counted if outcome.source == source]
            for kind, count in _most_common(outcome.reason.kind for outcome in own):
                shown = [outcome for outcome in own if outcome.reason.kind == kind][:_SHOWN]
                examples = "; ".join(f"{outcome.id}: {outcome.reason.detail}" for outcome in shown)
                lines.append(f"  {kind}, {count}: {examples}{'; ...' if count > len(shown) else ''}")
        raise InputError("\n".join(lines))

    def to_json(self) -> dict[str, Any]:
        """All of it, for `report.json`."""
        sources = {
            source: {
                "read": self.read[source],
                "written": self.written[source],
                "skipped": dict(_most_common(o.reason.kind for o in self.skipped if o.source == source)),
                "repairs": {name: count for (own, name), count in sorted(self._repairs.items()) if own == source},
            }
            for source in sorted(self.read)
        }
        remarks: dict[str, dict[str, int]] = {}
        for (kind, what), count in sorted(self._remarks.items()):
            remarks.setdefault(kind, {})[what] = count
        return {
            "sources": sources,
            "verifiers": dict(sorted(self._verifiers.items())),
            "remarks": remarks,
            "skipped": [
                {"id": o.id, "source": o.source, "kind": o.reason.kind, "detail": o.reason.detail} for o in self.skipped
            ],
        }

    def table(self) -> str:
        """For people: a line a source, then what was repaired, remarked and left out."""
        lines = [f"{'source':<20}{'read':>10}{'written':>10}{'left out':>10}"]
        for source in sorted(self.read):
            written = self.written[source]
            lines.append(f"{source:<20}{self.read[source]:>10,}{written:>10,}{self.read[source] - written:>10,}")
        read, written = self.read.total(), self.written.total()
        lines.append(f"{'total':<20}{read:>10,}{written:>10,}{read - written:>10,}")
        for title, counts in (
            ("verifiers", self._verifiers),
            ("repairs", collections.Counter(f"{source}, {name}" for source, name in self._repairs.elements())),
            ("remarks", collections.Counter(f"{kind}: {what}" for kind, what in self._remarks.elements())),
            ("left out", collections.Counter(f"{o.source}, {o.reason.kind}" for o in self.skipped)),
        ):
            if counts:
                lines.append(f"{title}:")
                lines += [f"  {name:<58}{count:>10,}" for name, count in sorted(counts.items())]
        return "\n".join(lines)


def _most_common(names: Iterable[str]) -> list[tuple[str, int]]:
    """Counts, the largest first, ties by name."""
    return sorted(collections.Counter(names).items(), key=lambda item: (-item[1], item[0]))
