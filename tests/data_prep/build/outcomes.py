"""A small config, and what a build left in its folder."""

import hashlib
import json
import pathlib
import runpy
from collections.abc import Mapping

import builds
from ml_collections import ConfigDict

from data_prep.build.folder import StepFolder
from data_prep.drafts import Draft

SINGLE = ("--direct_running_mode=in_memory", "--direct_num_workers=1")  # starts faster than threads


def config(folders: Mapping[str, pathlib.Path], base_url: str, **changes: object) -> ConfigDict:
    """Of a build of several files and shards; dots in names of `changes` as `__`."""
    small = {f"{step}__concurrency": 4 for step in builds.MODELS} | {"files": 3, "shards__records_per_shard": 8}
    out = runpy.run_path(str(builds.CONFIG))["get_config"]()
    with out.unlocked():
        out.update_from_flattened_dict(builds.fields(folders, base_url, **small | changes))
    return out


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
