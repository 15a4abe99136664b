"""The programs of a tree search (`data_prep search`), compiled as `programs` compiles those of a training."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from vlaa_jax.ahead import Program, weights_of
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL
from vlaa_jax.planning.programs import Compiled, bytes_on_chip, compile_program
from vlaa_jax.planning.shapes import rows_shapes
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.programs import ContinuedPrograms, weights_shapes
from vlaa_jax.rollout.sampler import copy_layer, copy_outside_layers
from vlaa_jax.sharding import TRAINING, evenly

# Which arrays are on the chips while a program runs, beside what it makes. The weights as they are stored go when their
# sampling copy is there.
_ALIVE = {
    "reshard": ("weights",),
    "reshard_layer": ("weights", "sampling weights"),
    "vision": ("sampling weights", "patches"),
    "keep": ("sampling weights", "questions"),
    "prefill": ("sampling weights", "kept questions", "caches", "completions"),
    "decode": ("sampling weights", "kept questions", "caches", "completions"),
}


class SearchPlanner:
    """Compiles at the largest sizes of a search; `jax.set_mesh` must be on."""

    def __init__(
        self,
        config: ConfigDict,
        generator: Generator,
        sizes: ModelConfig,
        say: Callable[[str], None] = lambda line: None,
    ):
        """Describes the arrays.

        Args:
          config: of the search; checkpoint and questions need not be there.
          generator: of its rollouts; its largest buckets count.
          sizes: of the policy.
          say: shows a line of progress.
        """
        self._say = say
        model = weights_of(jax.eval_shape(lambda: Qwen2_5_VL(sizes, nnx.Rngs(0))), TRAINING)
        dtype = jnp.dtype(config.model.dtype)
        weights = weights_shapes(model, dtype)
        questions = evenly(config.rollout.questions)
        rows = rows_shapes(sizes, questions, max(generator.prompt_buckets), max(generator.window_buckets))
        length = max(config.rollout.process_buckets)
        sampling = ContinuedPrograms(generator, weights, rows, config.search.leaves, length)
        index = jax.ShapeDtypeStruct((), jnp.int32)
        self._programs = {
            "reshard": Program("", copy_outside_layers, (model,), {"dtype": dtype}),
            "reshard_layer": Program("", copy_layer, (model.language.layers, index), {"dtype": dtype}),
            "vision": sampling.images(),
            "keep": sampling.keep(),
            "prefill": sampling.admission(),
            "decode": sampling.decode(sampling.rows),
        }
        self.arrays: dict[str, Any] = {
            "weights": model,
            "sampling weights": weights,
            "patches": rows.vision,
            "questions": sampling.keep().arguments[1:],
            "kept questions": sampling.prompts,
            "caches": (sampling.prefix, sampling.caches(sampling.rows)),
            "completions": sampling.completions,
        }

    def search(self) -> Iterator[Compiled]:
        """All of them, in the order in which they run."""
        for name, program in self._programs.items():
            self._say(f"compiling {name}")
            alive = {array: bytes_on_chip(self.arrays[array]) for array in _ALIVE[name]}
            yield compile_program(name, program, alive)[0]
