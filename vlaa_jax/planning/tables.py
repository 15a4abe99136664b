"""The plan of a run as one table."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from vlaa_jax.evaluation.tables import Table
from vlaa_jax.models.qwen2_5_vl import ModelConfig
from vlaa_jax.planning.chips import GIB
from vlaa_jax.planning.judge_programs import is_planned
from vlaa_jax.planning.plan import ROOM, Row
from vlaa_jax.training.batch_sizes import longest_prompt, most_windows

_HEADER = (
    *("program", "runs", "HBM GiB", "resident", "temporary", "fits", "TFLOP", "HBM GB", "sent GB"),
    *("s overlapped", "s summed", "% of peak", "bound by"),
)


_UNITS = {"grpo": "a step", "search": "the search of the questions that are together on the chips"}


def heading(config: ConfigDict, sizes: ModelConfig) -> str:
    """The sizes at which the programs are compiled, in one or two lines."""
    unit = sizes.vision.window_slots // sizes.vision.merge**2
    if config.task == "search":
        rollout, section = config.rollout, config.search
        return (
            f"max_pixels {config.data.max_pixels:,}; {rollout.questions} questions of {longest_prompt(config):,} "
            f"tokens with {most_windows(config)} windows ({most_windows(config) * unit:,} image tokens) at once; "
            f"{section.simulations} times {section.rollouts} rollouts of {rollout.new_tokens:,} tokens behind partial "
            f"solutions of {max(rollout.process_buckets):,}"
        )
    tower = "frozen" if config.model.freeze_vision else "trained"
    section = config.updates
    if config.task == "prm":
        return (
            f"vision tower {tower}, max_pixels {config.data.max_pixels:,}; {section.rows} rows of "
            f"{section.longest_row:,} tokens and {section.most_windows} windows ({section.most_windows * unit:,} image "
            f"tokens) a micro-batch; in a row up to {section.row_solutions} solutions of {section.longest_solution:,} "
            f"tokens and {section.most_steps} steps"
        )
    if config.task == "sft":
        return (
            f"vision tower {tower}, max_pixels {config.data.max_pixels:,}; {section.rows} rows of "
            f"{section.row_tokens:,} tokens, {section.row_targets:,} targets and {section.row_windows} windows "
            f"({section.row_windows * unit:,} image tokens) a micro-batch"
        )
    rollout = config.rollout
    batch = min(rollout.batch, rollout.prompts)
    in_row = section.row_completions or rollout.group_size
    judges = {field: config.rewards[field] for field in ("scorer", "process") if config.rewards[field]}
    elsewhere = [f"config.rewards.{field}={name}" for field, name in judges.items() if not is_planned(name)]
    return (
        f"vision tower {tower}, max_pixels {config.data.max_pixels:,}; prompts of {longest_prompt(config):,} "
        f"tokens with {most_windows(config)} windows ({most_windows(config) * unit:,} image tokens), "
        f"groups of {rollout.group_size}, {rollout.new_tokens:,} new tokens\n"
        f"{batch} of {rollout.prompts} prompts answered at once; updates of {section.completions} completions "
        f"in micro-batches of {section.micro_batch} groups, {in_row} completions a row"
        + (f"\nnot planned: {', '.join(elsewhere)}" if elsewhere else "")
    )


def table(rows: Sequence[Row], *, task: str) -> Table:
    """A row for each program, all of one chip."""
    cells = [
        [
            row.program,
            str(row.runs),
            f"{row.hbm_bytes / GIB:.2f}",
            f"{row.resident_bytes / GIB:.2f}",
            f"{row.temporary_bytes / GIB:.2f}",
            "yes" if row.fits else "NO",
            *(_work(row) if row.seconds_summed else ("",) * 6),  # of what the compiler refused nothing is known
            row.bound_by,
        ]
        for row in rows
    ]
    overlapped, summed, compiling = (
        sum(seconds)
        for seconds in zip(
            *((row.runs * row.seconds_overlapped, row.runs * row.seconds_summed, row.compile_seconds) for row in rows),
            strict=True,
        )
    )
    unit = _UNITS.get(task, "a micro-batch and its update")
    note = (
        f"Of one chip and one run of each program; it fits up to {ROOM:.0%} of {rows[0].hbm_capacity_bytes / GIB:.2f} "
        f"GiB. Seconds are bounds of a model (vlaa_jax/planning/cost.py), no timings: {unit} takes {overlapped:.3g} s "
        f"where everything overlaps, {summed:.3g} s where nothing does. Compiled in {compiling:.0f} s."
    )
    return Table("", _HEADER, cells, note)


def _work(row: Row) -> tuple[str, ...]:
    return (
        f"{row.flops / 1e12:.1f}",
        f"{row.hbm_traffic_bytes / 1e9:.1f}",
        f"{sum(kind['bytes'] for kind in row.collectives.values()) / 1e9:.2f}",
        f"{row.seconds_overlapped:.3g}",
        f"{row.seconds_summed:.3g}",
        f"{100 * row.share_of_peak:.0f}" if row.share_of_peak else "",
    )
