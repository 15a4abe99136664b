"""What a sceptic holds against a trained demo policy: answers without a look, scenes of its training, other options."""

import collections
import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.digit_scenes import builder, demo, facts, questions
from vlaa_jax.evaluation.bootstrap import Estimate, paired_interval, unpaired_interval
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.processing.images import Resize, read_size
from vlaa_jax.processing.records import VERIFIERS, Record
from vlaa_jax.processing.shards import RecordSource, write_records
from vlaa_jax.rewards import Request, score_many

Rows = Sequence[Mapping[str, Any]]
"""Lines of an answer file of `launch/tpu_eval.py`, one greedy answer each."""


def write_shards(directory: pathlib.Path, *, seen: Collection[str], seed: int) -> pathlib.Path:
    """Writes two splits unless they are there: `permuted` held-out options, and scenes `seen` in training.

    Args:
      directory: of the shards.
      seen: ids of the RL records that a run drew. Of each kind as many are taken as the held-out split has.
      seed: of the orders.

    Returns:
      `directory`.
    """
    if directory.exists():
        return directory
    held_out, trained = held_out_source(), RecordSource(demo.data("demo:rl"))
    generator = np.random.default_rng(seed)
    options = [permute_options(record, generator) for record in _records(held_out) if record.verifier == "mcq"]
    room = collections.Counter(record.metadata["kind"] for record in _records(held_out))
    scenes = []
    for record in _records(trained):
        if record.id in seen and room[record.metadata["kind"]]:
            room[record.metadata["kind"]] -= 1
            scenes.append(record)
    write_records(
        directory,
        {"permuted": options, "seen": scenes},
        name="digit_scene_controls",
        version=builder.VERSION,
        description="Held-out questions with their options in another order, and scenes of a run's training.",
    )
    return directory


def held_out_source() -> RecordSource:
    return RecordSource(demo.data("demo:heldout"))


def _records(source: RecordSource) -> Iterable[Record]:
    return (source[place] for place in range(len(source)))


def permute_options(record: Record, generator: np.random.Generator) -> Record:
    """A multiple-choice record with its options in another order; letters of the answer follow. Others as they are."""
    count = len(record.choices)
    if count < 2:
        return record
    order = generator.permutation(count)
    while (order == np.arange(count)).all():
        order = generator.permutation(count)
    choices = tuple(record.choices[place] for place in order)
    text = record.question.split("\n")[0]
    letters = sorted(
        questions.LETTERS[order.tolist().index(questions.LETTERS.index(letter))] for letter in record.answer.split(",")
    )
    lines = [f"{letter}. {choice}" for letter, choice in zip(questions.LETTERS, choices, strict=False)]
    return dataclasses.replace(
        record, question="\n".join([text, *lines]), answer=",".join(letters), choices=choices, trace=""
    )


def tables(
    *, held_out: Mapping[str, Rows], seen: Rows, harder: Mapping[str, Rows], seconds: Mapping[str, float]
) -> list[Table]:
    """Two tables of greedy rewards by verifier, each row with its difference from the trained policy.

    Args:
      held_out, harder: answers by the name of their row; one is "trained". Rows that hold some of the records only are
        compared on those.
      seen: the trained policy on scenes of its training: other records, so their difference is unpaired.
      seconds: what the trainings took.
    """
    trained = held_out["trained"]
    lines = [_line(name, rows, trained) for name, rows in held_out.items()]
    change = unpaired_interval([_score(row) for row in trained], [_score(row) for row in seen])
    lines.append([*_cells("trained, on scenes of its training", seen), _signed(change), str(len(seen))])
    blind = {name: _blind(trained, name) for name in ("most frequent answer", "always A, whole picture as box")}
    lines += [_line(name, rows, trained) for name, rows in blind.items()]
    note = (
        "Greedy answers, points of 100; differences with 95 % bootstrap intervals, paired where the questions are the "
        f"same. Seconds of all steps: {', '.join(f'{name} {value:.0f}' for name, value in seconds.items())}."
    )
    header = ["policy", "all", *VERIFIERS, "against trained", "questions"]
    return [
        Table("Controls on held-out scenes", header, lines, note),
        Table("Harder scenes", header, [_line(name, rows, harder["trained"]) for name, rows in harder.items()], ""),
    ]


def _line(name: str, rows: Rows, trained: Rows) -> list[str]:
    at = {row["id"]: row for row in trained}
    same = [row for row in rows if row["id"] in at]
    change = paired_interval([_score(at[row["id"]]) for row in same], [_score(row) for row in same])
    return [*_cells(name, rows), "" if rows is trained else _signed(change), str(len(rows))]


def _cells(name: str, rows: Rows) -> list[str]:
    groups = [rows, *([row for row in rows if row["verifier"] == verifier] for verifier in VERIFIERS)]
    return [name, *(f"{100 * np.mean([_score(row) for row in group]):.1f}" if group else "" for group in groups)]


def _score(row: Mapping[str, Any]) -> float:
    return row["answers"][0]["score"]


def _signed(change: Estimate) -> str:
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _blind(rows: Rows, how: str) -> list[dict[str, Any]]:
    """Answer rows of who does not look, for the questions of `rows`."""
    asked = {row["id"] for row in rows}
    records = [record for record in _records(held_out_source()) if record.id in asked]
    frequent = most_frequent_answers(_records(RecordSource(demo.data("demo:rl"))))
    requests = []
    for record in records:
        answer = frequent[record.metadata["kind"]] if how == "most frequent answer" else constant_answer(record)
        sizes = [read_size(image) for image in record.images]
        shown = [Resize(size, size) for size in sizes]  # the demo's policy sees its pictures in their own size
        requests.append(Request(record.verifier, f"<answer>{answer}</answer>", record.answer, record, shown))
    verdicts = score_many(requests, scorer=facts.FactScorer())
    return [
        {"id": record.id, "verifier": record.verifier, "answers": [{"score": verdict.score}]}
        for record, verdict in zip(records, verdicts, strict=True)
    ]


def most_frequent_answers(records: Iterable[Record]) -> dict[str, str]:
    """For each kind of question the gold answer that most records have."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for record in records:
        counts[record.metadata["kind"]][record.answer] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def constant_answer(record: Record) -> str:
    """The same for every picture: A, the box of all of it, 1, one digit somewhere."""
    if record.verifier == "iou":
        return questions.format_box((0, 0, *read_size(record.images[0])))
    return {"mcq": "A", "open_ended": facts.statement(1, "centre")}.get(record.verifier, "1")
