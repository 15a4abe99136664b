"""Judges at work on many questions: pictures are read when they are needed, progress is shown."""

import sys
from collections.abc import Callable, Sequence

import numpy as np
import tqdm

from vlaa_jax.evaluation.best_of_n.answered import Answered
from vlaa_jax.evaluation.judges.judge import Judge, Question
from vlaa_jax.processing.records import Record

_AT_ONCE = 128  # questions whose pictures are in memory


def judge_responses(
    judge: Judge, questions: Sequence[Answered], read: Callable[[int], Record], most: int
) -> list[list[np.ndarray]]:
    """Step scores of the first responses of every question.

    Args:
      judge: any.
      questions: Q.
      read: the record of a question, with its images.
      most: responses of a question that are judged.
    """
    scores: list[list[np.ndarray]] = []
    starts = range(0, len(questions), _AT_ONCE)
    for start in tqdm.tqdm(starts, desc=f"judging by {judge.name}", leave=False, disable=None):
        places = range(start, min(start + _AT_ONCE, len(questions)))
        scores += judge([Question(read(place), questions[place].texts[:most]) for place in places])
        if not sys.stderr.isatty():  # a log gets a line in place of the bar
            print(f"{judge.name}: {len(scores)} of {len(questions)} questions", file=sys.stderr, flush=True)
    return scores
