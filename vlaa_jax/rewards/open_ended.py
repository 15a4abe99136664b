"""The open-ended verifier: how much better than the reference a scorer finds the answer.

    R = 1 - exp(-beta * (S(answer) - S(reference)))   if S(answer) > S(reference), else 0

(VLAA-Thinking, section 4.1.) The paper does not state beta. It belongs to the scorer, because it depends on the range
of S: 0.2 for unbounded logits in the public code that the paper builds on.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vlaa_jax.errors import InputError
from vlaa_jax.named_class import make_named
from vlaa_jax.rewards.verdict import Verdict

if TYPE_CHECKING:
    from vlaa_jax.processing.records import Record


WAITING = "waiting"  # rule of a verdict that is still to come


class Scorer(Protocol):
    """Judges one answer by itself; it never sees the reference.

    Attributes:
      beta: steepness of the reward, above 0.
      scale: the range of S in words, for reports ("facts, about -3 to 8").
    """

    beta: float
    scale: str

    def __call__(self, example: Record, answer: str) -> float:
        """S of the answer to the example's question: finite, higher is better. The same inputs give the same number."""


@runtime_checkable
class BatchScorer(Protocol):
    """Judges many answers at once, as a model on the chips does; it never sees the reference as such.

    While a rollout runs nobody may use the chips, so `router.score_many` leaves its answers waiting and
    `router.score_waiting` has them scored together. All processes of a run call it with the same answers.

    Attributes:
      beta, scale: as of `Scorer`.
      references: S of the references scored so far. A run keeps them in its checkpoints: scored again among other
        answers they could differ by a rounding.
    """

    beta: float
    scale: str
    references: dict[str, float]

    def score_batch(self, questions: Sequence[tuple[Record, Sequence[str]]]) -> list[list[float]]:
        """S of the answers to each question; NaN for one that could not be judged."""


def load_scorer(name: str) -> Scorer:
    """Makes the scorer `package.module:ClassName`, called without arguments. Raises InputError."""
    scorer = make_named(name, "scorer")
    _check(scorer, name)
    return scorer


def require_scorer(verifiers: Iterable[str], scorer: Scorer | None) -> None:
    """Raises InputError when open-ended records are to be scored and nothing can score them."""
    if scorer is None and "open_ended" in set(verifiers):
        raise InputError(
            "open-ended records need a scorer; either set config.rewards.scorer to 'package.module:ClassName' or to a "
            "judge ('process:DIR', 'outcome:DIR', 'rubric:MODEL'), or train on rule-based records only (preset suffix "
            "',rules')"
        )


def judge(answer: str, reference: str, example: Record, scorer: Scorer) -> Verdict:
    """The reward above. The reference is scored once per record and scorer."""
    _check(scorer, type(scorer).__name__)
    known = _references(scorer)
    key = (example.id, hashlib.sha256(reference.encode()).digest())
    if key not in known:
        known[key] = _score(scorer, example, reference)
    return _verdict(_score(scorer, example, answer), known[key], scorer.beta)


def judge_together(asked: Sequence[tuple[Record, Sequence[str]]], scorer: BatchScorer) -> list[list[Verdict]]:
    """`judge` of many answers at once; a record's gold answer is the reference.

    A text is scored once a record: answers that say the same have the same reward, the reference's own text has none.

    Args:
      asked: records with their answers; one with the same id and reference may come twice.
      scorer: whose `references` are read and added to.
    """
    _check_beta(scorer, type(scorer).__name__)
    records = {_reference_key(record): record for record, _ in asked}
    scores: dict[str, dict[str, float]] = {key: {} for key in records}  # by record, then by text
    for record, answers in asked:
        scores[_reference_key(record)] |= dict.fromkeys((record.answer, *answers), math.nan)
    for key, record in records.items():
        if key in scorer.references:
            del scores[key][record.answer]
    unknown = {key: texts for key, texts in scores.items() if texts}
    values = scorer.score_batch([(records[key], list(texts)) for key, texts in unknown.items()]) if unknown else []
    for texts, found in zip(unknown.values(), values, strict=True):
        texts |= zip(texts, map(float, found), strict=True)
    for key, record in records.items():
        reference = scores[key].setdefault(record.answer, scorer.references.get(key, math.nan))
        if not math.isnan(reference):
            scorer.references[key] = reference

    def verdicts(record: Record, answers: Sequence[str]) -> list[Verdict]:
        texts = scores[_reference_key(record)]
        return [_verdict(texts[answer], texts[record.answer], scorer.beta) for answer in answers]

    return [verdicts(record, answers) for record, answers in asked]


def _verdict(ours: float, theirs: float, beta: float) -> Verdict:
    """Of an answer with score `ours`; NaN is one that could not be judged."""
    better = ours > theirs
    unread = math.isnan(ours) or math.isnan(theirs)
    return Verdict(
        valid=True,
        normal_form=f"{ours:.6g} against {theirs:.6g}",
        rule="unread" if unread else "better" if better else "not_better",
        score=1 - math.exp(-beta * (ours - theirs)) if better else 0.0,
    )


def _reference_key(record: Record) -> str:
    """64 bits of a record's id and reference, in hexadecimal."""
    return hashlib.sha256(f"{record.id}\0{record.answer}".encode()).hexdigest()[:16]


def _check(scorer: Scorer, name: str) -> None:
    _check_beta(scorer, name)
    if not callable(scorer):
        raise InputError(f"scorer {name!r} cannot be called with (example, answer)")


def _check_beta(scorer: Scorer | BatchScorer, name: str) -> None:
    beta = getattr(scorer, "beta", None)
    if not isinstance(beta, int | float) or not math.isfinite(beta) or beta <= 0:
        raise InputError(f"scorer {name!r}: beta is {beta!r}, expected a finite number above 0")
    if not isinstance(getattr(scorer, "scale", None), str):
        raise InputError(f"scorer {name!r}: scale must say the range of its scores in words")


def _score(scorer: Scorer, example: Record, answer: str) -> float:
    value = float(scorer(example, answer))
    if not math.isfinite(value):
        raise InputError(f"scorer {type(scorer).__name__} gave {value} for {answer[:80]!r}, expected a finite number")
    return value


_known: dict[int, dict[tuple[str, bytes], float]] = {}


def _references(scorer: Scorer) -> dict[tuple[str, bytes], float]:
    """S of each reference, by (record id, hash of its text); forgotten together with the scorer."""
    if id(scorer) not in _known:
        _known[id(scorer)] = {}
        weakref.finalize(scorer, _known.pop, id(scorer))
    return _known[id(scorer)]
