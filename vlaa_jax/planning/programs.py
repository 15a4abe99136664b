"""Every program of a config, compiled for a topology from the shapes of its arrays alone: no weights, no TPU.

The programs are the functions that training runs, at the largest sizes that the config allows, with the layouts that
training gives them. What one hands to the next comes in the layout in which the compiler leaves it.
"""

import dataclasses
import functools
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from vlaa_jax.ahead import Program, resized, rows_of, weights_of
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.objectives.step_scores import score_steps
from vlaa_jax.planning.judge_programs import PlannedJudge, planned_judge
from vlaa_jax.planning.shapes import array_shape, rows_shapes, solutions_shapes
from vlaa_jax.processing.batches import Targets
from vlaa_jax.processing.solutions import SolutionShape
from vlaa_jax.rollout.programs import RolloutPrograms, weights_shapes
from vlaa_jax.rollout.sampler import copy_layer, copy_outside_layers
from vlaa_jax.sharding import TRAINING, row_shards
from vlaa_jax.training import settings
from vlaa_jax.training.batch_sizes import check_rows, grpo_sizes, longest_prompt, longest_update_row, most_windows
from vlaa_jax.training.grpo import group_log_probabilities, group_loss, reference_weights, take_groups
from vlaa_jax.training.grpo_programs import step_shapes
from vlaa_jax.training.lifetimes import SCORE, is_alive
from vlaa_jax.training.prm import Labels
from vlaa_jax.training.prm_index import model_kind
from vlaa_jax.training.state import TrainState

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program.

    Attributes:
      name: as in `training.lifetimes`.
      executable: what the compiler made.
      text: the program as the compiler left it.
      alive: bytes on a chip of each array of the run that exists while the program runs, its arguments among them, its
        results not.
      seconds: that compiling took.
    """

    name: str
    executable: jax.stages.Compiled
    text: str
    alive: dict[str, int]
    seconds: float


class TooLarge(Exception):
    """The compiler found no room for a program, whatever else the run keeps.

    Attributes:
      program: its name.
      alive: as of `Compiled`.
      needed: bytes of HBM by the compiler.
      largest: arrays inside the program, largest first: bytes and shape.
    """

    def __init__(self, program: str, alive: dict[str, int], message: str):
        super().__init__(message)
        self.program, self.alive = program, alive
        used = re.search(r"Used ([\d.]+)([KMGT]) of", message)
        self.needed = _bytes(*used.groups()) if used else 0
        found = re.findall(r"Size: ([\d.]+)([KMGT]).*?Shape: (\S+)", message, flags=re.DOTALL)
        self.largest = [(_bytes(size, unit), shape) for size, unit, shape in found]


def _bytes(size: str, unit: str) -> int:
    return int(float(size) * 2 ** (10 * " KMGT".index(unit)))


class Planner:
    """Compiles the programs of a run; `jax.set_mesh` must be on.

    Attributes:
      arrays: the arrays of a step by their names in `training.lifetimes`: shapes with layouts.
      judge_programs: the models that judge, by the names of their programs.
    """

    def __init__(self, config: ConfigDict, sizes: ModelConfig, say: Callable[[str], None] = lambda line: None):
        """Starts with weights and moments.

        Args:
          config: checkpoint and data need not be there.
          sizes: of the policy.
          say: shows a line of progress.

        Raises:
          InputError: numbers of the config that do not fit each other or the mesh.
        """
        self._config, self._sizes, self._say = config, sizes, say
        shards = row_shards()
        if config.task == "grpo":
            self._counts = grpo_sizes(config, shards)
        else:
            check_rows(config, shards)
        architecture = RewardModel if config.task == "prm" else Qwen2_5_VL
        model = jax.eval_shape(lambda: architecture(sizes, nnx.Rngs(0)))
        self._model = weights_of(model, TRAINING)
        self.arrays: dict[str, Any] = {}
        self.judge_programs: dict[str, PlannedJudge] = {}
        self._waiting: tuple[str, ...] = ()  # arrays that are on the chip only while they are used
        if config.task == "grpo":
            policy, objective = settings.policy(config), settings.objective(config)
            self._describe_training(functools.partial(group_loss, policy=policy, objective=objective))
            self._describe_step()
        elif config.task == "prm":
            self._describe_training(settings.labelled_loss(config))
        else:
            self._describe_training(settings.packed_loss(config))

    def _describe_training(self, loss: Callable) -> None:
        """Weights, moments and the programs of an update."""
        training = {}

        def start(model: Qwen2_5_VL) -> TrainState:
            state, training["updater"], _ = settings.start_training(self._config, model, loss, 1)
            return state

        state = weights_of(jax.eval_shape(start, self._model), TRAINING)
        if settings.on_host(self._config, "optimizer.memory"):
            state = dataclasses.replace(state, optimizer=_on_host(state.optimizer))
        self._state, self._updater = state, training["updater"]
        self.arrays["weights"], self.arrays["moments"] = (state.trainable, state.frozen), state.optimizer

    def _describe_step(self) -> None:
        """The arrays between the programs of a GRPO step."""
        config, rollout, section = self._config, self._config.rollout, self._config.updates
        freeze, arrays = config.model.freeze_vision, self.arrays
        if settings.objective(config).kl_placement != "none":
            copy = functools.partial(reference_weights, dtype=config.model.dtype, freeze_vision=freeze)
            arrays["reference"] = weights_of(jax.eval_shape(copy, self._model), TRAINING)
            if settings.on_host(config, "model.reference_memory"):
                self._waiting = ("reference",)
        arrays["sampling weights"] = weights_shapes(self._model, settings.compute_dtype(config))
        rows = rows_shapes(self._sizes, rollout.prompts, longest_prompt(config), most_windows(config))
        some = resized(rows, self._counts.batch)  # whose images are encoded at once
        arrays["prompts"] = dataclasses.replace(rows, vision=None)
        arrays["patches"] = some.vision if freeze else rows.vision
        sampling = settings.sampling(config, (self._sizes.image_token,), self._sizes)
        buckets = (longest_prompt(config),), (most_windows(config),)
        generator = settings.generator(config, sampling, self._counts.batch, buckets)
        self._rollout = RolloutPrograms(generator, arrays["sampling weights"], some, rollout.prompts)
        arrays["features"], arrays["completions"] = self._rollout.features, self._rollout.completions
        arrays["caches"] = self._rollout.prefix, self._rollout.caches(self._rollout.rows)
        self._groups, arrays["scores"] = step_shapes(config, rows, self._rollout)
        length = longest_update_row(config, longest_prompt(config))
        self._take = functools.partial(take_groups, length=length, parts=self._counts.parts)
        chosen = jax.ShapeDtypeStruct((section.micro_batch,), jnp.int32)
        self._chosen = chosen
        part, scored = rows_of(jax.eval_shape(self._take, self._groups, arrays["scores"], chosen))
        self._part = part
        if "reference" in arrays:
            scored = dataclasses.replace(scored, reference=array_shape(jnp.float32, *part.places.shape))
        self._batch = (part, scored, jax.ShapeDtypeStruct((), jnp.float32))
        arrays["micro-batches"] = [(part, scored)] * (self._counts.groups // section.micro_batch)
        self._describe_gradient()
        self._describe_judges()

    def _describe_judges(self) -> None:
        """Models that score completions, and what they are given."""
        for part, field in (("answer", "scorer"), ("step", "process")):
            if judge := planned_judge(self._config, field):
                self.arrays[f"{part} judge"], self.arrays[f"judged {part}s"] = judge.weights, judge.batch
                self.judge_programs[f"judge_{part}s"] = judge
                if settings.on_host(self._config, "rewards.scorer_memory"):
                    self._waiting += (f"{part} judge",)

    def _describe_gradient(self) -> None:
        total = jax.eval_shape(self._updater.zeros(self._state, self._batch))
        self._total = dataclasses.replace(total, gradient=weights_of(total.gradient, TRAINING))
        self.arrays["gradient"] = self._total.gradient

    def rollout(self) -> Iterator[Compiled]:
        """From weights to completions."""
        dtype = settings.compute_dtype(self._config)
        yield self._compile("reshard", copy_outside_layers, self._model, dtype=dtype)[0]
        index = jax.ShapeDtypeStruct((), jnp.int32)
        yield self._compile("reshard_layer", copy_layer, self._model.language.layers, index, dtype=dtype)[0]
        largest = {
            "vision": self._rollout.images(),
            "prefill": self._rollout.admission(),
            "decode": self._rollout.decode(self._rollout.rows),
        }
        for name, program in largest.items():
            yield self._compile(name, program.function, *program.arguments, **program.static)[0]

    def judges(self) -> Iterator[Compiled]:
        """Scores of completions by models."""
        for name, judge in self.judge_programs.items():
            program = judge.program
            yield self._compile(name, program.function, *program.arguments, **program.static)[0]

    def update(self) -> Iterator[Compiled]:
        """From judged completions to new weights."""
        taken = self._groups, self.arrays["scores"], self._chosen
        yield self._compile("deal", take_groups, *taken, **self._take.keywords)[0]
        if "reference" in self.arrays:
            given = self.arrays["reference"], self._part
            policy = settings.policy(self._config)
            yield self._compile("log_probabilities", group_log_probabilities, *given, policy=policy)[0]
        yield from self._steps()

    def _steps(self) -> Iterator[Compiled]:
        gradient_of = dataclasses.replace(self._state, optimizer=None)
        added, total = self._compile("update", self._updater.add, gradient_of, self._total, self._batch)
        yield added
        denominator = jax.ShapeDtypeStruct((), jnp.float32)
        yield self._compile("apply", self._updater.apply, self._state, total, denominator)[0]

    def sft(self) -> Iterator[Compiled]:
        """The step of packed rows."""
        section = self._config.updates
        count = section.rows
        rows = rows_shapes(self._sizes, count, section.row_tokens, section.row_windows)
        targets = Targets(*(array_shape(jnp.int32, count, section.row_targets) for _ in range(3)))
        self._batch = (rows, targets)
        self.arrays["micro-batches"] = [self._batch]
        self._describe_gradient()
        yield from self._steps()

    def prm(self) -> Iterator[Compiled]:
        """The step of a reward model, and the scoring of held-out steps."""
        section = self._config.updates
        shape = SolutionShape(
            prompt=section.longest_prompt,
            windows=section.most_windows,
            solutions=section.row_solutions,
            tokens=section.longest_solution,
            steps=section.most_steps if model_kind(self._config) == "process" else 1,
            length=section.longest_row,
        )
        solutions = solutions_shapes(self._sizes, section.rows, shape)
        labels = Labels(*(array_shape(jnp.float32, section.rows, shape.solutions, shape.steps) for _ in range(2)))
        self._batch = (solutions, labels)
        self.arrays["micro-batches"], self.arrays[SCORE] = [self._batch], solutions
        self._describe_gradient()
        yield from self._steps()
        dtype = self._config.model.dtype
        yield self._compile(SCORE, score_steps, self._state.model, solutions, dtype=dtype)[0]

    def _compile(self, name: str, function: Any, *arguments: Any, **static: Any) -> tuple[Compiled, Any]:
        """A program, and its results as shapes with layouts."""
        self._say(f"compiling {name}")
        alive = {
            array: bytes_on_chip(tree)
            for array, tree in self.arrays.items()
            if is_alive(array, name, freeze_vision=self._config.model.freeze_vision, waiting=self._waiting)
        }
        return compile_program(name, Program(name, function, arguments, static), alive)


def compile_program(name: str, program: Program, alive: Mapping[str, int]) -> tuple[Compiled, Any]:
    """A program, and its results as shapes with layouts.

    Args:
      name: of the row in the plan.
      program: from shapes with layouts.
      alive: as of `Compiled`.

    Raises:
      TooLarge: the compiler finds no room for it.
    """
    began = time.perf_counter()
    lowered = program.function.lower(*program.arguments, **program.static)
    try:
        executable, text = _compile_and_read(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(name, dict(alive), str(error)) from None
    results = jax.tree.map(
        lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding),
        lowered.out_info,
        executable.output_shardings,
    )
    return Compiled(name, executable, text, dict(alive), time.perf_counter() - began), results


def _compile_and_read(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiler writes its text to a folder: of some programs JAX cannot read it back (their asynchronous parts)."""
    with tempfile.TemporaryDirectory() as folder:
        executable = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (path,) = pathlib.Path(folder).glob("*.after_codegen.txt")
        return executable, path.read_text()


def bytes_on_chip(tree: Any) -> int:
    """Bytes of HBM that shapes with layouts take on one chip; those in host memory take none."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding = leaf.sharding
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        if sharding is None or sharding.memory_kind != "pinned_host":
            total += math.prod(shape) * leaf.dtype.itemsize
    return total


def _on_host(moments: Tree) -> Tree:
    """As `state.to_host` leaves them."""

    def move(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return _with_sharding(leaf, leaf.sharding.with_memory_kind("pinned_host")) if leaf.ndim else leaf

    return jax.tree.map(move, moments)


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
