"""What the completions of a step say: their verdicts in numbers, and as rows of `samples.jsonl`."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlaa_jax.rewards import Trace, accuracy
from vlaa_jax.training.run_folder import trace_fields

# Phrases whose share VLAA-Thinking counts (section 4.4, figure 7).
AHA_PHRASES = ("alternatively", "double-check", "i should check", "wait")
_FIRST_STEP = re.compile(r"^\s*Step 1:", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A prompt of a step with its group, on the host.

    Attributes:
      draw: its number in the stream.
      id, verifier, gold: of its record.
      texts: G completions.
      traces: G verdicts.
      lengths, ended: `[G]` of `Completions`.
      step_places: G places `[S]` of the steps' last tokens (`processing.step_places`), where steps have rewards.
      step_scores: G scores `[S]` of the steps, NaN for what could not be judged; empty until they are judged.
    """

    draw: int
    id: str
    verifier: str
    gold: str
    texts: list[str]
    traces: list[Trace]
    lengths: np.ndarray
    ended: np.ndarray
    step_places: Sequence[np.ndarray] = ()
    step_scores: Sequence[np.ndarray] = ()


def scores(judged: Sequence[Judged]) -> np.ndarray:
    """Rewards `[B, G]` of B groups."""
    return np.asarray([[trace.score for trace in group.traces] for group in judged], np.float32)


def answer_metrics(judged: Sequence[Judged]) -> dict[str, float]:
    """Numbers of some groups for `metrics.jsonl`, of all and by verifier; a kind without examples has none."""
    rewards = scores(judged)
    lengths, ended = np.stack([group.lengths for group in judged]), np.stack([group.ended for group in judged])
    by_kind: dict[str, list[tuple[str, Trace]]] = collections.defaultdict(list)
    for group in judged:
        for suffix in ("", f"/{group.verifier}"):
            by_kind[suffix] += [(group.verifier, trace) for trace in group.traces]
    metrics = {}
    for suffix, verdicts in by_kind.items():
        valid = [trace.score for _, trace in verdicts if trace.valid]
        metrics[f"reward{suffix}"] = float(np.mean([trace.score for _, trace in verdicts]))
        metrics[f"accuracy{suffix}"] = float(np.mean([accuracy(trace, kind) for kind, trace in verdicts]))
        metrics[f"valid{suffix}"] = len(valid) / len(verdicts)
        if valid:
            metrics[f"reward_if_valid{suffix}"] = float(np.mean(valid))
    flat = [trace for group in judged for trace in group.traces]
    texts = [text for group in judged for text in group.texts]
    metrics["reward_deviation"] = float(rewards.std(axis=1).mean())
    metrics["groups_without_signal"] = float((rewards.max(axis=1) == rewards.min(axis=1)).mean())
    metrics["box_space_suspect"] = sum(trace.box_space_suspect for trace in flat)
    metrics["verifier_timeouts"] = sum(trace.rule == "timeout" for trace in flat)
    metrics["length"] = float(lengths.mean())
    metrics["length/min"], metrics["length/max"] = int(lengths.min()), int(lengths.max())
    metrics["truncated"] = float(1 - ended.mean())
    lowered = [text.lower() for text in texts]
    for phrase in AHA_PHRASES:
        metrics[f"aha/{phrase.replace(' ', '_')}"] = sum(phrase in text for text in lowered)
    metrics["in_steps"] = float(np.mean([bool(_FIRST_STEP.search(text)) for text in texts]))
    return metrics


def sample_rows(judged: Sequence[Judged], advantage: np.ndarray) -> list[Mapping[str, Any]]:
    """A row a completion for `samples.jsonl`.

    Args:
      judged: B groups.
      advantage: `[B, G]`; of `[B, G, C]` the first token's is shown.
    """
    if advantage.ndim == 3:
        advantage = advantage[..., 0]
    return [
        {
            "id": group.id,
            "draw": group.draw,
            "sample": g,
            "verifier": group.verifier,
            "gold": group.gold,
            "completion": text,
            "length": int(group.lengths[g]),
            "truncated": not bool(group.ended[g]),
            "advantage": float(advantage[b, g]),
            **trace_fields(group.traces[g]),
            **({"step_scores": _numbers(group.step_scores[g])} if group.step_scores else {}),
        }
        for b, group in enumerate(judged)
        for g, text in enumerate(group.texts)
    ]


def _numbers(values: np.ndarray) -> list[float | None]:
    """For JSON, which has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]
