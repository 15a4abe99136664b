"""The config of a command line: a file, a preset of it, and fields laid over it."""

import pathlib
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from vlaa_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:PRESET]")


def read_config(
    arguments: list[str], *, accepted: str, example: str, tasks: Sequence[str], needed: Mapping[str, str]
) -> ConfigDict:
    """The config with the command line's fields laid over it.

    Args:
      arguments: of the process, its own name first.
      accepted: names the flags that the command takes beside `--config`, for messages.
      example: a config file of this command, for messages.
      tasks: what `config.task` may be; empty for a command whose configs have no such field.
      needed: fields that may not be empty, and what belongs there.

    Raises:
      InputError: an unknown flag, preset or field, a value of a wrong type, no such file, or a field that is missing.
    """
    try:
        rest = flags.FLAGS(arguments)[1:]
        config = _CONFIG.value
        # A file that could not be loaded says so at the first look into it.
        task = None if config is None else config.get("task")
    except Exception as error:  # a config file is a program: it may raise anything
        raise InputError(_sentence(error, arguments)) from None
    if rest:
        raise InputError(f"{rest[0]!r} is no flag: expected --config=..., --config.FIELD=... or {accepted}")
    if config is None:
        raise InputError(f"--config is missing: expected a file, e.g. --config={example}")
    if tasks and task not in tasks:
        raise InputError(f"config.task is {task!r}: expected one of {', '.join(tasks)}")
    for field, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
        if field.endswith("_buckets") and not all(isinstance(size, int) and size > 0 for size in value):
            raise InputError(f"config.{field} is {value!r}: expected whole numbers above 0, as '(128, 256)'")
    missing = {field: what for field, what in needed.items() if not _field(config, field)}
    if missing:
        wanted = " and ".join(f"--config.{field}=... ({what})" for field, what in missing.items())
        raise InputError(f"{config_flags.get_config_filename(flags.FLAGS['config'])} needs {wanted}")
    return config


def config_name() -> tuple[str, str]:
    """Stem of the config's file and its preset, after `read_config`."""
    file, _, preset = str(config_flags.get_config_filename(flags.FLAGS["config"])).partition(":")
    return pathlib.Path(file).stem, preset or "demo"


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
