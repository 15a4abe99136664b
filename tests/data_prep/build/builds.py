"""Builds from the miniature sources against the loopback endpoint: what the tests of the build run on."""

import hashlib
import json
import pathlib
import runpy
from collections.abc import Mapping

from ml_collections import ConfigDict

from data_prep.build.folder import StepFolder
from data_prep.build.steps import ASKING
from data_prep.drafts import Draft

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "vlaa_thinking.py"
SINGLE = ("--direct_running_mode=in_memory", "--direct_num_workers=1")  # starts faster than threads
MODELS = {"caption": "captioner", "distil": "reasoner", "rewrite": "rewriter", "verify": "verifier"}


def fields(folders: Mapping[str, pathlib.Path], base_url: str, **changes) -> dict[str, object]:
    """Config fields of a small build; dots in names of `changes` as `__`."""
    values: dict[str, object] = {f"sources.{name}.folder": str(folder) for name, folder in folders.items()}
    for step in ASKING:
        values |= {
            f"{step.name}.model": MODELS[step.name],
            f"{step.name}.base_url": base_url,
            f"{step.name}.key_variable": "",
            f"{step.name}.concurrency": 4,
        }
    values |= {"files": 3, "shards.records_per_shard": 8}
    return values | {name.replace("__", "."): value for name, value in changes.items()}


def config(folders: Mapping[str, pathlib.Path], base_url: str, **changes) -> ConfigDict:
    out = runpy.run_path(str(CONFIG))["get_config"]()
    with out.unlocked():
        out.update_from_flattened_dict(fields(folders, base_url, **changes))
    return out


def command(folders: Mapping[str, pathlib.Path], base_url: str, out: pathlib.Path, **changes) -> list[str]:
    """The same as arguments of `python -m data_prep`."""
    values = fields(folders, base_url, **changes)
    return [
        "build",
        f"--config={CONFIG}",
        f"--out={out}",
        *(f"--config.{name}={value}" for name, value in values.items()),
    ]


def contents(out: pathlib.Path) -> dict[str, str]:
    """Hashes of everything that a build's bytes are promised for."""
    files = [path for part in ("shards", "steps") for path in sorted((out / part).rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def drafts(out: pathlib.Path, step: str) -> dict[str, Draft]:
    """What a step let through, by id; the step as its folder is named."""
    return {draft.id: draft for draft in StepFolder(str(out), int(step[0]), step[2:]).drafts()}


def aside(out: pathlib.Path, step: str) -> dict[str, dict]:
    """What it set aside."""
    files = (out / "steps" / step).glob("aside-*.jsonl")
    return {entry["id"]: entry for path in files for entry in map(json.loads, path.read_text().splitlines())}
