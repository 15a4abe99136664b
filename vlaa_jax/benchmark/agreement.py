"""Both sides must compute the same before their times are compared."""

import pathlib
from typing import Any

import numpy as np

from vlaa_jax.benchmark.inputs import DRAWN
from vlaa_jax.benchmark.presets import Preset
from vlaa_jax.benchmark.worker import Worker

_GRADIENT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # of the norm


class Disagreement(RuntimeError):
    """The two sides do not compute the same: times would mean nothing."""


def check_prompts(ours: Worker, theirs: Worker) -> None:
    """Raises `Disagreement` unless both sides read the same tokens."""
    if ours.ask("prompt_tokens") != theirs.ask("prompt_tokens"):
        raise Disagreement("the two sides read different prompts")


def check_greedy(ours: Worker, theirs: Worker, preset: Preset) -> str:
    """Greedy completions of both sides.

    Returns:
      A sentence for the report.

    Raises:
      Disagreement: two tokens differ that are not equally likely within the tolerance.
    """
    count = max(preset.sampling_prompts)
    first, second = (
        side.ask("sample", prompts=count, new_tokens=preset.new_tokens, greedy=True) for side in (ours, theirs)
    )
    equal = compare_greedy(first, second, preset.tolerance)
    return f"greedy tokens: {equal} of {count} completions equal, the others to a tie"


def compare_greedy(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> int:
    """Number of equal completions; after a tie the rest of a completion is not compared.

    Args:
      first, second: `tokens` and their `log_probabilities`, `[B][C]` each.
      tolerance: in nats.

    Raises:
      Disagreement: see `check_greedy`.
    """
    equal = 0
    for row, (a, b) in enumerate(zip(first["tokens"], second["tokens"], strict=True)):
        differ = next((c for c, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        stop = len(a) if differ is None else differ + 1
        pairs = zip(first["log_probabilities"][row][:stop], second["log_probabilities"][row][:stop], strict=True)
        apart = max(abs(x - y) for x, y in pairs)
        if not apart <= tolerance:
            raise Disagreement(
                f"greedy completion {row}: log-probabilities up to token {stop - 1} differ by {apart:.2g}, "
                f"at most {tolerance:g} was expected"
            )
        equal += differ is None
    return equal


def check_drawn(folder: pathlib.Path) -> str:
    """Completions of uneven lengths, drawn in segments and in one loop.

    Returns:
      A sentence for the report.

    Raises:
      Disagreement: as `compare_drawn`.
    """
    first, second = (np.load(folder / name) for name in DRAWN.values())
    return f"drawn tokens: {compare_drawn(first, second)} of {len(first)} completions equal, the others to a tie"


def compare_drawn(first: np.ndarray, second: np.ndarray) -> int:
    """Number of equal completions; after a tie the rest of a completion is not compared.

    The product of other rows rounds otherwise. Where the drawn number lies at the edge of a token, its neighbour in the
    vocabulary may then be taken: about once in a thousand tokens, of 151,936 of like probability in float32.

    Args:
      first, second: tokens, `[B * G, C]`.

    Raises:
      Disagreement: two tokens differ that are no neighbours.
    """
    differs = first != second
    for row in np.flatnonzero(differs.any(axis=1)):
        at = differs[row].argmax()
        if abs(int(first[row, at]) - int(second[row, at])) != 1:
            raise Disagreement(
                f"completion {row}: token {at} is {first[row, at]} in segments and {second[row, at]} in one loop, "
                "the same or a neighbour was expected"
            )
    return int((~differs.any(axis=1)).sum())


def check_log_probabilities(ours: Worker, theirs: Worker, folder: pathlib.Path, preset: Preset) -> str:
    """Log-probabilities of the same random tokens; leaves what the update of both sides reads in the folder.

    Returns:
      A sentence for the report.

    Raises:
      Disagreement: they differ by more than the tolerance.
    """
    random = np.random.default_rng(0)
    found = [np.asarray(side.ask("log_probabilities")["log_probabilities"]) for side in (ours, theirs)]
    apart = float(np.abs(found[0] - found[1]).max())
    if not apart <= preset.tolerance:
        raise Disagreement(
            f"log-probabilities of the same tokens differ by {apart:.2g}, at most {preset.tolerance:g} was expected"
        )
    # Some ratios lie outside the clip range.
    np.save(folder / "old.npy", (found[0] + 0.2 * random.standard_normal(found[0].shape)).astype(np.float32))
    rewards = random.standard_normal(preset.group)
    np.save(folder / "advantages.npy", (rewards - rewards.mean()).astype(np.float32))
    return f"log-probabilities of the same tokens differ by at most {apart:.1e}"


def check_update(ours: dict[str, Any], theirs: dict[str, Any], preset: Preset) -> str:
    """Loss and gradient norm of the first update.

    Returns:
      A sentence for the report.

    Raises:
      Disagreement: they differ by more than the tolerance.
    """
    norms = ours["gradient_norm"], theirs["gradient_norm"]
    apart, allowed = abs(norms[0] - norms[1]) / norms[1], _GRADIENT_TOLERANCE[preset.dtype]
    if not (apart <= allowed and abs(ours["loss"] - theirs["loss"]) <= preset.tolerance):
        raise Disagreement(
            f"first update: loss {ours['loss']:.6g} and {theirs['loss']:.6g}, gradient norm {norms[0]:.6g} and "
            f"{norms[1]:.6g}; at most {preset.tolerance:g} and {allowed:g} of the norm were allowed"
        )
    loss = abs(ours["loss"] - theirs["loss"])
    return f"loss of the first update differs by {loss:.1e}, its gradient's norm by {apart:.1e} of itself"
