"""The folder of a best-of-N evaluation: tables, page, pictures, and all that they were made of."""

import pathlib
import shutil
from collections.abc import Mapping, Sequence

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.best_of_n.answered import Judged, to_lines
from vlaa_jax.evaluation.best_of_n.measures import Measured
from vlaa_jax.evaluation.best_of_n.pictures import pictures
from vlaa_jax.evaluation.best_of_n.tables import average_table, correlation_table, model_tables, write_csv
from vlaa_jax.evaluation.chart import html_curve, svg_curve
from vlaa_jax.evaluation.page import html_page
from vlaa_jax.evaluation.tables import Table, html_table, markdown_table

RESPONSES = "responses.jsonl"


def check_folder(folder: pathlib.Path) -> None:
    """Raises `InputError` where the folder could not be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out-folder: {folder} exists already and is not an empty folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"--out-folder: no folder {folder.absolute().parent}")


def all_tables(measured: Sequence[Measured], own_accuracy: Mapping[str, float], more: Sequence[Table]) -> list[Table]:
    """In the order in which they are to be read; `more` of them at the end."""
    found = [table for own in measured for table in model_tables(own)]
    found += [average_table(measured), *(correlation_table(own, own_accuracy) for own in measured), *more]
    return [table for table in found if table is not None]


def write_folder(
    folder: pathlib.Path,
    *,
    title: str,
    summary: Sequence[str],
    judged: Sequence[Judged],
    measured: Sequence[Measured],
    tables: Sequence[Table],
) -> None:
    """Writes the folder, whole or not at all.

    Args:
      folder: as `check_folder` wants it.
      title: of page and tables.
      summary: what was done, in a few sentences.
      judged: responses, verdicts and scores: they become `responses.jsonl`.
      measured: figures of each, for CSV and pictures.
      tables: of `all_tables`.

    Raises:
      InputError: as `check_folder`.
    """
    check_folder(folder)
    drawn = {
        (f"{number}-{name}" if len(measured) > 1 else name): curve
        for number, own in enumerate(measured, 1)
        for name, curve in pictures(own).items()
    }
    charts = f"<div class='curves'>{''.join(html_curve(curve) for curve in drawn.values())}</div>"
    sections = {"Tables": "".join(map(html_table, tables)), "Pictures": charts if drawn else ""}
    page = html_page(title, summary, {name: body for name, body in sections.items() if body})
    lines = [line for own in judged for line in to_lines(own)]
    staging = folder.absolute().with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "pictures").mkdir(parents=True)
    text = "\n\n".join([f"# {title}", *summary, *map(markdown_table, tables)])
    files = {
        "tables.md": f"{text}\n",
        "tables.csv": write_csv(measured),
        "page.html": page,
        RESPONSES: "".join(f"{line}\n" for line in lines),
        **{f"pictures/{name}.svg": svg_curve(curve) for name, curve in drawn.items()},
    }
    for name, content in files.items():
        (staging / name).write_text(content, encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    staging.rename(folder)
