"""Rewards of steps: a judge's scores of them, in a run whose completions have rewards too."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.judge import Question
from vlaa_jax.evaluation.judges.open import Answering
from vlaa_jax.evaluation.judges.open_scorer import open_ready_judge
from vlaa_jax.objectives.process_advantages import process_advantages
from vlaa_jax.processing.records import Record
from vlaa_jax.sharding import own_rows, place_rows
from vlaa_jax.training import settings
from vlaa_jax.training.answers import Judged


class ProcessRewards:
    """Rewards of steps, beside those of whole completions (`objectives.process_advantages`)."""

    def __init__(self, config: ConfigDict, answering: Answering | None = None):
        """Opens the judge that `config.rewards.process` names.

        Raises:
          InputError: it cannot be opened, judges whole answers alone, or fields that do not go together.
        """
        section = config.rewards
        if not section.process_weight > 0:
            raise InputError(f"config.rewards.process_weight is {section.process_weight}: expected a number above 0")
        if section.shuffled:
            raise InputError("config.rewards.shuffled and config.rewards.process exclude each other")
        on_host = settings.on_host(config, "rewards.scorer_memory")
        self._judge = open_ready_judge(section.process, on_host=on_host, answering=answering)
        if self._judge.whole:
            raise InputError(
                f"config.rewards.process is {section.process!r}, which judges whole answers: expected process:DIR"
            )
        self._weight, self._epsilon = section.process_weight, config.objective.advantage_epsilon
        self._new_tokens = config.rollout.new_tokens

    def score(self, judged: Sequence[Judged], records: Sequence[Record]) -> list[Judged]:
        """Groups with the scores of their steps; all processes of a run call this together.

        Args:
          judged: B groups.
          records: theirs.
        """
        found = self._judge(
            [Question(record, tuple(group.texts)) for record, group in zip(records, judged, strict=True)]
        )
        return [
            dataclasses.replace(
                group, step_scores=[of[: len(at)] for of, at in zip(own, group.step_places, strict=True)]
            )
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
        return self._weight * process_advantages(*place_rows((rewards, ends)), epsilon=self._epsilon)


def process_metrics(judged: Sequence[Judged]) -> dict[str, float]:
    """Numbers about the steps of some groups for `metrics.jsonl`."""
    of_completions = [scores for group in judged for scores in group.step_scores]
    scores = np.concatenate(of_completions)
    known = scores[~np.isnan(scores)]
    metrics = {"process/steps": len(scores) / len(of_completions), "process/unread": len(scores) - len(known)}
    if len(known):
        metrics |= {"process/score": float(known.mean()), "process/score_deviation": float(known.std())}
    return metrics
