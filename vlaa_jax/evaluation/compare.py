"""What a set of answers is worth, by verifier and by kind of question: figures with intervals, and tables of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlaa_jax.evaluation.bootstrap import Estimate, interval
from vlaa_jax.evaluation.evaluate import Result
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.processing.records import VERIFIERS
from vlaa_jax.rewards import accuracy

_RESAMPLES = 2000

Measures = dict[str, Estimate | int]
"""`records` and the names of `measure`."""


def best_of(scores: np.ndarray) -> np.ndarray:
    """The best score of each record's samples, `[n, G] -> [n]`: what a perfect judge of the samples would reach."""
    return np.asarray(scores).max(axis=1)


def measure(results: Sequence[Result]) -> Measures:
    """Means over records with 95 % bootstrap intervals.

    Returns:
      `records`, `reward`, `valid`, `reward_if_valid` (where an answer is valid), `accuracy` (`rewards.accuracy`),
      `length` in tokens, `truncated` and, where records have several answers, `best_of`.
    """
    answers = [result.answers for result in results]
    of = lambda value: np.asarray([[value(answer) for answer in group] for group in answers], np.float64)  # noqa: E731
    scores, valid = of(lambda answer: answer.trace.score), of(lambda answer: answer.trace.valid)
    right = [[accuracy(answer.trace, result.record.verifier) for answer in result.answers] for result in results]
    mean = lambda values, **weights: interval(values, resamples=_RESAMPLES, **weights)  # noqa: E731
    out: Measures = {
        "records": len(results),
        "reward": mean(scores),
        "valid": mean(valid),
        "accuracy": mean(right),
        "length": mean(of(lambda answer: answer.length)),
        "truncated": mean(of(lambda answer: answer.truncated)),
    }
    if valid.any():
        out["reward_if_valid"] = mean(scores, weights=valid)
    if scores.shape[1] > 1:
        out["best_of"] = mean(best_of(scores))
    return out


def compare(results: Sequence[Result]) -> dict[str, dict[str, Measures]]:
    """`measure` of all records and of each group: `{"verifier": {"all": ..., "digit": ...}, "kind": {...}}`.

    `kind` is the record's `metadata["kind"]`; it is left out where no record has one.
    """
    groups: dict[str, dict[str, list[Result]]] = {"verifier": {"all": list(results)}, "kind": {}}
    for name in VERIFIERS:
        groups["verifier"][name] = [result for result in results if result.record.verifier == name]
    for kind in sorted({result.record.metadata["kind"] for result in results if "kind" in result.record.metadata}):
        groups["kind"][kind] = [result for result in results if result.record.metadata.get("kind") == kind]
    return {
        column: {name: measure(chosen) for name, chosen in parts.items() if chosen}
        for column, parts in groups.items()
        if parts
    }


def tables(title: str, compared: Mapping[str, Mapping[str, Measures]], samples: int) -> list[Table]:
    """One table a column of `compare`, in points of 100.

    Args:
      title: how was answered.
      compared: from `compare`.
      samples: answers a record.
    """
    shown = {"reward": True, "valid": False, "reward_if_valid": True, "accuracy": False, "truncated": False}
    header = ["records", *(name.replace("_", " ") for name in shown), "length"]
    if samples > 1:
        shown["best_of"] = True
        header.append(f"best of {samples}")
    out = []
    for column, groups in compared.items():
        rows = []
        for name, measures in groups.items():
            cells = {key: _points(measures[key], whole) if key in measures else "-" for key, whole in shown.items()}
            best = [cells.pop("best_of")] if samples > 1 else []
            rows.append([name, str(measures["records"]), *cells.values(), f"{measures['length'].value:.0f}", *best])
        note = "Points of 100, with 95 % bootstrap intervals over records; length in tokens."
        out.append(Table(f"{title}, by {column}", [column, *header], rows, note))
    return out


def to_json(compared: Mapping[str, Mapping[str, Measures]]) -> dict[str, Any]:
    """The same as plain numbers: `{"value", "low", "high"}` an estimate, shares in [0, 1]."""
    return {
        column: {
            name: {key: value._asdict() if isinstance(value, Estimate) else value for key, value in measures.items()}
            for name, measures in groups.items()
        }
        for column, groups in compared.items()
    }


def _points(estimate: Estimate, with_interval: bool) -> str:
    value, low, high = (f"{100 * number:.1f}" for number in estimate)
    return f"{value} [{low}, {high}]" if with_interval else value
