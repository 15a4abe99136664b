"""`python -m data_prep stats`: what shards hold, beside what is published (VLAA-Thinking table 1, ViLBench table 3).

Splits `sft` and `rl` are compared with the table's columns of that name; a data set's splits and those of several data
sets are compared with each other by their pictures.
"""

import argparse
import collections
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tqdm

from data_prep.parallel import in_order
from data_prep.released.reward import PUBLISHED_REWARD, source_of_id
from data_prep.sources.published import PUBLISHED
from vlaa_jax.errors import InputError, check_output
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import RecordSource, open_split, read_splits


@dataclasses.dataclass
class SourceStats:
    """One source in one split.

    Attributes:
      records: number of them.
      published: number in the paper's table; None where it has none.
      with_trace: records with a trace.
      median_words: of the traces; 0 without any.
    """

    records: int = 0
    published: int | None = None
    with_trace: int = 0
    median_words: float = 0

    @property
    def difference(self) -> int | None:
        """More than published."""
        return None if self.published is None else self.records - self.published


@dataclasses.dataclass
class SplitStats:
    """One split of examples.

    Attributes:
      location: as `RecordSource` takes it.
      sources: by name; those of the paper first, also where there is no record.
      verifiers: records by verifier.
      pictures: different pictures, by the sha256 of their bytes.
      repeated_ids: records whose id in the released file an earlier one had.
      repeated_questions: records whose pictures and question an earlier one had.
      words: of the traces, `least, median, mean, p95, most`; empty without any.
    """

    location: str
    sources: dict[str, SourceStats]
    verifiers: dict[str, int]
    pictures: int
    repeated_ids: int
    repeated_questions: int
    words: dict[str, float]


@dataclasses.dataclass
class RewardStats:
    """One split of process records.

    Attributes:
      location: as `RecordSource` takes it.
      questions, records: by source, as counted and as published (None for a source of which nothing is).
    """

    location: str
    questions: dict[str, tuple[int, int | None]]
    records: dict[str, tuple[int, int | None]]


