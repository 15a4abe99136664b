"""Trains a policy: SFT or GRPO, as the config says.

python launch/tpu_train.py --config=configs/grpo_mixed.py
python launch/tpu_train.py --config=configs/grpo_mixed.py:3b --config.model.checkpoint=DIR --config.data.train=SHARDS

  --config=FILE.py[:PRESET]   what to train; FILE says which presets there are
  --config.FIELD=VALUE        sets any field of it; lists as --config.FIELD='(1, 2)'
  --workdir=DIR               folder of the run; by default runs/<config>-<preset>-<hash>. A run there goes on
"""

import pathlib
import shlex
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from vlaa_jax.errors import InputError, run_command

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:PRESET]")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
_TASKS = ("grpo", "sft")
_NEEDED = {
    "model.checkpoint": "a Hugging Face directory of a Qwen2.5-VL",
    "data.train": "shards as DIRECTORY:SPLIT",
}


def read_config(arguments: list[str]) -> ConfigDict:
    """The config with the command line's fields laid over it.

    Raises:
      InputError: an unknown flag, preset or field, a value of a wrong type, no such file, or a field that is missing.
    """
    try:
        rest = flags.FLAGS(arguments)[1:]
        config = _CONFIG.value
        task = "" if config is None else config.task  # a file that could not be loaded says so at the first look
    except Exception as error:  # a config file is a program: it may raise anything
        raise InputError(_sentence(error, arguments)) from None
    if rest:
        raise InputError(f"{rest[0]!r} is no flag: expected --config=..., --config.FIELD=... or --workdir=...")
    if config is None:
        raise InputError("--config is missing: expected a file, e.g. --config=configs/grpo_mixed.py")
    if task not in _TASKS:
        raise InputError(f"config.task is {task!r}: expected one of {', '.join(_TASKS)}")
    for field, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
        if field.endswith("_buckets") and not all(isinstance(size, int) and size > 0 for size in value):
            raise InputError(f"config.{field} is {value!r}: expected whole numbers above 0, as '(128, 256)'")
    missing = {field: what for field, what in _NEEDED.items() if not _field(config, field)}
    if missing:
        wanted = " and ".join(f"--config.{field}=... ({what})" for field, what in missing.items())
        raise InputError(f"{config_flags.get_config_filename(flags.FLAGS['config'])} needs {wanted}")
    return config


def _field(config: ConfigDict, name: str) -> object:
    for part in name.split("."):
        config = config[part]
    return config


def _sentence(error: Exception, arguments: list[str]) -> str:
    """What went wrong, without the tracebacks that the parsers of flags and configs put around it."""
    chain = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    ours = [link for link in chain if isinstance(link, InputError)]
    if ours:
        return str(ours[-1])
    if isinstance(error, AttributeError | KeyError):
        name = str(chain[-1].args[0])
        flag = next((text for text in arguments if name in text.partition("=")[0].split(".")), "--config")
        return f"{flag}: the config has no field {name!r}"
    if isinstance(error, flags.Error | OSError):
        return str(error).strip().splitlines()[-1].strip()
    return f"--config: the file cannot be loaded ({type(error).__name__}: {error})"


def main() -> int:
    """Returns 0, or 130 when the run was interrupted and saved."""
    if {"-h", "--help", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    recorded = read_config(sys.argv)

    from vlaa_jax.training.run_header import config_hash

    file, _, preset = str(config_flags.get_config_filename(flags.FLAGS["config"])).partition(":")
    name = f"{pathlib.Path(file).stem}-{preset or 'demo'}".replace(",", "-")
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}-{config_hash(recorded.to_dict())}")
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir}: expected a folder for the run, found a file")
    command = shlex.join(["python", *sys.argv])

    from vlaa_jax.training.host_memory import keep_freed_memory

    keep_freed_memory()

    import jax

    # Before the slower imports: the first line comes at once.
    devices = jax.devices()
    print(f"{recorded.task} {name} on {len(devices)} x {devices[0].device_kind}, run folder {workdir}", flush=True)

    from data_prep.digit_scenes import demo
    from vlaa_jax.processing.index import cache_folder
    from vlaa_jax.training import settings
    from vlaa_jax.training.grpo_task import GRPOTask
    from vlaa_jax.training.loop import Interrupted, train
    from vlaa_jax.training.sft_task import SFTTask

    settings.enable_compilation_cache(cache_folder() / "programs")
    _check_workdir(workdir, recorded)
    task = {"grpo": GRPOTask, "sft": SFTTask}[recorded.task](demo.resolve(recorded))
    try:
        report = train(task, workdir, recorded=recorded, command=command)
    except Interrupted as stop:
        print(stop)
        return 130
    print(f"report: {report}")
    return 0


def _check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raises InputError where the folder holds another run: before the weights are loaded, not after."""
    from vlaa_jax.training.loop import CHANGEABLE
    from vlaa_jax.training.run_folder import open_run
    from vlaa_jax.training.run_header import continued_header

    if not (workdir / "run.json").exists():
        return
    folder = open_run(workdir)
    header = folder.header()
    try:
        continued_header(header, config.to_dict(), header["prompt_sha256"], changeable=CHANGEABLE)
    except InputError as error:
        raise InputError(f"{folder.header_path}: {error}") from None


if __name__ == "__main__":
    run_command(main)
