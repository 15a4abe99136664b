"""One page about several runs: held-out curves over one another, changes side by side.

python launch/compare_runs.py runs/first runs/second ... --out=comparison.html
"""

import argparse
import pathlib

from vlaa_jax.errors import check_output, run_command
from vlaa_jax.storage import require_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, local or gs://bucket/run")
    parser.add_argument("--out", metavar="FILE.html", type=pathlib.Path, required=True)
    options = parser.parse_args()
    for run in options.runs:
        require_folder(run, "the folder of a run")
    check_output("--out", options.out)

    from vlaa_jax.evaluation.tables import text_table
    from vlaa_jax.training.run_folder import open_run
    from vlaa_jax.training.run_report import write_comparison

    for table in write_comparison([open_run(run) for run in options.runs], options.out):
        print(f"{text_table(table)}\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    run_command(main)
