"""The report of a finished run: before and after by verifier, curves, transcripts drawn by seed."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlaa_jax.evaluation.bootstrap import interval, paired_interval
from vlaa_jax.evaluation.chart import Curve, Series
from vlaa_jax.evaluation.page import Box
from vlaa_jax.evaluation.report import Transcript, write_report
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.processing.records import VERIFIERS
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.training.run_folder import RunFolder

_TRANSCRIPTS = 24
_TRANSCRIPT_SEED = 0
_SMOOTHED = 10  # steps whose mean is one point of a training curve

# Curves of a reward model.
_JUDGEMENT = {
    "F1, first step with value < 0.5": "evaluation/first_below_half/f1",
    "its AUROC": "evaluation/first_below_half/auroc",
    "F1, first wrong step": "evaluation/first_wrong/f1",
    "AUROC of that": "evaluation/first_wrong/auroc",
    "pairs in order": "evaluation/pairs_in_order",
}
_ERRORS = {"mean squared": "evaluation/mse", "Brier": "evaluation/brier", "calibration": "evaluation/ece"}

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a held-out evaluation says of a run.

    Attributes:
      summary: the result in a few sentences.
      tables: in order; the first is the one to read.
      transcripts: some answers before and after.
      note: how the transcripts were drawn.
    """

    summary: Sequence[str] = ()
    tables: Sequence[Table] = ()
    transcripts: Sequence[Transcript] = ()
    note: str = ""


def write_run_report(folder: RunFolder, findings: Findings) -> pathlib.Path:
    """Writes `report.html` from what the run folder holds.

    Args:
      folder: of a finished run.
      findings: of its held-out evaluation; empty ones leave tables and transcripts out.
    """
    header = folder.header()
    write_report(
        folder.report_path,
        title=f"{header['config'].get('task', 'run')} {folder.directory.name}",
        summary_lines=findings.summary,
        tables=findings.tables,
        curves=_curves(folder.metrics()),
        transcripts=findings.transcripts,
        transcripts_note=findings.note,
        details={"run.json": json.dumps(header, indent=1)},
    )
    return folder.report_path


def answer_findings(directory: pathlib.Path, source: RecordSource) -> Findings:
    """Of a policy's answers.

    Args:
      directory: of the run.
      source: the evaluation records, for the pictures.
    """
    tables = before_after_tables(directory) + _more_tables(directory / "evaluation" / "controls.json")
    note = f"{_TRANSCRIPTS} held-out questions drawn by seed, greedy answers before and after."
    return Findings([_headline(directory)], tables, _transcripts(directory, source), note)


def read_results(directory: pathlib.Path, name: str) -> Rows:
    """An evaluation file of a run: `before-greedy`, `after-sampled`, ..."""
    path = directory / "evaluation" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def before_after_tables(directory: pathlib.Path) -> list[Table]:
    """Rewards before and after by verifier and by kind of question, with paired 95 % bootstrap intervals."""
    results = {
        (when, mode): read_results(directory, f"{when}-{mode}")
        for when in ("before", "after")
        for mode in ("greedy", "sampled")
    }
    count = len(results["before", "greedy"])
    kinds = sorted({row["kind"] for row in results["before", "greedy"]})
    return [
        _table("Held-out reward", "verifier", "verifier", ("all", *VERIFIERS), results, count),
        _table("Held-out reward by kind of question", "kind", "kind", kinds, results, count),
    ]


