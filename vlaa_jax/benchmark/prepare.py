"""Writes the inputs, in a process of its own so that the parent never holds a device."""

import json
import pathlib

import jax
import torch
from ml_collections import ConfigDict

from vlaa_jax.benchmark import presets
from vlaa_jax.benchmark.inputs import write_inputs
from vlaa_jax.benchmark.worker import serve
from vlaa_jax.errors import InputError


class Prepare:
    """The one job."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def write(self, name: str, new_tokens: int, recipe: str, tokenizer: str) -> None:
        """As `write_inputs`, with the preset's name and the recipe as JSON.

        Raises:
          InputError: also where the preset needs a GPU that one of the libraries does not find.
        """
        preset = presets.find(name, new_tokens)
        if preset.device == "gpu" and not (jax.default_backend() == "gpu" and torch.cuda.is_available()):
            found = (
                f"JAX computes on {jax.default_backend()}, torch {'does' if torch.cuda.is_available() else 'does not'}"
            )
            raise InputError(f"--preset={name} needs a GPU: {found} find one; --preset=gpu-tiny needs none")
        write_inputs(self._folder, preset, ConfigDict(json.loads(recipe)), pathlib.Path(tokenizer))


if __name__ == "__main__":
    serve(Prepare)
