"""Exports a run as a Hugging Face directory; a reward model with its head beside the weights.

python launch/export.py --workdir=runs/... --out=DIR [--step=N]
"""

import argparse
import pathlib

from vlaa_jax.errors import InputError, run_command
from vlaa_jax.storage import is_remote, require_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="folder of a run, local or gs://bucket/run")
    parser.add_argument("--out", required=True, help="local directory to write; must not exist")
    parser.add_argument("--step", type=int, help="checkpoint; by default the newest")
    arguments = parser.parse_args()
    if is_remote(arguments.out):
        raise InputError(f"--out is {arguments.out}: expected a local directory; copy it to the bucket afterwards")
    if pathlib.Path(arguments.out).exists():
        raise InputError(f"{arguments.out} exists already: nothing was written")
    require_folder(arguments.workdir, "the folder of a run")

    from ml_collections import ConfigDict

    from data_prep.digit_scenes import demo
    from vlaa_jax.training.export import export
    from vlaa_jax.training.run_folder import open_run

    folder = open_run(arguments.workdir)
    config = ConfigDict(folder.header()["config"])
    config.model.checkpoint = demo.checkpoint(config.model.checkpoint)
    step = export(folder, config, pathlib.Path(arguments.out), arguments.step)
    print(f"step {step} written to {arguments.out}")


if __name__ == "__main__":
    run_command(main)
