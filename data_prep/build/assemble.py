"""Drafts become records, and records shards, which workers write side by side."""

import collections
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from data_prep import citations, pictures
from data_prep.build.curation import Split, rank
from data_prep.build.destination import Destination
from data_prep.build.engine import ASIDE, Aside, pipeline, write, write_counts
from data_prep.build.folder import StepFolder, join, read_file, read_lines, write_file
from data_prep.build.steps import reasoning, split_thinking
from data_prep.drafts import Draft, SetAside, from_line
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import Record, load_tfds
from vlaa_jax.processing.shards import Shard

load_tfds()  # with this module, because a runner's workers are processes of their own

NAME = "curate"
_QUALITIES = (95, 90, 80, 70, 60, 50, 40, 30)  # of JPEG
_DESCRIPTION = (
    "VLAA-Thinking, built from its public sources: visual questions with reasoning traces and verifiable answers."
)


def make_record(draft: Draft, picture: bytes | None) -> Record:
    """A draft as a record: the reasoning is its trace, the gold its answer; how it came about is in the metadata."""
    thinking, final = split_thinking(reasoning(draft)) or ("", "")
    made = {"image": draft.image, "caption": draft.caption, "final": final, "text_question": draft.text_question}
    return Record(
        id=draft.id,
        images=() if picture is None else (picture,),
        question=draft.question,
        answer=draft.gold,
        verifier=draft.verifier,
        choices=draft.choices,
        box_space=draft.box_space,
        trace=thinking,
        source=draft.source,
        metadata=draft.metadata | {name: text for name, text in made.items() if text},
    )


def shrink(encoded: bytes, limit: int) -> bytes:
    """The picture within a bound on its bytes: as it is, or as JPEG of the best quality that fits.

    Its size in pixels stays, since gold boxes are in pixels.

    Args:
      encoded: the picture.
      limit: most bytes; 0 for none.

    Raises:
      InputError: it does not fit in any quality.
    """
    from vlaa_jax.processing.images import decode

    if not limit or len(encoded) <= limit:
        return encoded
    image = decode(encoded)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= limit:
            return buffer.getvalue()
    raise InputError(f"{image.width}x{image.height} pixels do not fit into {limit:,} bytes")


@dataclasses.dataclass(frozen=True)
class Order:
    """Where the records go.

    Attributes:
      places: of those chosen, by id: split, shard and place in the shard.
      left: why others were left out, by id.
    """

    places: Mapping[str, tuple[Split, int, int]]
    left: Mapping[str, str]

    def shards(self) -> dict[Split, int]:
        """How many each split has."""
        counts: dict[Split, int] = {}
        for split, shard, _ in self.places.values():
            counts[split] = max(counts.get(split, 0), shard + 1)
        return counts


def order(chosen: Mapping[str, Split], left: Mapping[str, str], *, seed: int, records_per_shard: int) -> Order:
    """The order of the records of each split: drawn, so that every shard holds all sources."""
    places = {}
    for split in sorted(set(chosen.values())):
        own = sorted((id for id in chosen if chosen[id] == split), key=lambda id: rank(seed, id))
        places.update((id, (split, *divmod(number, records_per_shard))) for number, id in enumerate(own))
    return Order(places, left)


def assemble(
    plan: Order,
    files: Sequence[str],
    step: StepFolder,
    target: Destination,
    *,
    folders: Mapping[str, str],
    section: Mapping[str, Any],
    spread: int,
    options: Sequence[str],
) -> None:
    """Writes the shards, and what was left out to the files of step 6.

    Args:
      plan: where the records go.
      files: of the drafts.
      step: folder of step 6.
      target: where the shards go.
      folders: of the sources' pictures, by source.
      section: `config.shards`.
      spread: number of files to write.
      options: Beam's.

    Raises:
      InputError: there is something already.
    """
    path = join(step.path, "order.json")
    write_file(path, json.dumps(dataclasses.asdict(plan), sort_keys=True).encode())
    with target.appearing() as folder:
        with pipeline(options) as made:
            placed = (
                made
                | beam.Create(files)
                | beam.FlatMap(read_lines)
                | beam.ParDo(_Place(path)).with_outputs(ASIDE, main="places")
            )
            failed = (
                placed["places"]
                | beam.GroupByKey()
                | beam.ParDo(_WriteShard(folder, plan.shards(), folders, section, step.path))
            )
            write([(ASIDE, placed[ASIDE]), (ASIDE, failed)], step, spread)
        shards = [Shard(**json.loads(read_file(path) or b"")) for path in step.match("*.shard.json")]
        folder.finish(
            shards,
            name=section["name"],
            version=section["version"],
            description=_DESCRIPTION,
            citation=citations.VLAA_THINKING,
        )


class _Place(beam.DoFn):
    """Lines of drafts; out come lines by shard, and by tag the drafts left out."""

    def __init__(self, path: str):
        self._path = path
        self._shared = Shared()

    def setup(self) -> None:
        self._order = self._shared.acquire(lambda: Order(**json.loads(read_file(self._path) or b"")))

    def process(self, line: bytes) -> Iterator[tuple[tuple[str, int], tuple[int, bytes]] | Aside]:
        draft = from_line(line.decode())
        if draft.id in self._order.places:
            split, shard, place = self._order.places[draft.id]
            yield (split, shard), (place, line)
        else:
            reason = self._order.left[draft.id]
            yield beam.pvalue.TaggedOutput(ASIDE, SetAside(draft.id, draft.source, NAME, reason, draft))


class _WriteShard(beam.DoFn):
    """A shard's lines; out come the drafts that cannot be in it. Its entry and its counts go to the step's folder."""

    def __init__(
        self,
        target: Destination,
        counts: Mapping[Split, int],
        folders: Mapping[str, str],
        section: Mapping[str, Any],
        step: str,
    ):
        self._target, self._counts, self._folders, self._section, self._step = target, counts, folders, section, step

    def process(self, group: tuple[tuple[str, int], Iterable[tuple[int, bytes]]]) -> Iterator[SetAside]:
        (split, number), lines = group
        aside: list[SetAside] = []
        counted: collections.Counter[tuple[str, str]] = collections.Counter()

        def records() -> Iterator[Record]:
            for _, line in sorted(lines):
                draft = from_line(line.decode())
                try:
                    record = make_record(draft, self._picture(draft))
                except InputError as error:  # it changed since step 1, or does not fit into the bound
                    aside.append(
                        SetAside(draft.id, draft.source, NAME, f"picture: {str(error).removeprefix('picture ')}", draft)
                    )
                else:
                    counted[split, draft.source] += 1
                    yield record

        shard = self._target.write(split, number, records(), name=self._section["name"], count=self._counts[split])
        name = f"{split}-{number:05d}"
        write_file(join(self._step, f"{name}.shard.json"), json.dumps(dataclasses.asdict(shard)).encode())
        write_counts(counted, self._step, name)
        yield from aside

    def _picture(self, draft: Draft) -> bytes | None:
        if not draft.image:
            return None
        return shrink(pictures.read(self._folders[draft.source], draft.image), self._section["max_image_bytes"])
