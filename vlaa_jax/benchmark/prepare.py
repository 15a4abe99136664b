"""Writes the inputs in a process of its own, so that the parent never holds a device: `... FOLDER`."""

import json
import pathlib

from ml_collections import ConfigDict

from vlaa_jax.benchmark import presets
from vlaa_jax.benchmark.inputs import write_inputs
from vlaa_jax.benchmark.worker import serve


class Prepare:
    """The one job."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def write(self, name: str, new_tokens: int, recipe: str, tokenizer: str) -> None:
        """As `write_inputs`; the recipe is JSON."""
        found = presets.find(name, new_tokens)
        write_inputs(self._folder, found, ConfigDict(json.loads(recipe)), pathlib.Path(tokenizer))


if __name__ == "__main__":
    serve(Prepare)
