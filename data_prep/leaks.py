"""`python -m data_prep leaks`: whether training data holds pictures or questions of evaluation data."""

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from data_prep import picture_hashes, question_overlap
from data_prep.picture_hashes import PictureHash, hash_picture, near_pictures
from data_prep.progress import progress
from data_prep.question_overlap import Question, overlaps
from data_prep.show_page import visible
from vlaa_jax.errors import InputError, check_output
from vlaa_jax.processing.images import decode
from vlaa_jax.processing.shards import RecordSource, open_split

_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Leak:
    """A training record that holds something of an evaluation record.

    Attributes:
      data, id: split and id of the training record.
      against, against_id: of the evaluation record.
      reason: one sentence.
      measure: bits in which the pictures' hashes differ, 0 for the same picture; or share of the question's grams.
    """

    data: str
    id: str
    against: str
    against_id: str
    reason: str
    measure: float


@dataclasses.dataclass(frozen=True)
class Leaks:
    """What was found.

    Attributes:
      pictures: by picture, a pair of records once, by its nearest pictures.
      questions: by question.
      compared: records and pictures of the training data, then of the evaluation data.
    """

    pictures: tuple[Leak, ...]
    questions: tuple[Leak, ...]
    compared: tuple[tuple[int, int], tuple[int, int]]

    def __bool__(self) -> bool:
        return bool(self.pictures or self.questions)


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a parser's sub-commands."""
    parser = commands.add_parser(
        "leaks",
        help="look for pictures and questions of evaluation data in training data",
        description="Exits with 1 where there are leaks. Evaluation data in other forms become shards by from-jsonl. "
        "Splits that must be disjoint, such as sft and rl, are compared in the same way.",
    )
    parser.add_argument("--data", action="append", required=True, help="DIRECTORY:SPLIT to train on; may be repeated")
    parser.add_argument("--against", action="append", required=True, help="DIRECTORY:SPLIT to evaluate on; as --data")
    parser.add_argument(
        "--distance",
        type=int,
        default=picture_hashes.DISTANCE,
        help="bits of 64 in which the hashes of near pictures differ at most, default %(default)s; 0 to 16",
    )
    parser.add_argument(
        "--words",
        type=int,
        default=question_overlap.WORDS,
        help="of an n-gram, default %(default)s; shorter questions count only where there is no picture",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=question_overlap.SHARE,
        help="of an evaluation question's n-grams that one training question holds, from which on it is a leak, "
        "default %(default)s",
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for all pairs")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_output("--json", arguments.json)
    train, against = ([open_split(location) for location in side] for side in (arguments.data, arguments.against))
    leaks = find_leaks(train, against, distance=arguments.distance, words=arguments.words, share=arguments.share)
    for leak in (leaks.pictures + leaks.questions)[:_LISTED]:
        print(visible(f"{leak.data} {leak.id} | {leak.against} {leak.against_id} | {leak.reason}"))
    hidden = len(leaks.pictures) + len(leaks.questions) - _LISTED
    if hidden > 0:
        print(f"... and {hidden:,} more{'' if arguments.json else '; --json=FILE takes all'}")
    (records, pictures), (against_records, against_pictures) = leaks.compared
    print(
        f"{len(leaks.pictures):,} pairs of records leak by picture, {len(leaks.questions):,} by question: "
        f"{records:,} records with {pictures:,} different pictures, "
        f"against {against_records:,} with {against_pictures:,}"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(dataclasses.asdict(leaks), indent=1) + "\n")
    return int(bool(leaks))


def find_leaks(
    train: Sequence[RecordSource],
    against: Sequence[RecordSource],
    *,
    distance: int = picture_hashes.DISTANCE,
    words: int = question_overlap.WORDS,
    share: float = question_overlap.SHARE,
) -> Leaks:
    """Compares every record to train on with every record to evaluate on.

    Args:
      train: splits to train on.
      against: splits to evaluate on.
      distance: bits of 64 in which the hashes of near pictures differ at most; see picture_hashes.py.
      words: of a gram; see question_overlap.py.
      share: of an evaluation question's grams, from which on a training question is the same.

    Raises:
      InputError: a setting without sense, a record that cannot be read, a picture that cannot be decoded.
    """
    if not 0 <= distance <= 16 or words < 1 or not 0 < share <= 1:
        raise InputError(
            f"distance {distance}, words {words}, share {share}: expected 0 to 16 bits, 1 or more words, and a share "
            "above 0 and up to 1"
        )
    left, right = _read(train), _read(against)
    pairs = overlaps(left.questions, right.questions, size=words, share=share)
    return Leaks(
        tuple(_picture_leaks(left, right, distance)),
        tuple(
            _leak(left, right, row, column, f"the same question, {part:.0%} of its {words}-grams", part)
            for row, column, part in pairs
        ),
        ((len(left.names), len(left.pictures)), (len(right.names), len(right.pictures))),
    )


class _Side:
    """The records of one side, and its different pictures with the places of the records that have them."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self.questions: list[Question] = []
        self.pictures: dict[bytes, PictureHash] = {}
        self.holders: dict[bytes, list[int]] = {}

    def add(self, location: str, record_id: str, question: str, pictures: Sequence[PictureHash]) -> None:
        digests = tuple(dict.fromkeys(picture.digest for picture in pictures))
        for picture in pictures:
            self.pictures.setdefault(picture.digest, picture)
        for digest in digests:
            self.holders.setdefault(digest, []).append(len(self.names))
        self.names.append((location, record_id))
        self.questions.append(Question(question, digests))


def _read(sources: Iterable[RecordSource]) -> _Side:
    side = _Side()
    for source in sources:

        def row(position: int, source: RecordSource = source) -> tuple[str, str, list[PictureHash]]:
            record = source[position]
            try:
                return record.id, record.question, [hash_picture(decode(encoded)) for encoded in record.images]
            except InputError as error:
                raise InputError(f"{source.location}, record {record.id!r}: {error}") from None

        with concurrent.futures.ThreadPoolExecutor() as threads:
            rows = threads.map(row, range(len(source)))
            for entry in progress(rows, f"reading {len(source):,} records of {source.location}", len(source)):
                side.add(source.location, *entry)
    return side


def _picture_leaks(left: _Side, right: _Side, distance: int) -> Iterator[Leak]:
    """In the order of the evaluation records, then of the training records."""
    nearest: dict[tuple[int, int], int] = {}

    def found(digest: bytes, other: bytes, bits: int) -> None:
        for column in right.holders[other]:
            for row in left.holders[digest]:
                nearest[column, row] = min(bits, nearest.get((column, row), bits))

    for digest in left.pictures.keys() & right.pictures.keys():
        found(digest, digest, -1)  # the same pixels, nearer than near pictures with equal hashes
    digests, others = list(left.pictures), list(right.pictures)
    for row, column, bits in near_pictures(list(left.pictures.values()), list(right.pictures.values()), distance):
        found(digests[row], others[column], bits)
    for (column, row), bits in sorted(nearest.items()):
        reason = "the same picture" if bits < 0 else f"a near picture, {bits} of 64 bits differ"
        yield _leak(left, right, row, column, reason, max(bits, 0))


def _leak(left: _Side, right: _Side, row: int, column: int, reason: str, measure: float) -> Leak:
    return Leak(*left.names[row], *right.names[column], reason, measure)
