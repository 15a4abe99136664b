"""The figures as tables for a terminal."""

from collections.abc import Sequence

from vlaa_jax.benchmark.alternation import FOREIGN_LIMIT, Measured
from vlaa_jax.benchmark.bounds import Limits
from vlaa_jax.benchmark.measure import Row
from vlaa_jax.evaluation.tables import Table

_OTHER = {"step": "TRL", "lengths": "one loop"}
_HEADER = ("side", "seconds", "CPU s", "tokens/s", "peak GiB", "clean runs", "ratio", "of the limit")


def limits_table(limits: Limits, rates: dict[str, float]) -> Table:
    """The machine's own rates."""
    rows = [
        (name, f"{rates[f'matrix_rate_{side}'] / 1e9:.1f}", f"{rates[f'bandwidth_{side}'] / 1e9:.1f}")
        for name, side in (("ours", "ours"), ("transformers", "theirs"))
    ]
    rows.append(("limit", f"{limits.matrix_rate / 1e9:.1f}", f"{limits.bandwidth / 1e9:.1f}"))
    return Table("The machine", ("measured by", "GFLOP/s", "GB/s"), rows)


def row_table(row: Row) -> Table:
    """One comparison, with what was found beside it."""
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    rows = [
        _side("ours", row.ours, row.amount, f"{row.ratio:.2f}", share),
        _side(_OTHER.get(row.part, "transformers"), row.theirs, row.amount, "1", ""),
    ]
    notes = [*row.notes, *_found(row)]
    if not _all_clean(row):
        notes.append(f"NOT CLEAN: in some runs others took more than {100 * FOREIGN_LIMIT:.0f} % of the machine")
    return Table(row.name, _HEADER, rows, "\n".join(notes))


def _side(name: str, measured: Measured, amount: float, ratio: str, share: str) -> Sequence[str]:
    return (
        name,
        f"{measured.seconds:.3f}",
        f"{measured.cpu_seconds:.3f}",
        f"{amount / measured.seconds:.1f}",
        f"{max(run.result['peak_bytes'] for run in measured.runs) / 2**30:.2f}",
        f"{measured.clean} of {len(measured.runs)}",
        ratio,
        share,
    )


def _found(row: Row) -> list[str]:
    figures = row.figures
    if row.part == "sampling":
        return [
            f"before the first token: ours {figures['prefill_seconds_ours']:.3f} s, "
            f"transformers {figures['prefill_seconds_theirs']:.3f} s",
            f"a decode step: ours {1e3 * figures['decode_step_seconds_ours']:.2f} ms, "
            f"transformers {1e3 * figures['decode_step_seconds_theirs']:.2f} ms "
            f"({figures['decode_step_ratio']:.2f} times), "
            f"the machine's limit {1e3 * figures['decode_step_floor_seconds']:.2f} ms",
        ]
    if row.part == "lengths":
        return [
            f"{figures['mean_length']:.1f} a completion, {figures['longest_ours']:.0f} the longest; steps "
            f"that gave no token: ours {100 * figures['wasted_ours']:.0f} %, one loop "
            f"{100 * figures['wasted_theirs']:.0f} %"
        ]
    if row.part == "update":
        return [
            f"bound of the ratio: {figures['flop_ratio']:.2f} of FLOPs x {figures['matrix_rate_ratio']:.2f} of matrix "
            f"rates = {figures['ratio_bound']:.2f}; reached {100 * figures['share_of_ratio_bound']:.0f} % of it"
        ]
    phases = ", ".join(f"{name.removeprefix('ours_seconds_')} {value:.3f} s" for name, value in figures.items())
    return [f"ours: {phases}"]


def _all_clean(row: Row) -> bool:
    return all(side.clean == len(side.runs) for side in (row.ours, row.theirs))
