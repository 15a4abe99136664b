"""The figures of best-of-N as tables: for a terminal, Markdown and a page, and in full as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from vlaa_jax.evaluation.best_of_n.correlation import Correlation, correlate
from vlaa_jax.evaluation.best_of_n.measures import Cell, Measured
from vlaa_jax.evaluation.best_of_n.selection import GREEDY, MEAN, ORACLE, Rule
from vlaa_jax.evaluation.bootstrap import Estimate
from vlaa_jax.evaluation.judges.aggregate import LAST_N, ORM, PRM
from vlaa_jax.evaluation.tables import Table

PAPER_NAMES = {PRM: "mean (PRM)", ORM: "last (ORM)"}  # the names of ViLBench
_EMPTY = "-"


def model_tables(measured: Measured) -> list[Table]:
    """One model's responses: accuracy of the picks, their gain over the mean sample, and splits at the largest N."""
    if not measured.cells:
        return []
    largest = measured.largest
    note = f"Points of 100, with 95 % bootstrap intervals over {_questions(measured)}."
    header = ["judge", "aggregation", *(f"N = {n}" for n in measured.sizes)]
    accuracy, gain = [], []
    for rule in measured.rules:
        cells = [measured.cells.get((rule, n)) for n in measured.sizes]
        last = measured.cells.get((rule, largest))
        shown = [_points(cell.accuracy) if cell else _EMPTY for cell in cells]
        accuracy.append([*_names(rule), *shown, _tied(rule, last), str(last.unread) if last else _EMPTY])
        if rule.judge != MEAN:
            shown = [_points(cell.gain, sign=True) if cell else _EMPTY for cell in cells]
            gain.append([*_names(rule), *shown, _points(last.reward) if last else _EMPTY])
    tables = [
        Table(
            f"Accuracy of the pick, responses of {measured.model}",
            [*header, f"tied, N = {largest}", "unread"],
            accuracy,
            f"{note} Of responses that tie, the expected accuracy. Tied: share of the questions where the best "
            "responses differ. Unread: responses without a score of their own; they have the question's mean.",
        ),
        Table(
            f"Gain over the mean sample, responses of {measured.model}",
            [*header, f"reward, N = {largest}"],
            gain,
            f"{note} Gains are paired: differences on the same questions.",
        ),
    ]
    if measured.duels:
        tables.append(_duel_table(measured))
    for title, groups in measured.splits.items():
        rows = [
            [*_names(rule), *(_split(rule, own[rule]) if rule in own else _EMPTY for own in groups.values())]
            for rule in measured.rules
        ]
        counts = [f"{name} ({max(cell.questions for cell in own.values())})" for name, own in groups.items()]
        tables.append(
            Table(
                f"By {title}, N = {largest}, responses of {measured.model}",
                ["judge", "aggregation", *counts],
                rows,
                "Accuracy, and gain over the mean sample with its 95 % interval, in points of 100; in brackets, "
                "questions.",
            )
        )
    return tables


def _duel_table(measured: Measured) -> Table:
    judges, others = ({duel[side] for duel in measured.duels} for side in (0, 1))
    # Columns in the order of the rows, behind them what is no judge.
    others = sorted(others, key=lambda rule: (rule not in judges, measured.rules.index(rule)))
    rows = []
    for first in sorted(judges, key=measured.rules.index):
        found = [measured.duels.get((first, second)) for second in others]
        rows.append([*_names(first), *(_points(own, sign=True) if own else _EMPTY for own in found)])
    return Table(
        f"Gain of a judge over others, N = {measured.largest}, responses of {measured.model}",
        ["judge", "aggregation", *(f"over {second.judge}" for second in others)],
        rows,
        "Points of 100, with 95 % bootstrap intervals: differences of the accuracy on the same questions. A judge of "
        "steps picks by the mean of its scores.",
    )


def average_table(measured: Sequence[Measured]) -> Table | None:
    """Accuracies averaged over judges and models, by aggregation and N: the headings and Figure 3 of ViLBench."""
    sizes = sorted({n for own in measured for n in own.sizes})
    rows = []
    for how in (*LAST_N, PRM):
        means = [_mean(own.cells.get((rule, n)) for own in measured for rule in of_steps(own, how)) for n in sizes]
        if not all(np.isnan(means)):
            rows.append([PAPER_NAMES.get(how, how), *map(_value, [*means, np.nanmean(means)])])
    note = "Mean accuracy over all judges of steps and all models that have N responses, in points of 100."
    return (
        Table("Averages over judges", ["aggregation", *(f"N = {n}" for n in sizes), "mean"], rows, note)
        if rows
        else None
    )


