"""Step 1: the questions of every source, those that can become records, before anything is paid for."""

import dataclasses
import heapq
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from data_prep import pictures
from data_prep.build.assemble import make_record
from data_prep.build.curation import rank
from data_prep.build.engine import ASIDE, STOPPED, Aside, Stopped, check_stopped, pipeline, write
from data_prep.build.folder import StepFolder
from data_prep.build.steps import TAGS, split_thinking
from data_prep.drafts import Draft, SetAside, from_line, to_line
from data_prep.sources.published import PUBLISHED
from data_prep.sources.readers import read_source
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import check_record
from vlaa_jax.rewards import check_gold
from vlaa_jax.storage import is_remote

NAME = "collect"


@dataclasses.dataclass(frozen=True)
class Source:
    """One source as the build takes it.

    Attributes:
      name: key of `PUBLISHED`.
      folder: as its publisher ships it.
      limit: questions drawn; 0: all.
      seed: of the draw.
    """

    name: str
    folder: str
    limit: int
    seed: int


def sources(config: Mapping[str, Any]) -> list[Source]:
    """Those that have a folder.

    Raises:
      InputError: none has one, or it lies in a bucket.
    """
    found = [
        Source(name, section["folder"], section["limit"], config["seed"])
        for name, section in config["sources"].items()
        if section["folder"]
    ]
    if not found:
        raise InputError(
            f"no source has a folder: expected --config.sources.NAME.folder=..., NAME one of {', '.join(PUBLISHED)}"
        )
    for source in found:
        if is_remote(source.folder):
            raise InputError(
                f"config.sources.{source.name}.folder: {source.folder} lies in a bucket: expected a path that every "
                "worker sees, as where the bucket is mounted (Cloud Storage FUSE)"
            )
    return found


def read(source: Source) -> Iterator[Draft | SetAside]:
    """The questions drawn from a source, and those that its reader cannot use."""
    drafts = []
    for entry in read_source(source.name, pathlib.Path(source.folder)):
        if source.limit and isinstance(entry, Draft):
            drafts.append(entry)
        else:
            yield entry
    yield from heapq.nsmallest(source.limit, drafts, key=lambda draft: rank(source.seed, draft.id))


def problem(draft: Draft, folder: str) -> str:
    """Why a question cannot become a record, '' where it can; its picture is decoded to the end."""
    if any(tag in draft.gold for tag in TAGS):
        return "gold: it holds tags of the format"
    if draft.distilled and split_thinking(draft.distilled) is None:
        return "the source's reasoning is not one think block and a final text"
    try:
        picture = pictures.read(folder, draft.image) if draft.image else None
    except InputError as error:
        return f"picture: {str(error).removeprefix('picture ')}"
    record = make_record(draft, picture)
    marks = record.question.count("<image>")
    if marks not in (0, len(record.images)):
        return f"<image> marks: {marks} in the question for {len(record.images)} pictures"
    try:
        check_record(record)
        check_gold(record)
    except InputError as error:
        return f"gold: {error}"
    return ""


def collect(chosen: Sequence[Source], folder: StepFolder, spread: int, options: Sequence[str]) -> None:
    """Runs step 1.

    Args:
      chosen: the sources.
      folder: of this step.
      spread: number of files to write.
      options: Beam's.

    Raises:
      InputError: a source's folder is missing or not laid out as expected.
    """
    with pipeline(options) as made:
        came = made | beam.Create(chosen) | beam.ParDo(_Read()).with_outputs(ASIDE, STOPPED, main="lines")
        checked = came["lines"] | beam.Reshuffle() | beam.ParDo(_Check(chosen)).with_outputs(ASIDE, main="drafts")
        outputs = [
            ("drafts", checked["drafts"]),
            (ASIDE, checked[ASIDE]),
            (ASIDE, came[ASIDE]),
            (STOPPED, came[STOPPED]),
        ]
        write(outputs, folder, spread)
    check_stopped(folder)


class _Read(beam.DoFn):
    """Drafts as lines, which are short to hold while they wait for their check."""

    def process(self, source: Source) -> Iterator[bytes | Aside | Stopped]:
        try:
            for entry in read(source):
                if isinstance(entry, SetAside):
                    yield beam.pvalue.TaggedOutput(ASIDE, entry)
                else:
                    yield to_line(entry).encode()
        except InputError as error:
            yield beam.pvalue.TaggedOutput(STOPPED, SetAside("", source.name, NAME, str(error)))


class _Check(beam.DoFn):
    """Lines of drafts; out come drafts that can become records, and by tag the others."""

    def __init__(self, chosen: Sequence[Source]):
        self._folders = {source.name: source.folder for source in chosen}

    def process(self, line: bytes) -> Iterator[Draft | Aside]:
        draft = from_line(line.decode())
        why = problem(draft, self._folders[draft.source])
        if why:
            yield beam.pvalue.TaggedOutput(ASIDE, SetAside(draft.id, draft.source, NAME, why, draft))
        else:
            yield draft
