"""Trains a policy: SFT or GRPO, as the config says.

python launch/tpu_train.py --config=configs/grpo_mixed.py
python launch/tpu_train.py --config=configs/grpo_mixed.py:3b --config.model.checkpoint=DIR --config.data.train=SHARDS
"""

import pathlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from vlaa_jax.errors import InputError, run_command

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:preset], fields as --config.FIELD=...")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; by default runs/<config>-<preset>-<hash>")


def main() -> int:
    """Returns 0, or 130 when the run was interrupted and saved."""
    try:
        flags.FLAGS(sys.argv)
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        raise InputError(f"{error} (see --help)") from None
    if _CONFIG.value is None:
        raise InputError("--config is missing: expected a file, e.g. --config=configs/grpo_mixed.py")
    recorded = _CONFIG.value

    from vlaa_jax.training.run_header import config_hash

    file, _, preset = str(config_flags.get_config_filename(flags.FLAGS["config"])).partition(":")
    name = f"{pathlib.Path(file).stem}-{preset or 'demo'}".replace(",", "-")
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}-{config_hash(recorded.to_dict())}")
    command = shlex.join(["python", *sys.argv])

    from vlaa_jax.training.host_memory import keep_freed_memory

    keep_freed_memory()

    from data_prep.digit_scenes import demo
    from vlaa_jax.processing.index import cache_folder
    from vlaa_jax.training import settings
    from vlaa_jax.training.grpo_task import GRPOTask
    from vlaa_jax.training.loop import Interrupted, describe_device, train
    from vlaa_jax.training.sft_task import SFTTask

    print(f"{recorded.task} {name} on {describe_device()}, run folder {workdir}", flush=True)
    settings.enable_compilation_cache(cache_folder() / "programs")
    task = {"grpo": GRPOTask, "sft": SFTTask}[recorded.task](demo.resolve(recorded))
    try:
        report = train(task, workdir, recorded=recorded, command=command)
    except Interrupted as stop:
        print(stop)
        return 130
    print(f"report: {report}")
    return 0


if __name__ == "__main__":
    run_command(main)
