"""One table, three ways to show it: a terminal, a README, a report."""

import dataclasses
import html
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[+\-−–±]?\.?\d.*|[-–—]?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts in rows and columns; the caller has formatted the numbers.

    Attributes:
      title: what the rows are.
      header: names of the columns.
      rows: as many cells in each as `header` has.
      note: a sentence below: how many records, which interval.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"table {self.title!r}: {len(row)} cells in the row {list(row)!r}, {len(self.header)} columns"
                )

    def numeric(self) -> list[bool]:
        """For every column whether all its cells begin as numbers (or are empty, or a dash): it is set to the right."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        return [bool(column) and all(_NUMBER.fullmatch(str(cell).strip()) for cell in column) for column in columns]


def text_table(table: Table) -> str:
    """For a terminal: aligned columns, title above, note below."""
    rows = [[str(cell) for cell in row] for row in [table.header, *table.rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, table.numeric(), strict=True)
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(part for part in [table.title, *lines, table.note] if part)


def markdown_table(table: Table) -> str:
    """For a README: a GitHub table, title above, note below."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = ["---:" if right else "---" for right in table.numeric()]
    lines = "\n".join([line(table.header), line(rule), *map(line, table.rows)])
    title = f"**{table.title}**" if table.title else ""
    return "\n\n".join(part for part in [title, lines, table.note] if part)


def html_table(table: Table) -> str:
    """For a page: a figure whose table scrolls sideways where it does not fit."""
    kinds = [" class='number'" if right else "" for right in table.numeric()]

    def line(cells: Sequence[str], tag: str) -> str:
        parts = (f"<{tag}{kind}>{html.escape(str(cell))}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line(row, "td") for row in table.rows)
    note = f"<p class='note'>{html.escape(table.note)}</p>" if table.note else ""
    return (
        f"<section class='table'><h3>{html.escape(table.title)}</h3><div class='scroll' tabindex='0'>"
        f"<table><thead>{line(table.header, 'th')}</thead><tbody>{body}</tbody></table></div>{note}</section>"
    )