def write_comparison(folders: Sequence[RunFolder], path: pathlib.Path) -> list[Table]:
    """Writes a page of several runs: their held-out curves over one another, and their changes.

    Args:
      folders: of runs, at most `chart.COLOURS`.
      path: of the page.

    Returns:
      The tables of the page; none where a run has no evaluation before and after.
    """
    names = [folder.directory.name for folder in folders]
    rows = [folder.metrics() for folder in folders]
    curves = []
    for suffix in ("", *(f"/{verifier}" for verifier in VERIFIERS)):
        for title, key in (("held-out reward, greedy", "evaluation/reward"), ("training reward", "reward")):
            series = {}
            for name, run in zip(names, rows, strict=True):
                points = [(row["step"], row[key + suffix]) for row in run if key + suffix in row]
                if points:
                    series[name] = _smoothed(points)
            if series:
                curves.append(Curve(f"{title}: {suffix[1:] or 'all'}", series, limits=(0, 1)))
    tables = []
    if all((folder.directory / "evaluation" / "after-sampled.jsonl").exists() for folder in folders):
        tables = [_changes(folders, mode) for mode in ("sampled", "greedy")]
    write_report(path, title="Runs compared", summary_lines=[], tables=tables, curves=curves)
    return tables


def _changes(folders: Sequence[RunFolder], mode: str) -> Table:
    """A row a run: before, after and the change of all, the change of each verifier."""
    rows = []
    for folder in folders:
        before, after = (read_results(folder.directory, f"{when}-{mode}") for when in ("before", "after"))
        cells = [folder.directory.name]
        for verifier in ("all", *VERIFIERS):
            chosen = [i for i, row in enumerate(before) if verifier in ("all", row["verifier"])]
            old, new = _scores(before, chosen), _scores(after, chosen)
            if verifier == "all":
                cells += [f"{100 * old.mean():.1f}", f"{100 * new.mean():.1f}"]
            cells.append(_signed(paired_interval(old, new)) if chosen else "-")
        rows.append(cells)
    note = "Points of 100; changes with paired 95 % bootstrap intervals."
    return Table(f"Held-out reward, {mode}", ["run", "before", "after", "change", *VERIFIERS], rows, note)


def _more_tables(path: pathlib.Path) -> list[Table]:
    """Tables that another tool measured on this run and left as JSON."""
    return [Table(**fields) for fields in json.loads(path.read_text())] if path.exists() else []


def _table(title: str, column: str, field: str, groups: Sequence[str], results: dict, count: int) -> Table:
    rows = []
    for group in groups:
        chosen = [i for i, row in enumerate(results["before", "greedy"]) if group in ("all", row[field])]
        if not chosen:
            continue
        cells = [group]
        for mode in ("sampled", "greedy"):
            before, after = (_scores(results[when, mode], chosen) for when in ("before", "after"))
            change = paired_interval(before, after)
            cells += [f"{100 * before.mean():.1f}", f"{100 * after.mean():.1f}", _signed(change)]
        valid = [_valid(results[when, "sampled"], chosen) for when in ("before", "after")]
        cells += [f"{100 * valid[0].mean():.1f}", f"{100 * valid[1].mean():.1f}"]
        given = (
            paired_interval(
                *(_scores(results[when, "sampled"], chosen) for when in ("before", "after")),
                before_weights=valid[0],
                after_weights=valid[1],
            )
            if valid[0].any() and valid[1].any()
            else None
        )
        rows.append([*cells, _signed(given) if given else "-"])
    header = [
        column,
        "sampled before",
        "after",
        "change",
        "greedy before",
        "after",
        "change",
        "valid before",
        "after",
        "reward if valid",
    ]
    note = (
        f"{count} held-out questions, points of 100. Changes with paired 95 % bootstrap intervals; valid and reward if "
        "valid are of the sampled answers."
    )
    return Table(title, header, rows, note)


def _scores(rows: Rows, chosen: Sequence[int]) -> np.ndarray:
    """`[records, samples]`."""
    return np.asarray([[answer["score"] for answer in rows[i]["answers"]] for i in chosen], np.float64)


def _valid(rows: Rows, chosen: Sequence[int]) -> np.ndarray:
    return np.asarray([[answer["valid"] for answer in rows[i]["answers"]] for i in chosen], np.float64)


