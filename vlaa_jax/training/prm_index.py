"""Process records as questions with labelled solutions: what a shard set holds, and what of it cannot be used.

Every record is read once with a progress bar. The records of a question share its prompt and the solutions that
`step_paths` finds in them.
"""

import concurrent.futures
import dataclasses
import hashlib
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import tqdm
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.models.reward_model import KINDS, Kind
from vlaa_jax.objectives.shared_prompt import row_tokens
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.records import ProcessRecord, check_record
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.processing.solutions import question_of
from vlaa_jax.processing.steps import split_steps
from vlaa_jax.training import settings
from vlaa_jax.training.step_paths import StepPath, step_paths

_SHOWN = 5  # problems in a sentence

T, U = TypeVar("T"), TypeVar("U")


@dataclasses.dataclass(frozen=True)
class LabelledSolution:
    """A solution of which some steps have values.

    Attributes:
      id: of a record whose process it is.
      place: of that record in the shard set.
      tokens: C.
      values, weights: `[S]` as of `StepPath`; of an outcome model those of the last step alone, S = 1.
    """

    id: str
    place: int
    tokens: int
    values: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class LabelledQuestion:
    """A question with its solutions.

    Attributes:
      id: what the ids of its records have before their last `/`.
      prompt: P, its tokens.
      windows: W of its pictures.
      solutions: at least one.
    """

    id: str
    prompt: int
    windows: int
    solutions: tuple[LabelledSolution, ...]


@dataclasses.dataclass(frozen=True)
class QuestionIndex:
    """A shard set.

    Attributes:
      questions: in the order of their first records.
      records: all of them, the unusable ones too.
      problems: why a record cannot be used, by its id.
      repeated: records whose process another one of the question has too; such values are averaged.
    """

    questions: tuple[LabelledQuestion, ...]
    records: int
    problems: dict[str, str]
    repeated: int

    def report(self) -> str:
        """One sentence on the records that are skipped, '' when none is."""
        if not self.problems:
            return ""
        shown = "; ".join(f"{name}: {problem}" for name, problem in list(self.problems.items())[:_SHOWN])
        more = "; ..." if len(self.problems) > _SHOWN else ""
        return f"{len(self.problems)} of {self.records} records cannot be used ({shown}{more})"

    def describe(self) -> str:
        """What there is, in one line."""
        solutions = sum(len(question.solutions) for question in self.questions)
        parts = [f"{self.records - len(self.problems):,} of {self.records:,} records"]
        parts += [f"{len(self.questions):,} questions", f"{solutions:,} solutions"]
        parts += [f"{self.repeated:,} records with a process that occurs more than once"] if self.repeated else []
        return ", ".join(parts)


def open_questions(
    config: ConfigDict, field: str, encoder: Encoder
) -> tuple[RecordSource[ProcessRecord], QuestionIndex]:
    """A shard set of process records and what is in it; says so in a line.

    Args:
      config: the run's.
      field: `train` or `evaluation`.
      encoder: decides sizes.

    Raises:
      InputError: shards of another kind, unusable records while `config.data.skip_bad` is off, or none left.
    """
    source = RecordSource(settings.require(config, f"data.{field}", "process shards as DIRECTORY:SPLIT"), ProcessRecord)
    shuffled = config.seed if config.data.shuffled and field == "train" else None
    index = read_questions(source, encoder, config.updates, model_kind(config), shuffled=shuffled)
    if index.report() and not config.data.skip_bad:
        raise InputError(f"config.data.{field}: {index.report()}; --config.data.skip_bad=true goes on without them")
    if not index.questions:
        raise InputError(f"config.data.{field}: no usable record ({index.report() or index.describe()})")
    print(f"config.data.{field}: {index.describe()}", flush=True)
    if index.report():
        print(f"config.data.{field}: {index.report()}", flush=True)
    return source, index


def model_kind(config: ConfigDict) -> Kind:
    """`config.model.kind`.

    Raises:
      InputError: it is none of `KINDS`.
    """
    if config.model.kind not in KINDS:
        raise InputError(f"config.model.kind is {config.model.kind!r}: expected one of {', '.join(KINDS)}")
    return config.model.kind


@dataclasses.dataclass
class _Process:
    """A record without its pictures."""

    place: int
    id: str
    asked: bytes  # hash of question and pictures
    steps: tuple[str, ...]
    value: float
    tokens: int
    problem: str


