"""What became of the questions, and what it cost: a table for people and `report.json`."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.answers.ledger import StageTotal
from data_prep.sources.published import PUBLISHED
from vlaa_jax.evaluation.tables import Table, text_table

Counts = Mapping[str, Mapping[str, Mapping[str, int]]]  # see engine.read_counts


def total(by_source: Mapping[str, Mapping[str, int]]) -> int:
    """Of all outcomes and sources."""
    return sum(sum(counts.values()) for counts in by_source.values())


def sentence(counts: Counts) -> str:
    """A step in a line."""
    passed = ", ".join(f"{sum(own.values()):,} {outcome}" for outcome, own in counts["passed"].items()) or "0 drafts"
    return f"{passed}, {total(counts['set_aside']):,} set aside"


def tables(steps: Mapping[str, Counts], stages: Sequence[StageTotal]) -> str:
    """The whole report as text.

    Args:
      steps: counts of the steps that are done, by `number name`, in order.
      stages: of the ledger.
    """
    return "\n\n".join(text_table(table) for table in (_flow(steps), _reasons(steps), _costs(stages)) if table.rows)


def as_json(steps: Mapping[str, Counts], stages: Sequence[StageTotal]) -> str:
    """The same for programs."""
    content: dict[str, Any] = {"steps": steps, "ledger": [dataclasses.asdict(stage) for stage in stages]}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _flow(steps: Mapping[str, Counts]) -> Table:
    columns = [(name, outcome) for name, counts in steps.items() for outcome in counts["passed"]]
    header = ["source", *(name if outcome == "drafts" else outcome.upper() for name, outcome in columns)]
    sources = [name for name in PUBLISHED if any(name in steps[step]["passed"][out] for step, out in columns)]
    rows = [
        [source, *(f"{steps[step]['passed'][out].get(source, 0):,}" for step, out in columns)] for source in sources
    ]
    rows.append(["all", *(f"{sum(steps[step]['passed'][out].values()):,}" for step, out in columns)])
    return Table("Questions after each step", header, rows if columns else [])


def _reasons(steps: Mapping[str, Counts]) -> Table:
    rows = []
    for name, counts in steps.items():
        sums = collections.Counter({reason: sum(own.values()) for reason, own in counts["set_aside"].items()})
        rows += [[name.partition(" ")[2], reason, f"{number:,}"] for reason, number in sums.most_common()]
    return Table("Set aside", ["step", "reason", "questions"], rows)


def _costs(stages: Sequence[StageTotal]) -> Table:
    numbers = ("requests", "cached", "failed", "interrupted", "prompt_tokens", "completion_tokens")
    rows = [[stage.stage, *(f"{getattr(stage, name):,}" for name in numbers), f"{stage.cost:.4f}"] for stage in stages]
    rows.append(
        [
            "all",
            *(f"{sum(getattr(stage, name) for stage in stages):,}" for name in numbers),
            f"{sum(stage.cost for stage in stages):.4f}",
        ]
    )
    header = ["step", *(name.replace("_", " ") for name in numbers), "cost"]
    return Table("Requests and costs over all starts", header, rows if stages else [])
