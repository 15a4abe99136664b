"""Checks that a Hugging Face directory gives the same numbers here as in transformers, before accelerator hours go in.

    python launch/check_checkpoint.py --checkpoint=DIR [--image=FILE] [--json=FILE] [--tolerance=1e-4]

Prints the largest differences of vision features, positions and logits and the first diverging greedy token. Exit code
0: the same; 1: above the tolerance; 2: wrong input, said in one sentence. Runs in float32 on the CPU, so that it takes
no accelerator from a running job. It needs torch (extra `test`), and memory: four bytes a parameter and some 3 GB more.
`vlaa_jax/evaluation/parity.py` says what this proves and what it does not.
"""

import argparse
import pathlib

import jax

from vlaa_jax.errors import check_output, run_command
from vlaa_jax.evaluation import parity


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="Hugging Face directory")
    parser.add_argument("--image", metavar="FILE", help="a picture to ask about, beside random inputs")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where the same figures are written")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=parity.TOLERANCE,
        help="largest difference of features and logits, as a share of their largest value (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    check_output("--json", options.json)
    jax.config.update("jax_platforms", "cpu")
    print(f"comparing {options.checkpoint} with transformers, float32 on the CPU; minutes for billions of parameters")
    report = parity.check_checkpoint(options.checkpoint, options.image, options.tolerance)
    print(report.table())
    if options.json:
        options.json.write_text(report.to_json())
    return 0 if report.passed else 1


if __name__ == "__main__":
    run_command(main)
