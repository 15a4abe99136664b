"""Trains a policy (SFT or GRPO) or a reward model, as the config says.

python launch/tpu_train.py --config=configs/grpo_mixed.py
python launch/tpu_train.py --config=configs/grpo_mixed.py:3b --config.model.checkpoint=DIR --config.data.train=SHARDS
python launch/tpu_train.py --config=configs/prm.py --config.data.train=PROCESS_SHARDS

  --config=FILE.py[:PRESET]   what to train; FILE says which presets there are
  --config.FIELD=VALUE        sets any field of it; lists as --config.FIELD='(1, 2)'
  --workdir=DIR               folder of the run; by default runs/<config>-<preset>-<hash>. A run there goes on
  --profile=STEP,N            writes a trace of N steps from STEP into the run's folder, for XProf or TensorBoard

On several hosts the same command runs on each (launch/pod/). They find each other on Cloud TPU, GKE and under Slurm;
elsewhere each is told:

  --coordinator=HOST:PORT --processes=N --process=I    an address of process 0, how many there are, which this one is

DIR and the folder of SHARDS may be gs://bucket/folder (pip install 'vlaa_jax[gcs]').
"""

import pathlib
import shlex
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict

from vlaa_jax.config_file import config_name, read_config
from vlaa_jax.errors import InputError, run_command
from vlaa_jax.storage import cache_folder

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
_PROFILE = flags.DEFINE_string("profile", None, "STEP,N")

# What no preset but the demo's brings.
_NEEDED = {
    "model.checkpoint": "a Hugging Face directory of a Qwen2.5-VL or Qwen2-VL",
    "data.train": "shards as DIRECTORY:SPLIT",
}


def main() -> int:
    """Returns 0, or 130 when the run was interrupted by hand and saved."""
    if {"-h", "--help", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
        print(__doc__)
        return 0

    from vlaa_jax import distributed

    with distributed.joined(sys.argv) as arguments:
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    from vlaa_jax import distributed, sharding

    recorded = distributed.together(
        lambda: read_config(
            arguments,
            accepted="--workdir=... or --profile=STEP,N",
            example="configs/grpo_mixed.py",
            tasks=("grpo", "sft", "prm"),
            needed=_NEEDED,
        )
    )

    from vlaa_jax.training.profile import profiled_steps
    from vlaa_jax.training.run_header import config_hash

    profiled = distributed.together(lambda: range(0) if _PROFILE.value is None else profiled_steps(_PROFILE.value))

    name = "-".join(config_name()).replace(",", "-")
    workdir = _WORKDIR.value or f"runs/{name}-{config_hash(recorded.to_dict())}"
    distributed.on_first(lambda: _check_is_folder(workdir))
    command = shlex.join(["python", *arguments])

    import jax

    # Before the slower imports: the first line comes at once.
    devices = jax.devices()
    print(f"{recorded.task} {name} on {len(devices)} x {devices[0].device_kind}, run folder {workdir}", flush=True)

    from data_prep.digit_scenes import demo
    from vlaa_jax.training import settings
    from vlaa_jax.training.grpo_task import GRPOTask
    from vlaa_jax.training.loop import Interrupted, train
    from vlaa_jax.training.prm_task import PRMTask
    from vlaa_jax.training.sft_task import SFTTask

    settings.enable_compilation_cache(cache_folder() / "programs")
    distributed.on_first(lambda: _check_workdir(workdir, recorded))
    config = distributed.together(lambda: demo.resolve(recorded))
    if len(devices) > 1:
        mesh = distributed.together(lambda: settings.mesh(config, devices))
        jax.set_mesh(mesh)
        sharding.meet(mesh)
    tasks = {
        "grpo": lambda: GRPOTask(config, answering=_answering(config)),
        "sft": lambda: SFTTask(config),
        "prm": lambda: PRMTask(config),
    }
    task = distributed.together(tasks[recorded.task])
    try:
        report = train(task, workdir, recorded=recorded, command=command, profiled=profiled)
    except Interrupted as stop:
        print(stop)
        return stop.exit_code
    print(f"report: {report}")
    return 0


def _answering(config: ConfigDict) -> Callable[[str], Callable]:
    """What answers the prompts of a rubric judge."""

    def answering(model: str) -> Callable:
        import jax

        from data_prep.answers.rubric import kept_answering
        from data_prep.answers.section import POLICY

        if model.startswith(POLICY) and jax.device_count() > 1:
            raise InputError(
                f"config.rewards: rubric:{model} runs in this process on one device alone; serve it, and name the "
                "endpoint as config.rewards.base_url"
            )
        return kept_answering(config.rewards.base_url, config.rewards.key_variable)(model)

    return answering


def _check_is_folder(workdir: str) -> None:
    if pathlib.Path(workdir).is_file():
        raise InputError(f"{workdir}: expected a folder for the run, found a file")


def _check_workdir(workdir: str, config: ConfigDict) -> None:
    """Raises InputError where the folder holds another run: before the weights are loaded, not after."""
    from vlaa_jax.training.loop import CHANGEABLE
    from vlaa_jax.training.run_folder import has_run, open_run
    from vlaa_jax.training.run_header import continued_header

    if not has_run(workdir):
        return
    folder = open_run(workdir)
    header = folder.header()
    try:
        continued_header(header, config.to_dict(), header["prompt_sha256"], changeable=CHANGEABLE)
    except InputError as error:
        raise InputError(f"{workdir}/run.json: {error}") from None


if __name__ == "__main__":
    run_command(main)
