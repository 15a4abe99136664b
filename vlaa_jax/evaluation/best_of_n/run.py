"""A best-of-N evaluation from answers to tables: judge after judge, each opened when it is its turn."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import tqdm

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.best_of_n.answered import Answered, Judged
from vlaa_jax.evaluation.best_of_n.folder import all_tables, save_responses, write_report
from vlaa_jax.evaluation.best_of_n.measures import measure
from vlaa_jax.evaluation.judges.judge import Judge, Question
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.processing.records import Record

_AT_ONCE = 128  # questions whose pictures are in memory


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of an evaluation.

    Attributes:
      sizes: the Ns.
      folder: where all goes, see `folder.check_folder`.
      title, summary: of page and tables.
      dominance: see `measures.measure`.
      own_accuracy: see `tables.correlations`.
    """

    sizes: tuple[int, ...]
    folder: pathlib.Path
    title: str
    summary: tuple[str, ...]
    dominance: str = "dominance"
    own_accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)


def evaluate(
    answers: Sequence[Judged],
    judges: Sequence[Callable[[], Judge]],
    read: Callable[[str], Record],
    settings: Settings,
    more: Callable[[Sequence[Judged]], Sequence[Table]] = lambda judged: (),
) -> list[Table]:
    """Judges responses, measures picks and writes the folder.

    Args:
      answers: one or more models' responses, with scores that are known already.
      judges: open a judge each; its weights are let go before the next one comes.
      read: a record with its images, by its id.
      settings: what is measured, and where it goes.
      more: further tables from all scores.

    Returns:
      The tables.
    """
    judged = list(answers)
    save_responses(settings.folder, judged)
    for open_judge in judges:
        judge = open_judge()
        judged = [_judged_by(judge, own, read, max(settings.sizes)) for own in judged]
        for problem, count in judge.problems.items():
            print(f"{judge.name}: {count} {problem}", flush=True)
        del judge
        save_responses(settings.folder, judged)
    measured = [measure(own, settings.sizes, dominance=settings.dominance) for own in judged]
    tables = all_tables(measured, settings.own_accuracy, more(judged))
    write_report(
        settings.folder,
        title=settings.title,
        summary=settings.summary,
        measured=measured,
        tables=tables,
        own_accuracy=settings.own_accuracy,
    )
    return tables


def judge_responses(
    judge: Judge, questions: Sequence[Answered], read: Callable[[str], Record], most: int
) -> list[list]:
    """Step scores of the first responses of every question; pictures are read when they are needed.

    Args:
      judge: any.
      questions: Q.
      read: a record with its images, by its id.
      most: responses of a question that are judged.
    """
    scores = []
    for start in tqdm.tqdm(
        range(0, len(questions), _AT_ONCE), desc=f"judging by {judge.name}", leave=False, disable=None
    ):
        chosen = questions[start : start + _AT_ONCE]
        scores += judge([Question(read(own.record.id), own.texts[:most]) for own in chosen])
        if not sys.stderr.isatty():  # a log gets a line in place of the bar
            print(f"{judge.name}: {len(scores)} of {len(questions)} questions", file=sys.stderr, flush=True)
    return scores


def read_own_accuracy(path: pathlib.Path) -> dict[str, float]:
    """From JSON, `{judge: accuracy}`: how often a judge's model is right when it answers by itself.

    Raises:
      InputError: no such file, or something else in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, judge -> accuracy ({error})") from None
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool)  # noqa: E731
    if not isinstance(found, dict) or not all(number(value) and 0 <= value <= 1 for value in found.values()):
        raise InputError(f"{path}: expected an object, judge -> accuracy between 0 and 1")
    return found


def _judged_by(judge: Judge, own: Judged, read: Callable[[str], Record], most: int) -> Judged:
    scores = {**own.scores, judge.name: judge_responses(judge, own.questions, read, most)}
    whole = own.whole - {judge.name} | ({judge.name} if judge.whole else set())
    return dataclasses.replace(own, scores=scores, whole=whole)