def read_questions(
    source: RecordSource[ProcessRecord],
    encoder: Encoder,
    bounds: ConfigDict,
    kind: Kind,
    *,
    shuffled: int | None = None,
) -> QuestionIndex:
    """Reads every record, the pictures of one of each question.

    Args:
      source: the records.
      encoder: decides sizes.
      bounds: `config.updates`: the largest sizes.
      kind: an outcome model learns from whole solutions alone: the processes that no other one continues.
      shuffled: a seed by which the values of each question change places among its processes; None leaves them.
    """
    processes = _in_threads(lambda place: _read(source, place, encoder, bounds), range(len(source)), "records")
    groups: dict[str, list[_Process]] = {}
    for process in processes:
        groups.setdefault(_question_id(process.id), []).append(process)
    for group in groups.values():
        for process in group[1:]:
            if process.asked != group[0].asked:
                process.problem = process.problem or f"its question or pictures are not those of {group[0].id}"
    sizes = _in_threads(lambda group: _prompt(source, group, encoder, bounds), list(groups.values()), "questions")
    questions, repeated = [], 0
    for (name, group), (prompt, windows) in zip(groups.items(), sizes, strict=True):
        good = [process for process in group if not process.problem]
        repeated += len(good) - len({process.steps for process in good})
        values = np.asarray([process.value for process in good])
        if shuffled is not None:
            values = np.random.default_rng([shuffled, zlib.crc32(name.encode())]).permutation(values)
        paths = step_paths([process.steps for process in good], values.tolist())
        if kind == "outcome":
            paths = [StepPath(path.place, path.values[-1:], path.weights[-1:]) for path in paths]
        if paths:
            solutions = tuple(_solution(good[path.place], path) for path in paths)
            questions.append(LabelledQuestion(name, prompt, windows, solutions))
    problems = {process.id: process.problem for process in processes if process.problem}
    return QuestionIndex(tuple(questions), len(processes), problems, repeated)


def _question_id(record: str) -> str:
    return record.rpartition("/")[0] or record


def _read(source: RecordSource[ProcessRecord], place: int, encoder: Encoder, bounds: ConfigDict) -> _Process:
    record = source[place]
    asked = hashlib.blake2b(record.question.encode(), digest_size=16)
    for image in record.images:
        asked.update(hashlib.blake2b(image, digest_size=16).digest())
    steps, tokens, problem = tuple(split_steps(record.process)), 0, ""
    try:
        check_record(record)
        tokens = len(encoder.solution(steps)[0])
    except InputError as error:
        problem = str(error).removeprefix(f"record {record.id}: ")
    if not steps:
        problem = problem or "its process is blank"
    elif tokens > bounds.longest_solution or len(steps) > bounds.most_steps:
        problem = problem or (
            f"{tokens} tokens in {len(steps)} steps, above config.updates.longest_solution "
            f"({bounds.longest_solution}) or most_steps ({bounds.most_steps})"
        )
    return _Process(place, record.id, asked.digest(), steps, record.value, tokens, problem)


def _prompt(
    source: RecordSource[ProcessRecord], group: Sequence[_Process], encoder: Encoder, bounds: ConfigDict
) -> tuple[int, int]:
    """Tokens and windows of a question; notes what is too large for a row."""
    record = source[group[0].place]
    problem, prompt, windows = "", 0, 0
    try:
        prompt, windows = encoder.sizes(question_of(record))
        if prompt > bounds.longest_prompt or windows > bounds.most_windows:
            problem = (
                f"a prompt of {prompt} tokens with {windows} windows, above config.updates.longest_prompt "
                f"({bounds.longest_prompt}) or most_windows ({bounds.most_windows})"
            )
    except InputError as error:
        problem = str(error).removeprefix(f"record {record.id}: ")
    for process in group:
        needed = row_tokens(np.asarray([prompt]), np.asarray([[process.tokens]]), bounds.longest_row)[0]
        if not problem and needed > bounds.longest_row:
            process.problem = process.problem or f"a row of {needed} tokens, above config.updates.longest_row"
        process.problem = process.problem or problem
    return prompt, windows


def _solution(process: _Process, path: StepPath) -> LabelledSolution:
    return LabelledSolution(process.id, process.place, process.tokens, path.values, path.weights)


def _in_threads(work: Callable[[T], U], things: Sequence[T], what: str) -> list[U]:
    """`work` of each, with a bar; a log gets a line in its place."""
    title = f"reading {len(things)} {what}"
    if not sys.stderr.isatty():
        print(title, file=sys.stderr, flush=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done: Iterable[U] = pool.map(work, things)
        return list(tqdm.tqdm(done, total=len(things), desc=title, leave=False, disable=None))
