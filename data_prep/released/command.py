"""`python -m data_prep import`: the released files of VLAA-Thinking and of ViLReward-73K as shards.

The file's columns say which of the three it is. Each record is checked as training will read it. What can be repaired
is repaired and counted, what cannot is left out, counted and listed in `report.json` beside the shards.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import tqdm

from data_prep import citations
from data_prep.parallel import in_order
from data_prep.released import folders, reading, reward, thinking
from data_prep.released.report import MISSING, Outcome, Report
from data_prep.released.survey import survey
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import appearing, finish, write_split
from vlaa_jax.rewards import MathPool

VERSION = "1.0.0"
REPORT = "report.json"
REPEATED_ID = "repeated id, numbered"

_SPLITS = {"sft": "sft", "rl": "rl", "reward": "train"}


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser(
        "import",
        help="released files: VLAA-Thinking-SFT-126K.json, VLAA-Thinking-GRPO-25K.json, vilreward_73k_train.json",
    )
    parser.add_argument("--file", required=True, help="released file")
    parser.add_argument("--images", required=True, help="folder that its image paths are relative to")
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--split", help="name of the split, default sft, rl or train by the file")
    parser.add_argument(
        "--max-skipped",
        type=float,
        default=0.02,
        help="largest share of a source's records that may be left out, default %(default)s",
    )
    parser.add_argument(
        "--without-missing-images", action="store_true", help="leave records out whose picture is not there"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    print(
        import_released(
            arguments.file,
            arguments.images,
            arguments.out,
            split=arguments.split,
            max_skipped=arguments.max_skipped,
            without_missing_images=arguments.without_missing_images,
        )
    )


def import_released(
    file: str | os.PathLike[str],
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    max_skipped: float = 0.02,
    without_missing_images: bool = False,
) -> str:
    """Writes a released file as shards with a report beside them; nothing is written if too much would be left out.

    Args:
      file: the released file.
      images: folder that its image paths are relative to.
      out: directory to make.
      split: name of the split; by the kind of file when not given.
      max_skipped: largest share of a source's entries that may be left out, 0 to 1.
      without_missing_images: leaves entries out whose picture is not there; they do not count as left out.

    Returns:
      The report as a table.

    Raises:
      InputError: `out` exists, no such file or folder, none of the released files, pictures are missing, or too much
        would be left out.
    """
    path, folder = pathlib.Path(file), pathlib.Path(images)
    if not path.is_file():
        raise InputError(f"--file: {path} is not a file")
    if not folder.is_dir():
        raise InputError(f"--images: {folder} is not a folder")
    if split is not None and not split.isidentifier():
        raise InputError(f"--split: {split!r} is no name, expected letters, digits and underscores")
    if not 0 <= max_skipped <= 1:
        raise InputError(f"--max-skipped is {max_skipped:g}: expected a share from 0 to 1")
    with appearing(pathlib.Path(out)) as directory, contextlib.closing(MathPool(os.cpu_count() or 1)) as pool:
        file_kind = reading.recognise(path)
        split = split or _SPLITS[file_kind]
        is_reward = file_kind == "reward"
        converter = reward.Converter(folder) if is_reward else thinking.Converter(file_kind, folder, {}, pool)
        _say(f"looking through {path}")
        found = survey(path, converter)
        if not without_missing_images:
            folders.check_missing(found.missing, found.pictures, max_skipped)
        if not is_reward:
            converter = dataclasses.replace(converter, readings=found.readings)
        report = Report(max_skipped, allowed=(MISSING,) if without_missing_images else ())
        _say(f"reading {found.entries} records and their pictures")
        records = _records(path, converter, report, found.entries)
        kind = ProcessRecord if is_reward else Record
        shards = write_split(directory, split, records, kind=kind)
        finish(
            directory,
            shards,
            kind=kind,
            name="vilreward" if is_reward else "vlaa_thinking",
            version=VERSION,
            description=f"Imported from {path.name}.",
            citation=citations.VILBENCH if is_reward else citations.VLAA_THINKING,
        )
        content: dict[str, Any] = {"file": path.name, "split": split, **report.to_json()}
        content["boxes"] = {source: dataclasses.asdict(reading) for source, reading in found.readings.items()}
        content["missing_pictures"] = found.missing
        (directory / REPORT).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return report.table()


def _say(line: str) -> None:
    """For a log, which gets lines in place of bars."""
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _records(
    path: pathlib.Path, converter: thinking.Converter | reward.Converter, report: Report, total: int
) -> Iterator[Record | ProcessRecord]:
    """The records in the file's order, with ids that occur once; all entries go into the report.

    Raises:
      InputError: at the end, if too much was left out.
    """
    from vlaa_jax.processing import images  # noqa: F401 -- threads that import it at once wait for each other

    outcomes = in_order(converter, reading.entries(path), 2 * (os.cpu_count() or 1))
    taken: dict[str, int] = {}
    for outcome in tqdm.tqdm(outcomes, total=total, desc="importing", unit=" records", leave=False, disable=None):
        if outcome.record is not None:
            outcome = _numbered(outcome, taken)
        report.add(outcome)
        if outcome.record is not None:
            yield outcome.record
    report.check()


def _numbered(outcome: Outcome, taken: dict[str, int]) -> Outcome:
    """The outcome with an id that occurs once: `ID#2` for the second; the file's own id is kept in the metadata."""
    identity = outcome.id
    while identity in taken:
        taken[outcome.id] += 1
        identity = f"{outcome.id}#{taken[outcome.id]}"
    taken[identity] = 1
    if identity == outcome.id:
        return outcome
    record = dataclasses.replace(outcome.record, id=identity)
    if isinstance(record, Record):
        record = dataclasses.replace(record, metadata=record.metadata | {"id": outcome.id})
    return dataclasses.replace(outcome, id=identity, record=record, repairs=(*outcome.repairs, REPEATED_ID))