def _signed(estimate) -> str:
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def _headline(directory: pathlib.Path) -> str:
    parts = []
    for mode in ("sampled", "greedy"):
        before, after = (read_results(directory, f"{when}-{mode}") for when in ("before", "after"))
        everything = range(len(before))
        old, new = (interval(_scores(rows, everything)) for rows in (before, after))
        parts.append(f"{100 * old.value:.1f} to {100 * new.value:.1f} {mode}")
    return f"Held-out reward went from {' and from '.join(parts)} (points of 100)."


def _curves(rows: Rows) -> list[Curve]:
    steps = [row for row in rows if row["step"] > 0]
    curves = []

    def add(title: str, names: dict[str, str], rows: Rows, smooth: bool, **options: Any) -> None:
        series = {}
        for label, key in names.items():
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                series[label] = _smoothed(points) if smooth else Series(*map(list, zip(*points, strict=True)))
        if series:
            curves.append(Curve(title, series, **options))

    def by_verifier(key: str) -> dict[str, str]:
        return {name: f"{key}/{name}" for name in VERIFIERS}

    add("held-out reward", {"all": "evaluation/reward", **by_verifier("evaluation/reward")}, rows, False, limits=(0, 1))
    add("training reward", {"all": "reward", **by_verifier("reward")}, steps, True, limits=(0, 1))
    add("valid and truncated", {"valid": "valid", "truncated": "truncated"}, steps, True, limits=(0, 1))
    add("completion length", {"mean": "length"}, steps, True, unit="tokens")
    add("written in steps", {"share": "in_steps"}, steps, True, limits=(0, 1))
    add("held-out step judgement", _JUDGEMENT, rows, False, limits=(0, 1))
    add("held-out errors of step scores", _ERRORS, rows, False)
    add("held-out loss", {"loss": "evaluation/loss"}, rows, False)
    add("pairs in order", {"share": "update/pairs_in_order"}, steps, True, limits=(0, 1))
    add("loss", {"loss": "loss"}, steps, True)
    add("KL to the reference", {"kl": "kl"}, steps, True, unit="nats a token")
    add("entropy", {"entropy": "update/entropy"}, steps, True, unit="nats a token")
    add("gradient norm", {"before clipping": "gradient_norm"}, steps, True)
    add(
        "seconds a step",
        {"whole": "seconds/step", "rollout": "seconds/rollout", "update": "seconds/update"},
        steps,
        True,
    )
    return curves


def _smoothed(points: list[tuple[int, float]]) -> Series:
    """Means of neighbouring steps with their lowest and highest value."""
    size = max(1, min(_SMOOTHED, len(points) // 8))
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    values = [[value for _, value in part] for part in parts]
    means = [float(np.mean(part)) for part in values]
    return Series(
        [part[-1][0] for part in parts], means, [min(part) for part in values], [max(part) for part in values]
    )


def _transcripts(directory: pathlib.Path, source: RecordSource) -> list[Transcript]:
    before, after = (read_results(directory, f"{when}-greedy") for when in ("before", "after"))
    places = {source[i].id: i for i in range(len(source))}
    count = min(_TRANSCRIPTS, len(before))
    chosen = np.random.default_rng(_TRANSCRIPT_SEED).choice(len(before), count, replace=False)
    out = []
    for i in sorted(chosen.tolist()):
        old, new = before[i]["answers"][0], after[i]["answers"][0]
        record = source[places[before[i]["id"]]]
        boxes = []
        if record.verifier == "iou" and record.box_space == "pixels":
            for label, text in (("gold", record.answer), ("before", old["extracted"]), ("after", new["extracted"])):
                numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", str(text or ""))]
                if len(numbers) == 4:
                    boxes.append(Box(label, numbers, int(record.metadata.get("box_image", 0))))
        out.append(
            Transcript(
                id=record.id,
                kind=before[i]["kind"],
                question=record.question,
                gold=record.answer,
                images=record.images,
                before=old["completion"],
                after=new["completion"],
                reward_before=old["score"],
                reward_after=new["score"],
                boxes=boxes,
            )
        )
    return out
