"""Exports a run as a Hugging Face directory.

python launch/export.py --workdir=runs/... --out=DIR [--step=N]
"""

import argparse
import pathlib

from vlaa_jax.errors import InputError, run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of a run")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="directory to write; must not exist")
    parser.add_argument("--step", type=int, help="checkpoint; by default the newest")
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise InputError(f"{arguments.out} exists already: nothing was written")
    if not arguments.workdir.is_dir():
        raise InputError(f"{arguments.workdir} does not exist: expected the folder of a run")

    from ml_collections import ConfigDict

    from data_prep.digit_scenes import demo
    from vlaa_jax.training.export import export
    from vlaa_jax.training.run_folder import open_run

    folder = open_run(arguments.workdir)
    config = ConfigDict(folder.header()["config"])
    config.model.checkpoint = demo.checkpoint(config.model.checkpoint)
    step = export(folder, config, arguments.out, arguments.step)
    print(f"step {step} written to {arguments.out}")


if __name__ == "__main__":
    run_command(main)
