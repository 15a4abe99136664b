"""From a scorer's name in a config or on a command line to the scorer, and its beta from records."""

import math
from collections.abc import Sequence

import numpy as np

from vlaa_jax import distributed
from vlaa_jax.evaluation.judges.judge import Judge
from vlaa_jax.evaluation.judges.open import Answering, open_judge
from vlaa_jax.evaluation.judges.scorer import PAIRS, FromFirst, FromHost, JudgeScorer, fit_beta
from vlaa_jax.evaluation.judges.spec import CLASS, HEADS, LIKELIHOOD, RUBRIC
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rewards import BatchScorer, Scorer, load_scorer

_DRAWN_PAIRS = 3, 1  # beside the seed; no epoch of a run and no step has these numbers


def open_scorer(
    name: str, *, beta: float = 0.0, on_host: bool = False, answering: Answering | None = None
) -> Scorer | BatchScorer:
    """Opens a scorer.

    Args:
      name: of a judge (`spec.SPECS`), or `package.module:Class`.
      beta: steepness of the reward; 0 is a class's own, a judge's is to be set by `settle_beta`.
      on_host: whether a judge's weights wait in the host's memory between uses.
      answering: see `open_judge`.

    Raises:
      InputError: it cannot be opened.
    """
    if name.partition(":")[0] in (*HEADS, LIKELIHOOD, RUBRIC, CLASS):
        # Of a head the logit: answers that are all good stay apart where sigmoids are all near 1.
        scorer = JudgeScorer(open_ready_judge(name, on_host=on_host, answering=answering, logits=True))
    else:
        scorer = load_scorer(name)
    if beta:
        scorer.beta = beta
    return scorer


def open_ready_judge(name: str, *, on_host: bool, answering: Answering | None, logits: bool = False) -> Judge:
    """`open_judge`, to be called by all processes of a run together, between other work of the chips."""
    judge = open_judge(name, answering=answering, logits=logits)
    if not hasattr(judge, "model"):
        return FromFirst(judge)
    return FromHost(judge) if on_host else judge


def settle_beta(scorer: JudgeScorer, source: RecordSource, places: Sequence[int], *, seed: int) -> None:
    """Sets the beta that fits the scorer, unless it has one; all processes of a run call this together.

    Args:
      scorer: a judge.
      source: shards.
      places: of open-ended records, of which `PAIRS` are drawn.
      seed: of the draw.

    Raises:
      InputError: as `fit_beta`.
    """
    if not math.isnan(scorer.beta):
        return
    drawn = np.random.default_rng([seed, *_DRAWN_PAIRS]).permutation(places)[:PAIRS].tolist()
    fit = fit_beta(scorer, distributed.together(lambda: [source[place] for place in drawn]))
    scorer.beta = fit.beta
    if distributed.is_first():
        print(f"scorer {scorer.name}: {fit}", flush=True)
