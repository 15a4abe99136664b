"""`python -m data_prep show`: records as they are, on the terminal and on one page that opens offline."""

import argparse
import pathlib
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.progress import progress
from data_prep.show_page import page, visible
from vlaa_jax.errors import InputError, check_output
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import RecordSource, open_split

_CLIPPED = 300  # characters of one text on the terminal
_BAR = 20  # characters of a value's bar


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser("show", help="print records, and write a page of them with their pictures")
    parser.add_argument("--data", required=True, help="DIRECTORY:SPLIT, examples or judged solutions")
    parser.add_argument("--records", type=int, default=8, help="how many to draw, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, default %(default)s")
    parser.add_argument("--ids", help="these records, comma-separated, in place of a draw")
    parser.add_argument("--html", type=pathlib.Path, help="page to write; opens offline")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    check_output("--html", arguments.html)
    source = open_split(arguments.data)
    if arguments.ids is None:
        positions = draw(len(source), arguments.records, arguments.seed)
        which = f"{len(positions)} of {len(source):,} records, drawn with the seed {arguments.seed}."
    else:
        positions = find(source, [name.strip() for name in arguments.ids.split(",")])
        which = f"{len(positions)} of {len(source):,} records, chosen by id."
    records = [source[position] for position in positions]
    values = [_values(source, position) for position in positions] if isinstance(records[0], ProcessRecord) else []
    for position, record in zip(positions, records, strict=True):
        print(f"record {position}\n{_as_text(record)}\n")
    print(which)
    if arguments.html is not None:
        written = page(
            arguments.data, [which, f"Fingerprint of the split: {source.fingerprint[:16]}."], records, values
        )
        arguments.html.write_text(written, encoding="utf-8")
        print(f"{arguments.html}: {len(written) / 1000:,.0f} kB")


def draw(total: int, count: int, seed: int) -> list[int]:
    """Places of `count` records, or of all where there are no more, in their order.

    Raises:
      InputError: `count` is below 1, or the seed is negative.
    """
    if count < 1 or seed < 0:
        raise InputError(f"--records={count} --seed={seed}: expected 1 or more records and a seed of 0 or more")
    return sorted(np.random.default_rng(seed).choice(total, min(count, total), replace=False).tolist())


def find(source: RecordSource, ids: Sequence[str]) -> list[int]:
    """Places of the records with these ids, in the order of the ids.

    Raises:
      InputError: no record has one of them.
    """
    places = dict.fromkeys(ids, -1)
    missing = len(places)
    for position in progress(range(len(source)), "looking for the ids"):
        name = source[position].id
        if places.get(name) == -1:
            places[name] = position
            missing -= 1
            if not missing:
                break
    if missing:
        raise InputError(f"--ids: {source.location} has no record {next(i for i in places if places[i] < 0)!r}")
    return list(places.values())


def _values(source: RecordSource[ProcessRecord], position: int) -> dict[str, float]:
    """Values of the solutions of a record's question, by their stripped text; they stand side by side."""
    question, values = source[position].id.rpartition("/")[0], {}
    if not question:
        return values
    for places in (range(position, -1, -1), range(position + 1, len(source))):
        for place in places:
            record = source[place]
            if record.id.rpartition("/")[0] != question:
                break
            values[record.process.strip()] = record.value
    return values


def _as_text(record: Record | ProcessRecord) -> str:
    """A line for every field that says something."""
    rows: dict[str, Any] = {"id": record.id, "images": len(record.images), "question": record.question}
    if isinstance(record, ProcessRecord):
        filled = round(_BAR * min(max(record.value, 0), 1))
        rows |= {"process": record.process, "value": f"{'█' * filled}{'░' * (_BAR - filled)} {record.value:.2f}"}
    else:
        letters = zip(string.ascii_uppercase, record.choices, strict=False)
        rows |= {
            "choices": "; ".join(f"{letter}. {text}" for letter, text in letters),
            "answer": record.answer,
            "verifier": f"{record.verifier} {record.box_space}",
            "source": record.source,
            "trace": record.trace,
        } | {f"metadata.{name}": value for name, value in record.metadata.items()}
    lines = {_line(name): _line(value) for name, value in rows.items() if value not in ("", None)}
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in lines.items())


def _line(value: Any) -> str:
    """One line that cannot move the cursor or turn the direction of what follows."""
    text = visible(" ".join(str(value).split()))
    return text if len(text) <= _CLIPPED else f"{text[:_CLIPPED]}… ({len(text):,} characters)"
