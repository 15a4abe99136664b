"""Which step of a solution is the first wrong one, exactly: every `Step k:` of a digit scene states a fact of it."""

import collections
from collections.abc import Sequence

import numpy as np

from data_prep.digit_scenes.traces import check_steps
from vlaa_jax.evaluation.best_of_n.answered import Judged
from vlaa_jax.evaluation.judges.judge import Question, unread
from vlaa_jax.evaluation.step_judgement import HALF, first_below, first_wrong_auroc, first_wrong_f1
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.steps import split_steps


def first_wrong_step(record: Record, response: str) -> tuple[list[int], int] | None:
    """The steps of a response that state facts, and which of these is the first wrong one.

    Args:
      record: of a digit scene.
      response: with steps as `steps.split_steps` finds them.

    Returns:
      Places of the steps among all, and the place of the first wrong one among these, -1 for none. None where there is
      no such step, or one of no known form before the first wrong one: nobody knows whether it is true.
    """
    facts = check_steps(record, split_steps(response))
    places = [place for place, own in enumerate(facts) if own]
    for number, place in enumerate(places):
        if False in facts[place]:
            return places, number
        if None in facts[place]:
            return None
    return (places, -1) if places else None


class TrueSteps:
    """A judge that knows which steps are true, and prefers responses that have steps: what judging steps can gain.

    Its score is the share of the stated facts that are true, 0 where none is stated; it does not look at the answer.
    """

    name, whole = "true steps", True

    def __init__(self) -> None:
        self.problems: collections.Counter[str] = collections.Counter()

    def __call__(self, questions: Sequence[Question]) -> list[list[np.ndarray]]:
        return [[self._score(question.record, text) for text in question.responses] for question in questions]

    def _score(self, record: Record, response: str) -> np.ndarray:
        if "glyphs" not in record.metadata:
            self.problems["responses to questions that are no digit scenes"] += 1
            return unread(1)
        facts = [fact is True for step in check_steps(record, split_steps(response)) for fact in step]
        return np.asarray([np.mean(facts) if facts else 0.0])


def step_table(judged: Sequence[Judged]) -> list[Table]:
    """How well judges of steps find the first wrong step; no table where no record is a digit scene."""
    rows = []
    for own in judged:
        scenes = [place for place, question in enumerate(own.questions) if "glyphs" in question.record.metadata]
        truths = {
            (place, text): first_wrong_step(own.questions[place].record, text)
            for place in scenes
            for text in own.questions[place].texts
        }
        for judge, all_scores in own.scores.items():
            if judge in own.whole:
                continue
            scores, first = [], []
            for place in scenes:
                # Of the same text several times only one counts.
                for text, steps in dict(zip(own.questions[place].texts, all_scores[place], strict=False)).items():
                    truth = truths[place, text]
                    if truth is not None and np.isfinite(steps[truth[0]]).all():
                        scores.append(steps[truth[0]])
                        first.append(truth[1])
            if first:
                rows.append([judge, own.model, *_row(scores, first)])
    if not rows:
        return []
    note = (
        "Of all different responses whose steps state checked facts. F1 as in ProcessBench, a step with a score below "
        f"{HALF} being called wrong: of scores in [0, 1] alone. AUROC: a right step against a first wrong one."
    )
    header = ["judge", "responses of", "solutions", "with a wrong step", "F1", "AUROC"]
    return [Table("The first wrong step", header, rows, note)]


def _row(scores: Sequence[np.ndarray], first: Sequence[int]) -> list[str]:
    counts = collections.Counter(place >= 0 for place in first)
    shares = all(((0 <= own) & (own <= 1)).all() for own in scores)
    f1 = first_wrong_f1([first_below(own, HALF) for own in scores], first).get("f1") if shares else None
    area = first_wrong_auroc(scores, first)
    numbers = ["-" if number is None else f"{number:.3f}" for number in (f1, area)]
    return [str(len(first)), str(counts[True]), *numbers]
