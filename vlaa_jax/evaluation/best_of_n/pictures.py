"""The figures of ViLBench from our numbers: accuracy against N, the last n scores, dominance and own accuracy."""

import math
from collections.abc import Iterator, Mapping, Sequence

from vlaa_jax.evaluation.best_of_n.measures import Cell, Measured
from vlaa_jax.evaluation.best_of_n.selection import GREEDY, MAJORITY, MEAN, ORACLE, Rule
from vlaa_jax.evaluation.best_of_n.tables import PAPER_NAMES, correlations, of_steps
from vlaa_jax.evaluation.chart import COLOURS, Curve, Series
from vlaa_jax.evaluation.judges.aggregate import LAST_N, ORM, PRM

_BESIDE = (MEAN, MAJORITY, ORACLE)  # lines of every picture over N
_UNIT = "accuracy of the pick, %"


def pictures(measured: Measured, own_accuracy: Mapping[str, float]) -> dict[str, Curve]:
    """Name of a file -> picture, for one model's responses. More judges than can be told apart take several.

    Args:
      measured: figures of the responses.
      own_accuracy: see `tables.correlations`.
    """
    found: dict[str, Curve] = {}
    for how, title in ((PRM, "mean score (PRM)"), (ORM, "last score (ORM)")):
        chosen = [rule for rule in measured.rules if rule.aggregation == how]
        for name, part in _parts(f"n-{how}", chosen, COLOURS - len(_BESIDE)):
            found[name] = _against_n(measured, [*(Rule(name) for name in _BESIDE), *part], title)
    judges = [rule.judge for rule in of_steps(measured, PRM)]
    for name, part in _parts("last-n", judges, COLOURS):
        found[name] = _against_last_n(measured, part)
    if "dominance" in measured.splits:
        found["dominance"] = _by_dominance(measured)
    found["own-accuracy"] = _against_own_accuracy(measured, own_accuracy)
    return {name: curve for name, curve in found.items() if curve.series}


def _parts(name: str, items: Sequence, most: int) -> Iterator[tuple[str, Sequence]]:
    for number, at in enumerate(range(0, len(items), most), 1):
        yield (name if len(items) <= most else f"{name}-{number}"), items[at : at + most]


def _against_n(measured: Measured, rules: Sequence[Rule], title: str) -> Curve:
    sizes = [n for n in measured.sizes if (Rule(MEAN), n) in measured.cells]
    series = {
        rule.judge: _line([measured.cells[rule, n] for n in sizes], intervals=bool(rule.aggregation)) for rule in rules
    }
    labels = tuple(map(str, sizes))
    return Curve(f"Best of N by the {title}", series, _UNIT, axis="N", labels=labels)


def _against_last_n(measured: Measured, judges: Sequence[str]) -> Curve:
    names = (*LAST_N, PRM)
    series = {
        judge: _line([measured.cells[Rule(judge, how), measured.largest] for how in names], intervals=False)
        for judge in judges
    }
    labels = (*map(str, LAST_N.values()), "all")
    axis = "last scores that are averaged (1: ORM, all: PRM)"
    return Curve(f"Best of {measured.largest} by the last scores", series, _UNIT, axis=axis, labels=labels)


def _by_dominance(measured: Measured) -> Curve:
    groups = measured.splits["dominance"]
    series = {}
    for name in (GREEDY, MEAN):
        if all(Rule(name) in cells for cells in groups.values()):
            series[name] = _line([cells[Rule(name)] for cells in groups.values()], intervals=False)
    for how, name in ((ORM, "ORM, mean of the judges"), (PRM, "PRM, mean of the judges")):
        rules = of_steps(measured, how)
        if rules:
            means = [sum(cells[rule].accuracy.value for rule in rules) / len(rules) for cells in groups.values()]
            series[name] = Series(range(len(means)), [100 * mean for mean in means])
    axis = "what the question can be answered from"
    return Curve(f"Best of {measured.largest} by dominance", series, _UNIT, axis=axis, labels=tuple(groups))


def _against_own_accuracy(measured: Measured, own_accuracy: Mapping[str, float]) -> Curve:
    series = {}
    for how, (found, points) in correlations(measured, own_accuracy).items():
        judges, own, picked = zip(*points, strict=True)
        r = f", r = {found.r:.2f}, p = {found.p:.2f}" if math.isfinite(found.r) else ""
        percent = ([100 * number for number in numbers] for numbers in (own, picked))
        series[PAPER_NAMES[how] + r] = Series(*percent, names=judges)
    title = f"Best of {measured.largest} by the judge's own accuracy"
    return Curve(title, series, _UNIT, axis="own accuracy, %")


def _line(cells: Sequence[Cell], *, intervals: bool) -> Series:
    values, lows, highs = zip(*([100 * number for number in cell.accuracy] for cell in cells), strict=True)
    return Series(range(len(cells)), values, *((lows, highs) if intervals else ()))
