"""`python -m data_prep rank`: the records with the highest perplexity, averaged over scorers, as shards of their own.

The paper keeps the 25,000, 10,000 and 5,000 highest of its 126,413 SFT records under Qwen2-VL-2B and Qwen2.5-VL-3B
(VLAA-Thinking, sections 3.1 and 4.2).
"""

import argparse
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from data_prep.perplexity.scores import Score, read_scores
from vlaa_jax.errors import InputError

VERSION = "1.0.0"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser("rank", help="the records with the highest average perplexity, as shards")
    parser.add_argument(
        "--scores",
        required=True,
        action="append",
        type=pathlib.Path,
        metavar="FILE.jsonl",
        help="of one scorer, as `perplexity` wrote it; may be given again",
    )
    parser.add_argument("--data", required=True, metavar="DIR:SPLIT", help="shards that were scored")
    parser.add_argument(
        "--keep", required=True, action="append", type=int, help="records of a split; may be given again for another"
    )
    parser.add_argument("--out", required=True, help="directory to make, with splits such as sft_25k")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    for split, count in write_subsets(arguments.data, arguments.scores, arguments.keep, arguments.out).items():
        print(f"{count} records in {arguments.out}:{split}")


def write_subsets(data: str, scores: Sequence[pathlib.Path], keep: Sequence[int], out: str) -> dict[str, int]:
    """Writes the highest records of a shard set, in its order; a smaller subset is part of a larger one.

    Args:
      data: shards, DIRECTORY:SPLIT.
      scores: a file of each scorer.
      keep: sizes of the subsets.
      out: directory to make.

    Returns:
      Splits and their records.

    Raises:
      InputError: `out` exists, a file does not score exactly the records of `data`, or a size does not fit.
    """
    import tqdm

    from vlaa_jax.processing.shards import RecordSource, write_records

    source = RecordSource(data)
    for size in keep:
        if not 0 < size <= len(source):
            raise InputError(f"--keep is {size}: expected 1 to {len(source)}, the records of {data}")
    if len(set(keep)) < len(keep):
        raise InputError(f"--keep: {max(keep, key=keep.count)} is given twice")
    found = [read_scores(path) for path in scores]
    print(f"reading {len(source)} records of {data}", flush=True)
    ids = [record.id for record in tqdm.tqdm(source, desc="ids", leave=False, disable=None)]
    for path, by_id in zip(scores, found, strict=True):
        _check_ids(path, by_id, ids, data)
    ranked = rank(found)
    place = {record: number for number, record in enumerate(ids)}
    subsets = {
        _name(source.split, size): sorted(place[record] for record in ranked[:size])
        for size in sorted(keep, reverse=True)
    }
    write_records(
        out,
        {split: map(source.__getitem__, places) for split, places in subsets.items()},
        name="by_perplexity",
        version=VERSION,
        description=f"Highest average perplexity of {', '.join(path.name for path in scores)}.",
    )
    return {split: len(places) for split, places in subsets.items()}


def rank(scores: Sequence[Mapping[str, Score]]) -> list[str]:
    """Ids by falling mean of the scorers' perplexities (not of their losses), and by themselves where it is the same.

    Args:
      scores: by id, of each scorer; all have the same ids.
    """
    means = {record: sum(by_id[record].perplexity for by_id in scores) / len(scores) for record in scores[0]}
    return sorted(means, key=lambda record: (-means[record], record))


def _check_ids(path: pathlib.Path, scores: Iterable[str], ids: Sequence[str], data: str) -> None:
    missing, extra = sorted(set(ids) - set(scores)), sorted(set(scores) - set(ids))
    if missing:
        raise InputError(f"{path} has no score of {missing[0]!r} and {len(missing) - 1} more of the records of {data}")
    if extra:
        raise InputError(f"{path} scores {extra[0]!r} and {len(extra) - 1} more that are no records of {data}")


def _name(split: str, size: int) -> str:
    return f"{split}_{size // 1000}k" if size % 1000 == 0 else f"{split}_{size}"
