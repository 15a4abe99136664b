"""Steps as Apache Beam pipelines: one a step, from the files of the step before to its own.

The runner decides how much of it happens at once, and nothing else: drafts go into files by the hash of their id,
sorted. What cannot go on leaves by a tag. A draft names its picture; the bytes are read for a request and go with it.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.transforms.environments import EmbeddedPythonGrpcEnvironment
from apache_beam.utils.shared import Shared

from data_prep import pictures
from data_prep.answers.model import Answer, Request, Unanswered
from data_prep.answers.open import Answerer
from data_prep.build.folder import StepFolder, join, read_drafts, read_file, write_file
from data_prep.build.progress import Progress
from data_prep.build.steps import Step, unfit
from data_prep.drafts import Draft, SetAside, to_line
from vlaa_jax.errors import InputError

ASIDE, STOPPED = "aside", "stopped"
UNANSWERED = "unanswered"  # reasons of this kind begin so
# As types, which Beam reads.
Aside = beam.pvalue.TaggedOutput[Literal["aside"], SetAside]
Stopped = beam.pvalue.TaggedOutput[Literal["stopped"], SetAside]
_LOCAL = "DirectRunner"
# Threads, because a worker waits for its model most of the time: while one batch ends, others fill the model.
_THREADS = "multi_threading"
_AT_ONCE = 20_000  # drafts in one pipeline of a step, on one machine
_DEFAULTS = (f"--runner={_LOCAL}", f"--direct_running_mode={_THREADS}", "--direct_num_workers=4")
# Beam's threads (2.77) send what they have every second, also half an element, which nobody can read: not ours.
_NEVER = 10**9  # milliseconds


@contextlib.contextmanager
def pipeline(options: Sequence[str]) -> Iterator[beam.Pipeline]:
    """A pipeline that has run when the block ends.

    Args:
      options: Beam's, as on a command line; without them one machine with four threads.

    Raises:
      InputError: the runner is unknown, or lacks an option.
    """
    parsed = PipelineOptions([*_DEFAULTS, *options])
    runner = parsed.view_as(StandardOptions).runner
    if runner == _LOCAL:  # by that name Beam would first try to download a runner written in Go
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner

        direct, environment = parsed.view_as(DirectOptions), None
        if direct.direct_running_mode == _THREADS:
            direct.direct_running_mode = None  # it would put Beam's environment in the place of this one
            environment = EmbeddedPythonGrpcEnvironment(data_buffer_time_limit_ms=_NEVER)
        runner = FnApiRunner(environment)
    try:
        made = beam.Pipeline(runner=runner, options=parsed)
    except (ValueError, ImportError) as error:
        raise InputError(f"--runner: {' '.join(str(error).split())}") from None
    with made:
        yield made


def on_one_machine(options: Sequence[str]) -> bool:
    """Whether the runner is the default one."""
    return PipelineOptions([*_DEFAULTS, *options]).view_as(StandardOptions).runner == _LOCAL


def write(outputs: Sequence[tuple[str, beam.PCollection]], folder: StepFolder, spread: int, *, part: int = 0) -> None:
    """Adds to a pipeline the files of a step, and beside each one its counts.

    Args:
      outputs: kinds of files with the drafts or set-aside entries that go there.
      folder: of the step.
      spread: most files of a kind.
      part: of the step, where it runs in several pipelines: their files have other names.
    """
    keyed = [
        entries | f"Key {kind} {place}" >> beam.Map(_keyed, kind, spread)
        for place, (kind, entries) in enumerate(outputs)
    ]
    (
        keyed
        | "All files" >> beam.Flatten()
        | "By file" >> beam.GroupByKey()
        | "Write" >> beam.Map(_write_file, folder.path, part)
    )


def _keyed(entry: Draft | SetAside, kind: str, spread: int) -> tuple[tuple[str, int], tuple[str, bytes, str, str]]:
    """By file: id, line, and what the line counts as: its outcome and source."""
    # A set-aside text may hold half a surrogate pair: written as JSON's own escape, it is read back the same.
    line = to_line(entry).encode("utf-8", "backslashreplace")
    identity = hashlib.sha256(entry.id.encode("utf-8", "backslashreplace")).digest()
    outcome = kind if isinstance(entry, Draft) else kind_of(entry.reason)
    return (kind, int.from_bytes(identity[:8], "big") % spread), (entry.id, line, outcome, entry.source)


def _write_file(group: tuple[tuple[str, int], Iterable[tuple[str, bytes, str, str]]], folder: str, part: int) -> None:
    (kind, number), entries = group
    entries = sorted(entries)
    name = f"{kind}-{part:03d}-{number:05d}"
    write_file(join(folder, f"{name}.jsonl"), b"".join(line + b"\n" for _, line, _, _ in entries))
    write_counts(collections.Counter((outcome, source) for _, _, outcome, source in entries), folder, name)


def kind_of(reason: str) -> str:
    """What is counted of a reason: what stands before the first colon or bracket, which is where the record begins."""
    return re.split(r":| \(", reason, maxsplit=1)[0][:80]


def write_counts(counted: Mapping[tuple[str, str], int], folder: str, name: str) -> None:
    """Writes numbers of entries by outcome and source, for `read_counts` to add up."""
    rows = [[outcome, source, number] for (outcome, source), number in sorted(counted.items())]
    write_file(join(folder, f"{name}.counts.json"), json.dumps(rows).encode())


def read_counts(folder: StepFolder) -> dict[str, dict[str, dict[str, int]]]:
    """Numbers of `passed` and `set_aside` entries by outcome and source; the outcome of one set aside is its reason."""
    counts: dict[str, dict[str, dict[str, int]]] = {"passed": {}, "set_aside": {}}
    for path in folder.match("*.counts.json"):
        fate = "set_aside" if path.rpartition("/")[2].startswith(ASIDE) else "passed"
        for outcome, source, number in json.loads(read_file(path) or b""):
            by_source = counts[fate].setdefault(outcome, {})
            by_source[source] = by_source.get(source, 0) + number
    return counts


def drafts_in(path: str) -> int:
    """Drafts of a file that `write` made."""
    counts = read_file(f"{path.removesuffix('.jsonl')}.counts.json")
    return sum(number for _, _, number in json.loads(counts or b""))


def check_stopped(folder: StepFolder) -> None:
    """Raises `InputError` with what stopped a worker, if anything did."""
    for path in folder.match(f"{STOPPED}-*.jsonl"):
        for line in (read_file(path) or b"").splitlines():
            raise InputError(json.loads(line)["reason"])


@dataclasses.dataclass(frozen=True)
class Asking:
    """An asking step with all that a worker needs to know.

    Attributes:
      step: which.
      prompt: text of its prompt file.
      section: of the config.
      answerer: of its model.
      folders: of the sources' pictures, by source.
      drafts: that come in, for progress.
      part: which part of the step, for progress; '' for all of it.
    """

    step: Step
    prompt: str
    section: Mapping[str, Any]
    answerer: Answerer
    folders: Mapping[str, str]
    drafts: int
    part: str = ""


def ask(asking: Asking, files: Sequence[str], folder: StepFolder, spread: int, options: Sequence[str]) -> None:
    """Runs an asking step.

    A runner on one machine holds all that a pipeline puts out until it ends, so there the step runs in parts.

    Args:
      asking: the step.
      files: of the drafts of the step before.
      folder: of this step.
      spread: number of files to write.
      options: Beam's.

    Raises:
      InputError: the model cannot be asked on (a wrong key, the budget): nothing is lost, answers are in the cache.
    """
    size = asking.section["concurrency"]
    sizes = [drafts_in(path) for path in files]
    parts = in_parts(sizes, _AT_ONCE) if on_one_machine(options) else [range(len(files))]
    for number, part in enumerate(parts):
        label = f", part {number + 1} of {len(parts)}" if len(parts) > 1 else ""
        of_part = dataclasses.replace(asking, drafts=sum(sizes[place] for place in part), part=label)
        with pipeline(options) as made:
            asked = (
                made
                | beam.Create([files[place] for place in part])
                | beam.FlatMap(read_drafts)
                | beam.BatchElements(min_batch_size=size, max_batch_size=size)
                | beam.ParDo(_Ask(of_part)).with_outputs(ASIDE, STOPPED, main="drafts")
            )
            write([(kind, asked[kind]) for kind in ("drafts", ASIDE, STOPPED)], folder, spread, part=number)
        check_stopped(folder)


def in_parts(sizes: Sequence[int], most: int) -> list[range]:
    """Places in a row whose sizes add up to at most `most`, or of one that is larger."""
    parts, start, held = [], 0, 0
    for place, size in enumerate(sizes):
        if held and held + size > most:
            parts.append(range(start, place))
            start, held = place, 0
        held += size
    return [*parts, range(start, len(sizes))]


class _Process:
    """What the threads of a process share."""

    def __init__(self, asking: Asking):
        self.progress = Progress(f"step {asking.step.number} {asking.step.name}{asking.part}", asking.drafts)
        self.stopped = False


class _Ask(beam.DoFn):
    """Drafts in batches; out come drafts with their answers, and by tag those set aside and what stopped the build."""

    def __init__(self, asking: Asking):
        self._asking = asking
        self._shared = Shared()

    def setup(self) -> None:
        self._process = self._shared.acquire(lambda: _Process(self._asking))

    def process(self, batch: list[Draft]) -> Iterator[Draft | Aside | Stopped]:
        if self._process.stopped:
            return
        try:
            yield from self._answered(batch)
        except InputError as error:
            self._process.stopped = True
            yield beam.pvalue.TaggedOutput(STOPPED, SetAside("", "", self._asking.step.name, str(error)))

    def finish_bundle(self) -> None:
        """Before the runner counts drafts as done, the ledger has what they cost."""
        self._asking.answerer.flush()

    def _answered(self, batch: list[Draft]) -> Iterator[Draft | Aside]:
        asking = self._asking
        waiting = [draft for draft in batch if asking.step.asks_for(draft)]
        ended: list[Draft | SetAside] = [draft for draft in batch if not asking.step.asks_for(draft)]
        asked = cached = 0
        for attempt in (0, 1):
            if not waiting:
                break
            requests = []
            for draft in waiting:
                request = self._request(draft, attempt)
                (requests if isinstance(request, tuple) else ended).append(request)
            results = asking.answerer.answer([request for _, request in requests])
            waiting = []
            for (draft, _), result in zip(requests, results, strict=True):
                outcome = self._outcome(draft, result)
                waiting.append(draft) if outcome is None else ended.append(outcome)
            asked += len(requests)
            cached += sum(isinstance(result, Answer) and result.cached for result in results)
        ended += [asking.step.set_aside(draft, "twice an answer other than asked for") for draft in waiting]
        aside = [entry for entry in ended if isinstance(entry, SetAside)]
        self._process.progress.add(len(batch), asked=asked, cached=cached, aside=len(aside))
        yield from (entry for entry in ended if isinstance(entry, Draft))
        yield from (beam.pvalue.TaggedOutput(ASIDE, entry) for entry in aside)

    def _request(self, draft: Draft, attempt: int) -> tuple[Draft, Request] | SetAside:
        asking = self._asking
        try:
            picture = pictures.read(asking.folders[draft.source], draft.image) if asking.step.sees else None
        except InputError as error:
            return asking.step.set_aside(draft, f"picture: {str(error).removeprefix('picture ')}")
        return draft, Request(
            prompt=asking.step.ask(draft, asking.prompt),
            image=picture,
            max_tokens=asking.section["max_tokens"],
            temperature=asking.section["temperature"],
            attempt=attempt,
        )

    def _outcome(self, draft: Draft, result: Answer | Unanswered) -> Draft | SetAside | None:
        """None: to be asked once more."""
        step = self._asking.step
        if isinstance(result, Unanswered):
            return step.set_aside(draft, f"{UNANSWERED}, {result.reason}")
        if result.truncated:
            return step.set_aside(draft, "the answer was cut at max_tokens")
        if problem := unfit(result.text):
            return step.set_aside(draft, f"the answer cannot be used: {problem}")
        outcome = step.accept(draft, result.text, self._asking.section)
        if isinstance(outcome, Draft):
            models = {**draft.metadata.get("models", {}), step.name: result.model or self._asking.section["model"]}
            outcome = dataclasses.replace(outcome, metadata={**draft.metadata, "models": models})
        return outcome
