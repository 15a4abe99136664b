"""The folder of a best-of-N evaluation: responses and scores as they come, then tables, page and pictures."""

import pathlib
from collections.abc import Mapping, Sequence

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.best_of_n.answered import Judged, to_lines
from vlaa_jax.evaluation.best_of_n.measures import Measured
from vlaa_jax.evaluation.best_of_n.pictures import pictures
from vlaa_jax.evaluation.best_of_n.tables import average_table, correlation_table, model_tables, write_csv
from vlaa_jax.evaluation.chart import html_curve, svg_curve
from vlaa_jax.evaluation.page import html_page
from vlaa_jax.evaluation.tables import Table, html_table, markdown_table
from vlaa_jax.storage import replace_file

RESPONSES = "responses.jsonl"


def check_folder(folder: pathlib.Path) -> None:
    """Raises `InputError` where the folder could not be written; only an empty one may exist already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out-folder: {folder} exists already: nothing is overwritten")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"--out-folder: no folder {folder.absolute().parent}")


def save_responses(folder: pathlib.Path, judged: Sequence[Judged]) -> None:
    """Writes what is known so far, so that a judge that fails costs neither samples nor other judges' scores."""
    folder.mkdir(exist_ok=True)
    replace_file(folder / RESPONSES, "".join(f"{line}\n" for own in judged for line in to_lines(own)).encode())


def all_tables(measured: Sequence[Measured], own_accuracy: Mapping[str, float], more: Sequence[Table]) -> list[Table]:
    """In the order in which they are to be read; `more` of them at the end."""
    found = [table for own in measured for table in model_tables(own)]
    found += [average_table(measured), *(correlation_table(own, own_accuracy) for own in measured), *more]
    return [table for table in found if table is not None]


def write_report(
    folder: pathlib.Path,
    *,
    title: str,
    summary: Sequence[str],
    measured: Sequence[Measured],
    tables: Sequence[Table],
    own_accuracy: Mapping[str, float],
) -> None:
    """Writes `tables.md`, `tables.csv`, `page.html` and the pictures beside the responses. Equal input, equal bytes.

    Args:
      folder: exists.
      title: of page and tables.
      summary: what was done, in a few sentences.
      measured: figures of each model's responses.
      tables: of `all_tables`.
      own_accuracy: see `tables.correlations`.
    """
    drawn = {
        (f"{number}-{name}" if len(measured) > 1 else name): curve
        for number, own in enumerate(measured, 1)
        for name, curve in pictures(own, own_accuracy).items()
    }
    charts = f"<div class='curves'>{''.join(html_curve(curve) for curve in drawn.values())}</div>" if drawn else ""
    sections = {"Tables": "".join(map(html_table, tables)), "Pictures": charts}
    (folder / "pictures").mkdir()
    for name, curve in drawn.items():
        replace_file(folder / "pictures" / f"{name}.svg", svg_curve(curve).encode())
    text = "\n\n".join([f"# {title}", *summary, *map(markdown_table, tables)])
    replace_file(folder / "tables.md", f"{text}\n".encode())
    replace_file(folder / "tables.csv", write_csv(measured).encode())
    page = html_page(title, summary, {name: body for name, body in sections.items() if body})
    replace_file(folder / "page.html", page.encode())
