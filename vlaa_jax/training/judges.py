"""Judges in a GRPO run: one as the scorer of open-ended answers, one whose step scores are rewards of their own."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.judge import Judge, Question
from vlaa_jax.evaluation.judges.open import open_judge
from vlaa_jax.evaluation.judges.rubric import Ask
from vlaa_jax.evaluation.judges.scorer import PAIRS, FromFirst, FromHost, JudgeScorer, fit_beta
from vlaa_jax.evaluation.judges.spec import HEADS, LIKELIHOOD, RUBRIC
from vlaa_jax.objectives.process_advantages import process_advantages
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.records import VERIFIERS, Record
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rewards import BatchScorer, Scorer, load_scorer
from vlaa_jax.sharding import own_rows, place_rows
from vlaa_jax.training import settings
from vlaa_jax.training.answers import Judged

Answering = Callable[[str], Ask]
_DRAWN_PAIRS = 3  # a seed beside those of `grpo_task`


def open_scorer(config: ConfigDict, answering: Answering | None = None) -> Scorer | BatchScorer | None:
    """What `config.rewards.scorer` names: a judge, a class, or nothing.

    Args:
      config: of the run.
      answering: see `open_judge`.

    Raises:
      InputError: it cannot be opened, or `config.rewards.scorer_beta` is negative.
    """
    section = config.rewards
    if not section.scorer_beta >= 0:
        raise InputError(f"config.rewards.scorer_beta is {section.scorer_beta}: expected a number above 0, or 0")
    if not section.scorer:
        return None
    if section.scorer.partition(":")[0] in (*HEADS, LIKELIHOOD, RUBRIC):
        # A head's logit has no bounds where its sigmoid saturates: answers that are all good stay apart.
        return JudgeScorer(_open(config, section.scorer, answering, logits=True))
    scorer = load_scorer(section.scorer)
    if section.scorer_beta:
        scorer.beta = section.scorer_beta
    return scorer


def settled_beta(config: ConfigDict, scorer: JudgeScorer, source: RecordSource, index: Index) -> float:
    """`config.rewards.scorer_beta`, or the one that fits the scorer; all processes of a run call this together.

    Args:
      config: of the run.
      scorer: a judge.
      source, index: the training shards, of which `PAIRS` open-ended records are drawn by seed.

    Raises:
      InputError: as `fit_beta`.
    """
    if config.rewards.scorer_beta:
        return config.rewards.scorer_beta
    places = index.good[index.verifier[index.good] == VERIFIERS.index("open_ended")]
    places = np.random.default_rng([config.seed, _DRAWN_PAIRS]).permutation(places)[:PAIRS]
    fit = fit_beta(scorer, distributed.together(lambda: [source[place] for place in places]))
    if distributed.is_first():
        print(
            f"scorer {scorer.name}: beta {fit.beta:.4g}, so that the median difference of two answers, {fit.median:.4g} "
            f"over {fit.pairs} pairs, gives a reward of 0.5",
            flush=True,
        )
    return fit.beta


class ProcessRewards:
    """Rewards of steps, beside those of whole completions (`objectives.process_advantages`)."""

    def __init__(self, config: ConfigDict, answering: Answering | None = None):
        """Opens the judge that `config.rewards.process` names.

        Raises:
          InputError: it cannot be opened, judges whole answers alone, or fields that do not go together.
        """
        name, self.weight = config.rewards.process, config.rewards.process_weight
        if not self.weight > 0:
            raise InputError(f"config.rewards.process_weight is {self.weight}: expected a number above 0")
        if config.rewards.shuffled:
            raise InputError("config.rewards.shuffled and config.rewards.process exclude each other")
        self._judge = _open(config, name, answering, logits=False)
        if self._judge.whole:
            raise InputError(f"config.rewards.process is {name!r}, which judges whole answers: expected process:DIR")
        self._new_tokens = config.rollout.new_tokens
        self._epsilon = config.objective.advantage_epsilon

    def score(self, judged: Sequence[Judged], records: Sequence[Record]) -> list[Judged]:
        """Groups with the scores of their steps; all processes of a run call this together.

        Args:
          judged: B groups.
          records: theirs.
        """
        questions = [Question(record, tuple(group.texts)) for record, group in zip(records, judged, strict=True)]
        found = self._judge(questions)
        return [
            dataclasses.replace(group, step_scores=[of[: len(at)] for of, at in zip(own, group.step_places, strict=True)])
            for group, own in zip(judged, found, strict=True)
        ]

    def advantages(self, judged: Sequence[Judged]) -> jax.Array:
        """`[B, G, C]`, weighted; all processes of a run call this together.

        Args:
          judged: B groups with scores; a step whose score is NaN counts as part of the next one, and of two that one
            token ends, the first does.
        """
        own = own_rows(len(judged))
        rewards = np.zeros((len(own), len(judged[0].texts), self._new_tokens), np.float32)
        ends = np.zeros(rewards.shape, bool)
        for b, row in enumerate(own):
            for g, (scores, places) in enumerate(zip(judged[row].step_scores, judged[row].step_places, strict=True)):
                known = ~np.isnan(scores)
                rewards[b, g, places[known]], ends[b, g, places[known]] = scores[known], True
        return self.weight * process_advantages(*place_rows((rewards, ends)), epsilon=self._epsilon)


def process_metrics(judged: Sequence[Judged]) -> dict[str, float]:
    """Numbers about the steps of some groups for `metrics.jsonl`."""
    of_completions = [scores for group in judged for scores in group.step_scores]
    scores = np.concatenate(of_completions)
    known = scores[~np.isnan(scores)]
    metrics = {"process/steps": len(scores) / len(of_completions), "process/unread": len(scores) - len(known)}
    if len(known):
        metrics |= {"process/score": float(known.mean()), "process/score_deviation": float(known.std())}
    return metrics


def _open(config: ConfigDict, name: str, answering: Answering | None, *, logits: bool) -> Judge:
    judge = open_judge(name, answering=answering, logits=logits)
    if not hasattr(judge, "model"):
        return FromFirst(judge)
    return FromHost(judge) if settings.on_host(config, "rewards.scorer_memory") else judge