def of_steps(measured: Measured, how: str) -> list[Rule]:
    """The rules of judges of steps with this aggregation."""
    judges = {rule.judge for rule in measured.rules if rule.aggregation == PRM}
    return [rule for rule in measured.rules if rule.aggregation == how and rule.judge in judges]


def correlations(measured: Measured, own_accuracy: Mapping[str, float]) -> dict[str, tuple[Correlation, list[tuple]]]:
    """By aggregation (PRM, ORM): the correlation over judges, and (judge, own accuracy, accuracy of the pick) of each.

    Args:
      measured: one model's responses, at the largest N.
      own_accuracy: greedy accuracy of each judge's model when it answers by itself, by the judge's name.
    """
    out = {}
    for how in (PRM, ORM):
        points = [
            (rule.judge, own_accuracy[rule.judge], measured.cells[rule, measured.largest].accuracy.value)
            for rule in measured.rules
            if rule.aggregation == how and rule.judge in own_accuracy and (rule, measured.largest) in measured.cells
        ]
        if points:
            out[how] = correlate([own for _, own, _ in points], [picked for _, _, picked in points]), points
    return out


def correlation_table(measured: Measured, own_accuracy: Mapping[str, float]) -> Table | None:
    """Of `correlations`."""
    rows = []
    for how, (found, _) in correlations(measured, own_accuracy).items():
        numbers = [f"{number:.3f}" if np.isfinite(number) else _EMPTY for number in (found.r, found.p)]
        rows.append([PAPER_NAMES[how], str(found.pairs), *numbers])
    if not rows:
        return None
    return Table(
        f"A judge's own accuracy against that of its picks, N = {measured.largest}, responses of {measured.model}",
        ["aggregation", "judges", "Pearson's r", "p"],
        rows,
        "Two-sided p-value of the permutation test.",
    )


def write_csv(measured: Sequence[Measured]) -> str:
    """Every cell in a line; shares in [0, 1]."""
    out = io.StringIO()
    estimates = ("accuracy", "gain", "reward")
    writer = csv.writer(out, lineterminator="\n")
    bounds = [f"{name}{end}" for name in estimates for end in ("", "_low", "_high")]
    writer.writerow(["model", "split", "group", "judge", "aggregation", "n", "questions", *bounds, "tied", "unread"])

    def write(model: str, split: str, group: str, rule: Rule, n: int, cell: Cell) -> None:
        numbers = [f"{number:.6g}" for name in estimates for number in getattr(cell, name)]
        tied = f"{cell.tied:.6g}"
        writer.writerow(
            [model, split, group, rule.judge, rule.aggregation, n, cell.questions, *numbers, tied, cell.unread]
        )

    for own in measured:
        for (rule, n), cell in own.cells.items():
            write(own.model, "all", "", rule, n, cell)
        for split, groups in own.splits.items():
            for group, cells in groups.items():
                for rule, cell in cells.items():
                    write(own.model, split, group, rule, own.largest, cell)
    return out.getvalue()


def _names(rule: Rule) -> list[str]:
    return [rule.judge, PAPER_NAMES.get(rule.aggregation, rule.aggregation)]


def _questions(measured: Measured) -> str:
    counts = {n: cell.questions for (rule, n), cell in measured.cells.items() if rule.judge == MEAN}
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} questions"
    return "the questions that have N responses: " + ", ".join(f"{count} at {n}" for n, count in counts.items())


def _tied(rule: Rule, cell: Cell | None) -> str:
    decides = rule.judge not in (MEAN, ORACLE, GREEDY)
    return f"{100 * cell.tied:.1f}" if cell and decides else _EMPTY


def _points(estimate: Estimate, *, sign: bool = False) -> str:
    value, low, high = (f"{100 * number:{'+' if sign else ''}.1f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def _split(rule: Rule, cell: Cell) -> str:
    gain = "" if rule.judge == MEAN else f" ({_points(cell.gain, sign=True)})"
    return f"{_value(cell.accuracy.value)}{gain}"


def _value(share: float) -> str:
    return _EMPTY if np.isnan(share) else f"{100 * share:.1f}"


def _mean(cells) -> float:
    values = [cell.accuracy.value for cell in cells if cell]
    return float(np.mean(values)) if values else float("nan")
