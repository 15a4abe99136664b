"""How the rows of a step are dealt out: the config's numbers, checked against each other and the chips."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.shared_prompt import ROW_MULTIPLE, longest_row
from vlaa_jax.processing.buckets import ladder


@dataclasses.dataclass(frozen=True)
class GRPOSizes:
    """Counts of a GRPO step.

    Attributes:
      updates: optimizer updates of one pass over the step's completions.
      groups: of an update.
      parts: rows that a group is split over in an update.
      batch: prompts that are answered at once.
    """

    updates: int
    groups: int
    parts: int
    batch: int


def grpo_sizes(config: ConfigDict, shards: int) -> GRPOSizes:
    """Those of a run on `shards` parts of the mesh (`sharding.row_shards`).

    Raises:
      InputError: numbers that do not divide; names the nearest that does.
    """
    rollout, section = config.rollout, config.updates
    prompts, group = rollout.prompts, rollout.group_size
    samples = prompts * group
    _expect(
        "updates.completions",
        section.completions,
        (size for size in range(group, samples + 1, group) if samples % size == 0),
        f"whole groups of {group} that divide a step's {samples}",
    )
    _expect(
        "rollout.batch",
        min(rollout.batch, prompts),
        rollout_batches(config, shards),
        f"prompts that divide a step's {prompts}, a multiple of the {shards} parts of the mesh",
    )
    in_row = section.row_completions or group
    _expect(
        "updates.row_completions",
        in_row,
        (size for size in range(1, group + 1) if group % size == 0),
        f"a divisor of the group size {group}",
    )
    groups, parts = section.completions // group, group // in_row
    _expect(
        "updates.micro_batch",
        section.micro_batch,
        micro_batches(config, shards),
        f"groups that divide an update's {groups}, of which the {parts} row(s) each fill the {shards} parts of the "
        "mesh evenly (config.updates.row_completions splits a group over more rows)",
    )
    longest = longest_update_row(config, longest_prompt(config))
    if section.row_buckets and max(section.row_buckets) < longest:
        raise InputError(
            f"config.updates.row_buckets is {tuple(section.row_buckets)}: expected one of at least {longest}, for the "
            f"longest prompt and {in_row} completion(s) of config.rollout.new_tokens ({rollout.new_tokens})"
        )
    return GRPOSizes(samples // section.completions, groups, parts, min(rollout.batch, prompts))


def longest_prompt(config: ConfigDict) -> int:
    """Tokens of the longest prompt that a run takes."""
    return max(config.rollout.prompt_buckets or (config.rollout.longest_prompt,))


def most_windows(config: ConfigDict) -> int:
    """Windows of the largest images that a run takes."""
    return max(config.rollout.window_buckets or (config.rollout.most_windows,))


def longest_update_row(config: ConfigDict, prompt: int) -> int:
    """Tokens that the largest row of an update needs, behind a prompt of so many."""
    completions = config.updates.row_completions or config.rollout.group_size
    return longest_row(prompt, completions, config.rollout.new_tokens)


def row_buckets(config: ConfigDict, prompts: np.ndarray) -> tuple[int, ...]:
    """Lengths of an update's rows: `config.updates.row_buckets`, or a ladder where that is empty.

    Args:
      config: of the run.
      prompts: tokens of every prompt that it may draw.
    """
    section = config.updates
    if section.row_buckets:
        return tuple(section.row_buckets)
    largest = longest_update_row(config, int(prompts.max()))
    return ladder(int(prompts.min()) + 1, largest, section.most_row_buckets, multiple=ROW_MULTIPLE)


def rollout_batches(config: ConfigDict, shards: int) -> list[int]:
    """Values that `config.rollout.batch` may have."""
    prompts = config.rollout.prompts
    return [size for size in range(shards, prompts + 1, shards) if prompts % size == 0]


def micro_batches(config: ConfigDict, shards: int) -> list[int]:
    """Values that `config.updates.micro_batch` may have."""
    group = config.rollout.group_size
    groups, parts = config.updates.completions // group, group // (config.updates.row_completions or group)
    return [size for size in range(1, groups + 1) if groups % size == 0 and size * parts % shards == 0]


def check_rows(config: ConfigDict, shards: int) -> None:
    """As `grpo_sizes`, of the rows of a micro-batch."""
    rows = config.updates.rows
    _expect("updates.rows", rows, (max(1, rows // shards) * shards,), f"a multiple of the {shards} parts of the mesh")


def _expect(field: str, value: int, fitting: Iterable[int], what: str) -> None:
    fitting = list(fitting)
    if value not in fitting:
        nearest = min(fitting, key=lambda size: (abs(size - value), size), default=None)
        hint = "no number works" if nearest is None else f"nearest {nearest}"
        raise InputError(f"config.{field} is {value}: expected {what}; {hint}")