@dataclasses.dataclass
class Shared:
    """Pictures that two splits have in common.

    Attributes:
      first, second: the splits.
      pictures: different ones in both.
      records: of either split, that show one of them.
    """

    first: str
    second: str
    pictures: int
    records: tuple[int, int]


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser("stats", help="counts of shards beside the published ones")
    parser.add_argument(
        "--data", action="append", required=True, help="DIRECTORY or DIRECTORY:SPLIT; may be given several times"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    check_output("--json", arguments.json)
    splits, shared = gather(arguments.data)
    print(table(splits, shared))
    if arguments.json:
        content = {"splits": [_to_json(split) for split in splits], "shared": [_to_json(pair) for pair in shared]}
        arguments.json.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def gather(data: Sequence[str]) -> tuple[list[SplitStats | RewardStats], list[Shared]]:
    """Reads every record once.

    Args:
      data: `DIRECTORY` for all its splits, or `DIRECTORY:SPLIT`.

    Raises:
      InputError: a data set is missing or damaged, or a split is named twice.
    """
    named = [location for entry in data for location in _locations(entry)]
    if repeated := [location for location, count in collections.Counter(named).items() if count > 1]:
        raise InputError(f"--data: {repeated[0]} is named twice")
    splits: list[SplitStats | RewardStats] = []
    seen: dict[str, collections.Counter[bytes]] = {}
    for location in named:
        source = open_split(location)
        if isinstance(source[0], ProcessRecord):
            splits.append(_reward_stats(source))
        else:
            found, seen[location] = _split_stats(source)
            splits.append(found)
    shared = []
    for first, second in itertools.combinations(seen, 2):
        both = seen[first].keys() & seen[second].keys()
        records = tuple(sum(seen[split][picture] for picture in both) for split in (first, second))
        shared.append(Shared(first, second, len(both), records))
    return splits, shared


def _locations(entry: str) -> list[str]:
    """`DIRECTORY:SPLIT` of each split of a directory; that of one itself."""
    _, colon, split = entry.rpartition(":")
    if colon and "/" not in split:
        return [entry]
    return [f"{entry}:{name}" for name in sorted(read_splits(entry))]


def _split_stats(source: RecordSource[Record]) -> tuple[SplitStats, collections.Counter[bytes]]:
    """The numbers of a split, and how many of its records show each picture, by sha256."""
    column = source.split if source.split in ("sft", "rl") else None
    published = {name: getattr(entry, column) or 0 for name, entry in PUBLISHED.items()} if column else {}
    sources = {name: SourceStats(published=count) for name, count in published.items()}
    words: dict[str, list[int]] = collections.defaultdict(list)
    verifiers, pictures = collections.Counter(), collections.Counter()
    ids, questions = collections.Counter(), collections.Counter()
    for record, hashes in _records(source, lambda record: (record, _hashes(record))):
        own = sources.setdefault(record.source, SourceStats())
        own.records += 1
        if record.trace:
            own.with_trace += 1
            words[record.source].append(len(record.trace.split()))
        verifiers[record.verifier] += 1
        pictures.update(set(hashes))
        ids[record.metadata.get("id", record.id)] += 1
        questions[hashlib.sha256(b"".join(hashes) + record.question.encode()).digest()] += 1
    for name, counts in words.items():
        sources[name].median_words = statistics.median(counts)
    found = SplitStats(
        location=source.location,
        sources=sources,
        verifiers=dict(sorted(verifiers.items())),
        pictures=len(pictures),
        repeated_ids=ids.total() - len(ids),
        repeated_questions=questions.total() - len(questions),
        words=_spread(list(itertools.chain.from_iterable(words.values()))),
    )
    return found, pictures


def _reward_stats(source: RecordSource[ProcessRecord]) -> RewardStats:
    records: collections.Counter[str] = collections.Counter()
    questions: dict[str, set[str]] = collections.defaultdict(set)
    for record in _records(source, lambda record: record):
        name = source_of_id(record.id)
        records[name] += 1
        questions[name].add(record.id.rpartition("/")[0])
    published = {name: (entry.questions, entry.records) for name, entry in PUBLISHED_REWARD.items()}
    names = dict.fromkeys([*published, *sorted(records)])
    return RewardStats(
        location=source.location,
        questions={name: (len(questions[name]), published.get(name, (None, None))[0]) for name in names},
        records={name: (records[name], published.get(name, (None, None))[1]) for name in names},
    )


def _records(source: RecordSource, function: Any) -> Iterable[Any]:
    """A function of each record, in order: reading and hashing run in threads."""
    if not sys.stderr.isatty():  # a log gets a line in place of the bar
        print(f"reading {len(source)} records of {source.location}", file=sys.stderr, flush=True)
    found = in_order(lambda place: function(source[place]), range(len(source)), os.cpu_count() or 1)
    return tqdm.tqdm(found, total=len(source), desc=source.location, leave=False, disable=None)


def _hashes(record: Record) -> list[bytes]:
    return [hashlib.sha256(image).digest() for image in record.images]


def _spread(counts: list[int]) -> dict[str, float]:
    if not counts:
        return {}
    counts = sorted(counts)
    return {
        "least": counts[0],
        "median": statistics.median(counts),
        "mean": round(statistics.fmean(counts), 1),
        "p95": counts[min(len(counts) * 95 // 100, len(counts) - 1)],
        "most": counts[-1],
    }


def table(splits: Iterable[SplitStats | RewardStats], shared: Iterable[Shared]) -> str:
    """For people."""
    blocks = [_reward_table(split) if isinstance(split, RewardStats) else _split_table(split) for split in splits]
    blocks += [
        f"pictures in both {pair.first} and {pair.second}: {pair.pictures:,} "
        f"(in {pair.records[0]:,} and {pair.records[1]:,} records)"
        for pair in shared
    ]
    return "\n\n".join(blocks)


def _split_table(split: SplitStats) -> str:
    lines = [
        split.location,
        f"  {'source':<24}{'records':>10}{'published':>11}{'difference':>12}{'with trace':>12}{'median words':>14}",
    ]
    for name, own in split.sources.items():
        title = PUBLISHED[name].title if name in PUBLISHED else name
        lines.append(_line(title, own.records, own.published, own.with_trace) + f"{own.median_words:>14,g}")
    with_trace = sum(own.with_trace for own in split.sources.values())
    published = [own.published for own in split.sources.values() if own.published is not None]
    total = sum(own.records for own in split.sources.values())
    last = _line("total", total, sum(published) if published else None, with_trace)
    lines.append(last + f"{split.words.get('median', 0):>14,g}")
    lines.append("  verifiers: " + ", ".join(f"{name} {count:,}" for name, count in split.verifiers.items()))
    lines.append(
        f"  different pictures {split.pictures:,}; repeated ids {split.repeated_ids:,}; repeated questions on the same "
        f"picture {split.repeated_questions:,}"
    )
    if split.words:
        lines.append("  words of a trace: " + ", ".join(f"{name} {count:,g}" for name, count in split.words.items()))
    return "\n".join(lines)


def _line(title: str, records: int, published: int | None, with_trace: int) -> str:
    beside = f"{published:>11,}{records - published:>+12,}" if published is not None else f"{'-':>11}{'-':>12}"
    return f"  {title:<24}{records:>10,}{beside}{with_trace / records if records else 0:>12.1%}"


def _reward_table(split: RewardStats) -> str:
    head = "".join(f"{title:>12}" for title in ("questions", "published", "difference", "records"))
    lines = [split.location, f"  {'source':<24}{head}{'published':>12}{'difference':>12}"]
    for name in split.records:
        title = PUBLISHED_REWARD[name].title if name in PUBLISHED_REWARD else name
        lines.append(f"  {title:<24}{_beside(split.questions[name])}{_beside(split.records[name])}")
    lines.append(f"  {'total':<24}{_beside(_total(split.questions))}{_beside(_total(split.records))}")
    return "\n".join(lines)


def _beside(pair: tuple[int, int | None]) -> str:
    count, published = pair
    if published is None:
        return f"{count:>12,}{'-':>12}{'-':>12}"
    return f"{count:>12,}{published:>12,}{count - published:>+12,}"


def _total(counts: Mapping[str, tuple[int, int | None]]) -> tuple[int, int]:
    return sum(count for count, _ in counts.values()), sum(published or 0 for _, published in counts.values())


def _to_json(stats: SplitStats | RewardStats | Shared) -> dict[str, Any]:
    """The fields, and the differences of a split's sources."""
    content = dataclasses.asdict(stats)
    if isinstance(stats, SplitStats):
        for name, own in stats.sources.items():
            content["sources"][name]["difference"] = own.difference
    return content
