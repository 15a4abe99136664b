"""The mixed reward of VLAA-Thinking (section 4.1): every completion goes through the gate and to one verifier.

The reward lies in [0, 1] and has no other term: no bonus for format or length, no partial credit outside the box
verifier, which is continuous, and the open-ended one, which is graded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from vlaa_jax.errors import InputError
from vlaa_jax.rewards import digit, iou, math, mcq, open_ended
from vlaa_jax.rewards.extract import answer_text
from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rewards.verdict import Trace, Verdict, invalid

if TYPE_CHECKING:
    from vlaa_jax.processing.images import Resize
    from vlaa_jax.processing.records import Record

VERIFIERS = ("digit", "mcq", "math", "iou", "open_ended")


@dataclasses.dataclass(frozen=True)
class Request:
    """One completion to be scored.

    Attributes:
      verifier: one of `VERIFIERS`.
      completion: decoded text up to the first end token, tags included.
      gold: the gold answer, or the reference of an open-ended question.
      example: its record; needed by iou (box space) and open_ended, and gives mcq its options.
      resizes: how each image of the record was scaled, in order; needed by iou in pixels.
    """

    verifier: str
    completion: str
    gold: str
    example: Record | None = None
    resizes: Sequence[Resize] = ()


def score_many(
    requests: Sequence[Request],
    *,
    strict: bool = False,
    scorer: open_ended.Scorer | open_ended.BatchScorer | None = None,
    pool: MathPool | None = None,
) -> list[Trace]:
    """Scores completions, the mathematical ones side by side in the pool's processes while the others are scored here.

    Args:
      requests: the completions, of any mixture of verifiers.
      strict: the format gate also demands one think block before the answer block and nothing else.
      scorer: judge of open-ended answers; those of a `BatchScorer` are left waiting for `score_waiting`.
      pool: math workers; a pool of two that this process keeps when not given.

    Returns:
      One trace a request, in their order.

    Raises:
      InputError: a gold that its verifier cannot read, an unknown verifier, an open-ended record without a scorer, a
        scorer's score that is not finite. It names the record where the request has one.
    """
    waiting = [_start(request, strict, scorer, pool) for request in requests if request.verifier == "math"]
    done = [_start(request, strict, scorer, pool)() for request in requests if request.verifier != "math"]
    math_traces, other_traces = (finish() for finish in waiting), iter(done)
    return [next(math_traces if request.verifier == "math" else other_traces) for request in requests]


def score_now(
    requests: Sequence[Request],
    *,
    strict: bool = False,
    scorer: open_ended.Scorer | open_ended.BatchScorer | None = None,
    pool: MathPool | None = None,
) -> list[Trace]:
    """As `score_many`, and nothing is left waiting: for who has the chips, in a single process."""
    traces = score_many(requests, strict=strict, scorer=scorer, pool=pool)
    waiting = [place for place, trace in enumerate(traces) if is_waiting(trace)]
    if waiting:
        asked = [(requests[place].example, [traces[place]]) for place in waiting]
        for place, (trace,) in zip(waiting, score_waiting(asked, scorer), strict=True):
            traces[place] = trace
    return traces


def is_waiting(trace: Trace) -> bool:
    """Whether `score_waiting` is to finish it."""
    return trace.rule == open_ended.WAITING


def score_waiting(asked: Sequence[tuple[Record, Sequence[Trace]]], scorer: open_ended.BatchScorer) -> list[list[Trace]]:
    """Finishes what `score_many` left waiting; other traces stay as they are.

    Args:
      asked: records with the traces of their completions; the same on all processes of a run.
      scorer: of `score_many`.

    Raises:
      InputError: the scorer has no beta, or as its judge raises.
    """
    began = time.perf_counter()
    answers = [(record, [trace.extracted for trace in traces if is_waiting(trace)]) for record, traces in asked]
    verdicts = iter([verdict for group in open_ended.judge_together(answers, scorer) for verdict in group])
    each = (time.perf_counter() - began) / max(1, sum(len(group) for _, group in answers))

    def finish(trace: Trace) -> Trace:
        if not is_waiting(trace):
            return trace
        return Trace(**vars(next(verdicts)), extracted=trace.extracted, seconds=trace.seconds + each)

    return [[finish(trace) for trace in traces] for _, traces in asked]


def trace(
    verifier: str,
    completion: str,
    gold: str,
    *,
    example: Record | None = None,
    resizes: Sequence[Resize] = (),
    strict: bool = False,
    scorer: open_ended.Scorer | None = None,
    pool: MathPool | None = None,
) -> Trace:
    """Scores one completion and says why; see `Request` and `score_many`."""
    request = Request(verifier, completion, gold, example, resizes)
    return score_now([request], strict=strict, scorer=scorer, pool=pool)[0]


def score(
    verifier: str,
    completion: str,
    gold: str,
    *,
    example: Record | None = None,
    resizes: Sequence[Resize] = (),
    strict: bool = False,
    scorer: open_ended.Scorer | None = None,
    pool: MathPool | None = None,
) -> float:
    """The reward of one completion, in [0, 1]; see `Request` and `score_many`."""
    return trace(
        verifier, completion, gold, example=example, resizes=resizes, strict=strict, scorer=scorer, pool=pool
    ).score


def accuracy(trace: Trace, verifier: str) -> bool:
    """Whether a completion counts as right: reward of at least 0.5 (IoU@0.5), open-ended: better than the reference."""
    return trace.score > 0 if verifier == "open_ended" else trace.score >= 0.5


def check_gold(record: Record, *, pool: MathPool | None = None) -> None:
    """For load time: raises InputError, naming the record, unless its verifier can read its gold answer."""
    with _naming(record):
        _check_verifier(record.verifier)
        if not record.answer.strip():
            raise InputError("the gold answer is empty")
        match record.verifier:
            case "digit":
                digit.read_gold(record.answer)
            case "mcq":
                mcq.check_choices(record.choices)
                mcq.read_gold(record.answer, record.choices)
            case "math":
                math.check_gold(record.answer, pool)
            case "iou":
                iou.read_gold(record.answer, record.box_space)
                iou.box_image(record.metadata, len(record.images))


def _start(
    request: Request, strict: bool, scorer: open_ended.Scorer | open_ended.BatchScorer | None, pool: MathPool | None
) -> Callable[[], Trace]:
    """Starts scoring one completion; the result waits for its trace."""
    began = time.perf_counter()
    with _naming(request.example):
        _check_verifier(request.verifier)
        answer, rule = answer_text(request.completion, strict=strict)
        if answer is None:
            pending = _done(invalid(rule), began)
        elif request.verifier == "math":
            pending = math.submit(answer, request.gold, pool)
        else:
            pending = _done(_judge(request, answer, scorer), began)

    def finish() -> Trace:
        with _naming(request.example):
            verdict, seconds = pending()
        fields = {field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict)}
        return Trace(**fields, extracted=answer, seconds=seconds)

    return finish


def _done(verdict: Verdict, began: float) -> Callable[[], tuple[Verdict, float]]:
    seconds = time.perf_counter() - began
    return lambda: (verdict, seconds)


def _judge(request: Request, answer: str, scorer: open_ended.Scorer | open_ended.BatchScorer | None) -> Verdict:
    example, gold = request.example, request.gold
    match request.verifier:
        case "digit":
            return digit.judge(answer, gold)
        case "mcq":
            return mcq.judge(answer, gold, example.choices if example else ())
        case "iou":
            if example is None:
                raise InputError("the iou verifier needs the record (`example`) for its box_space")
            return iou.judge(answer, gold, example.box_space, request.resizes, example.metadata)
        case _:
            open_ended.require_scorer([request.verifier], scorer)
            if example is None:
                raise InputError("the open_ended verifier needs the record (`example`)")
            if isinstance(scorer, open_ended.BatchScorer):
                return Verdict(valid=True, rule=open_ended.WAITING)
            return open_ended.judge(answer, gold, example, scorer)


def _check_verifier(verifier: str) -> None:
    if verifier not in VERIFIERS:
        raise InputError(f"unknown verifier {verifier!r}, expected one of {', '.join(VERIFIERS)}")


@contextlib.contextmanager
def _naming(record: Record | None) -> Iterator[None]:
    """Puts the record's id before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"record {record.id!r}: {error}" if record else str(error)) from error
