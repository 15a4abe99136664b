"""A build of the miniature sources against the loopback endpoint, as config fields and as a command line."""

import pathlib
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "vlaa_thinking.py"
MODELS = {"caption": "captioner", "distil": "reasoner", "rewrite": "rewriter", "verify": "verifier"}


def fields(folders: Mapping[str, pathlib.Path], base_url: str, **changes: object) -> dict[str, object]:
    """Config fields of such a build; dots in names of `changes` as `__`."""
    values: dict[str, object] = {f"sources.{name}.folder": str(folder) for name, folder in folders.items()}
    for step, model in MODELS.items():
        values |= {f"{step}.model": model, f"{step}.base_url": base_url, f"{step}.key_variable": ""}
    return values | {name.replace("__", "."): value for name, value in changes.items()}


def command(folders: Mapping[str, pathlib.Path], base_url: str, out: pathlib.Path, **changes: object) -> list[str]:
    """Arguments of `python`."""
    values = fields(folders, base_url, **changes)
    flags = [f"--config={CONFIG}", f"--out={out}", *(f"--config.{name}={value}" for name, value in values.items())]
    return ["-m", "data_prep", "build", *flags]
