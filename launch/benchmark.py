"""Measures sampling, update and the whole step against transformers and TRL on the same weights and prompts, and
sampling of uneven lengths against a loop that waits for the longest.

python launch/benchmark.py                                 the CPU figures of the README: about half an hour
python launch/benchmark.py --preset=gpu --json=gpu.json    3B with random weights on one GPU
python launch/benchmark.py --preset=tiny                   the same commands in a minute, to see that they run

It needs torch, transformers and TRL: pip install -e '.[test]'. Run it on an idle machine: a run in which others took
over 3 % of the CPU time is repeated, and a figure without clean runs says so.
"""

import argparse
import json
import pathlib
import runpy
import sys
import tempfile
import time

from vlaa_jax.errors import InputError, check_output, run_command

_RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "grpo_mixed.py"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line and checks what can be checked at once."""
    from vlaa_jax.benchmark import presets

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu", help=f"sizes: {', '.join(presets.PRESETS)} (default: %(default)s)")
    parser.add_argument("--parts", default="", metavar="NAME,...", help=f"of {', '.join(presets.PARTS)}")
    parser.add_argument("--runs", type=int, default=5, help="of each side, alternating (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="at most of a run that others disturbed (default: %(default)s)"
    )
    parser.add_argument("--new-tokens", type=int, default=0, help="of a completion; by default the preset's")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where the figures are written")
    options = parser.parse_args(arguments)
    for name, least in (("runs", 1), ("repeats", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} is {getattr(options, name)}: expected {least} or more")
    preset = presets.find(options.preset, options.new_tokens)
    options.parts = presets.find_parts(options.parts, preset.parts)
    check_output("--json", options.json)
    return options


def main() -> None:
    options = parse()

    from data_prep.digit_scenes import demo
    from vlaa_jax.benchmark import measure, presets, report
    from vlaa_jax.benchmark.alternation import Alternation
    from vlaa_jax.evaluation.tables import text_table

    preset = presets.find(options.preset, options.new_tokens)
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    how = Alternation(options.runs, options.repeats, say)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        say("writing weights and prompts")
        measure.prepare(
            folder,
            preset,
            name=options.preset,
            new_tokens=options.new_tokens,
            recipe=json.dumps(runpy.run_path(str(_RECIPE))["get_config"]("demo").to_dict()),
            tokenizer=str(demo.SHIPPED_POLICY),
        )
        limits, rates, described = measure.measure_limits(folder, preset, how)
        for side in described.values():
            print(f"{side['version']} on {side['device']}")
        print(f"\n{text_table(report.limits_table(limits, rates))}", flush=True)
        rows = []
        parts = {
            "sampling": lambda: measure.sampling(folder, preset, limits, how),
            "lengths": lambda: measure.lengths(folder, preset, how),
            "update": lambda: measure.update(folder, preset, limits, rates, how),
            "step": lambda: measure.step(folder, preset, how),
        }
        for part in options.parts:
            for row in parts[part]():
                rows.append(row)
                print(f"\n{text_table(report.row_table(row))}", flush=True)
    if options.json:
        figures = {
            "preset": options.preset,
            "new_tokens": preset.new_tokens,
            "runs": options.runs,
            "date": time.strftime("%Y-%m-%d"),
            "sides": described,
            "rates": rates,
            "rows": [row.json() for row in rows],
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
