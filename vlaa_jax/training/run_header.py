"""`run.json`: what a run was started with, so that it can be understood later and is never continued as another one."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlaa_jax.errors import InputError

_PACKAGES = (
    "vlaa_jax",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array-record",
    "transformers",
    "tokenizers",
    "numpy",
    "pillow",
    "math-verify",
)
_ABSENT = object()


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of the sha256 of a config; the order of its fields does not matter.

    Raises:
      InputError: a field that JSON cannot hold.
    """
    text = json.dumps(_plain(config, "config"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def new_header(config: Mapping[str, Any], prompt_sha256: str) -> dict[str, Any]:
    """The header of a run that begins.

    Args:
      config: every field of the run's configuration, nested.
      prompt_sha256: of the conversation (`processing.conversation`).

    Raises:
      InputError: a field that JSON cannot hold.
    """
    return {
        "config_hash": config_hash(config),
        "prompt_sha256": prompt_sha256,
        "config": _plain(config, "config"),
        "starts": [_start({})],
    }


def continued_header(
    header: Mapping[str, Any], config: Mapping[str, Any], prompt_sha256: str, *, changeable: Sequence[str]
) -> dict[str, Any]:
    """The header with one more entry in `starts`: what this start of the same run has that the first had not.

    Args:
      header: as read from `run.json`; its config is that of the first start.
      config, prompt_sha256: as in `new_header`, of today.
      changeable: fields, or whole groups of fields, that may differ: `steps`, `logging`, `evaluation.every`.

    Raises:
      InputError: another field differs; names the first one with both values.
    """
    old = {"prompt_sha256": header["prompt_sha256"], **_fields(header["config"], "config")}
    new = {"prompt_sha256": prompt_sha256, **_fields(_plain(config, "config"), "config")}
    changed = {}
    for name in sorted({*old, *new}):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before == after:
            continue
        if not any(f"{name}.".startswith(f"config.{field}.") for field in changeable):
            allowed = f"only {', '.join(changeable)} may change" if changeable else "nothing may change"
            raise InputError(
                f"{name} is {_show(after)} where this run began with {_show(before)}; {allowed} when a run goes on. "
                "Set it back, or start a new run in another folder"
            )
        changed[name.removeprefix("config.")] = None if after is _ABSENT else after
    return {**header, "starts": [*header["starts"], _start(changed)]}


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def _start(changed: Mapping[str, Any]) -> dict[str, Any]:
    packages = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "git_commit": _git_commit(),
        "packages": packages,
        "changed": dict(changed),
    }


def _git_commit() -> str | None:
    """Commit of the checkout that holds this package, `-dirty` if files differ from it; None without a checkout."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's repository
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _plain(value: Any, name: str) -> Any:
    """`value` in the types that JSON reads back, so that a stored config equals the one it was made from."""
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case Mapping():
            return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case os.PathLike():
            return os.fspath(value)
    raise InputError(
        f"{name} is {value!r}: expected a finite number, text, true, false, null, or a list or dict of these"
    )


def _fields(value: Any, name: str) -> dict[str, Any]:
    """Every field with its full name; an empty group is a field."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {key: item for part in value for key, item in _fields(value[part], f"{name}.{part}").items()}
