"""What a run needs of a topology: memory, work and time of each of its programs, and whether they fit."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import ModelConfig
from vlaa_jax.planning import hlo
from vlaa_jax.planning.chips import GIB, Topology
from vlaa_jax.planning.cost import Cost, cost
from vlaa_jax.planning.model_flops import grpo_flops, judge_flops, prm_flops, search_flops, sft_flops
from vlaa_jax.planning.notes import notes
from vlaa_jax.planning.programs import Compiled, Planner, TooLarge
from vlaa_jax.planning.search_programs import SearchPlanner
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.schedule import SEGMENT, prompts_at_once, steps_of_segment
from vlaa_jax.sharding import evenly, make_mesh, row_shards
from vlaa_jax.training.batch_sizes import longest_prompt, micro_batches, rollout_batches

ROOM = 0.95  # of the capacity: the rest is for what the runtime keeps

# What to change when an array is too large, by its name in `training.lifetimes`.
_HELP = {
    "weights": "config.mesh.fsdp over more chips",
    "moments": "config.optimizer.first_moment_dtype=bfloat16, config.optimizer.memory=pinned_host, or more chips",
    "reference": "config.objective.kl_placement=none, config.model.reference_memory=pinned_host, or more chips",
    "sampling weights": "config.mesh.tensor",
    "patches": "config.rollout.batch, config.rollout.most_windows or config.data.max_pixels",
    "prompts": "config.rollout.prompts",
    "features": "config.rollout.prompts or config.data.max_pixels",
    "caches": "config.rollout.batch",
    "completions": "config.rollout.prompts",
    "scores": "config.rollout.prompts",
    "micro-batches": "config.updates.completions",
    "gradient": "more chips",
    "answer judge": "config.rewards.scorer_memory=pinned_host, or more chips",
    "step judge": "config.rewards.scorer_memory=pinned_host, or more chips",
    "kept questions": "config.rollout.questions or config.rollout.longest_prompt",
}
_TEMPORARIES = {
    "vision": "config.rollout.batch",
    "prefill": "config.rollout.batch",
    "decode": "config.rollout.batch",
    "judge_answers": "config.rollout.new_tokens or config.rollout.longest_prompt",
    "judge_steps": "config.rollout.new_tokens or config.rollout.longest_prompt",
    "log_probabilities": "config.updates.micro_batch, or config.updates.row_completions",
    "update": "config.updates.micro_batch, config.updates.row_completions or config.objective.chunk",
    "score": "config.updates.rows",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one chip; bytes, FLOPs and seconds.

    Attributes:
      program: its name.
      runs: in a step; of SFT and reward models in a micro-batch, since their number follows from the data; of a search
        for the questions that are searched together.
      hbm_bytes: all that is in a chip's memory while it runs.
      resident_bytes: arrays of the run that are no arguments of it.
      hbm_capacity_bytes: of a chip, by the compiler.
      temporary_bytes: of the program alone.
      flops: that it computes.
      hbm_traffic_bytes: read and written.
      collectives: count and bytes sent, by kind.
      seconds_overlapped, seconds_summed: bounds of the time model (`cost`).
      share_of_peak: of the FLOPs that the model asks for (`model_flops`), in `seconds_overlapped`.
      bound_by: what the time is spent on.
      parts: bytes of each array that is alive, and of temporaries and results.
      notes: what is wasteful.
      compile_seconds: on this host.
    """

    program: str
    runs: int
    hbm_bytes: int
    resident_bytes: int
    hbm_capacity_bytes: int
    temporary_bytes: int
    flops: float
    hbm_traffic_bytes: float
    collectives: Mapping[str, Mapping[str, float]]
    seconds_overlapped: float
    seconds_summed: float
    share_of_peak: float
    bound_by: str
    parts: Mapping[str, int]
    notes: list[str]
    compile_seconds: float

    @property
    def fits(self) -> bool:
        return self.hbm_bytes <= ROOM * self.hbm_capacity_bytes

    def advice(self) -> str:
        """Why it does not fit and which fields would help, largest buffer first."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        named = ", ".join(f"{name} {size / GIB:.2f}" for name, size in largest)
        fields = [_HELP.get(name) or _TEMPORARIES.get(self.program, "") for name, _ in largest]
        help = "; ".join(dict.fromkeys(filter(None, fields)))
        return (
            f"{self.program} does not fit: {self.hbm_bytes / GIB:.2f} GiB of {ROOM:.0%} of "
            f"{self.hbm_capacity_bytes / GIB:.2f}; largest: {named} GiB; what helps: {help}"
        )

    def json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "fits": self.fits}


def plan(
    config: ConfigDict,
    sizes: ModelConfig,
    topology: Topology,
    devices: list[jax.Device],
    *,
    say: Callable[[str], None] = lambda line: None,
    parts: tuple[str, ...] = ("rollout", "judges", "update"),
) -> Iterator[Row]:
    """Compiles the programs of a run and measures each.

    Args:
      config: of the run; checkpoint and data need not be there.
      sizes: of the policy.
      topology: to run on.
      devices: of the topology, as the compiler describes them.
      say: shows a line of progress.
      parts: of a GRPO step.

    Raises:
      InputError: numbers of the config that do not fit the mesh or each other.
    """
    mesh = make_mesh(devices, **config.mesh, key_value_heads=sizes.text.key_value_heads)
    with jax.set_mesh(mesh):
        shards = row_shards()
        planner = Planner(config, sizes, say)
    runs, asked = _runs(config, sizes, shards), _asked(config, sizes, shards)
    for name, judge in planner.judge_programs.items():
        runs[name], asked[name] = -(-config.rollout.prompts // judge.rows), judge_flops(config, judge)
    for part in parts if config.task == "grpo" else (config.task,):
        yield from _measured(getattr(planner, part)(), topology, mesh, asked, runs)


def plan_search(
    config: ConfigDict,
    generator: Generator,
    sizes: ModelConfig,
    topology: Topology,
    devices: list[jax.Device],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Row]:
    """`plan` of a tree search; `generator` is that of its rollouts."""
    mesh = make_mesh(devices, **config.mesh, key_value_heads=sizes.text.key_value_heads)
    with jax.set_mesh(mesh):
        shards, questions = row_shards(), evenly(config.rollout.questions)
        planner = SearchPlanner(config, generator, sizes, say)
    prompt, windows = max(generator.prompt_buckets), max(generator.window_buckets)
    prompts = questions * config.search.leaves
    at_once = prompts_at_once(prompts // shards, prompt + max(config.rollout.process_buckets))
    rounds = config.search.simulations // config.search.leaves
    runs = {
        "reshard": 1,
        "reshard_layer": sizes.text.layers,
        "vision": 1,
        "keep": 1,
        "prefill": rounds * -(-prompts // (shards * at_once)),
        "decode": rounds * generator.segments,
    }
    yield from _measured(planner.search(), topology, mesh, search_flops(config, sizes, prompt, windows, shards), runs)


def _measured(
    programs: Iterator[Compiled],
    topology: Topology,
    mesh: jax.sharding.Mesh,
    asked: Mapping[str, float],
    runs: Mapping[str, int],
) -> Iterator[Row]:
    try:
        while compiled := _under(mesh, programs):
            flops = asked.get(compiled.name, 0.0) / topology.chips
            yield _row(compiled, topology, mesh, flops, runs[compiled.name])
    except TooLarge as error:
        yield _too_large(error, topology, runs[error.program])


def _under(mesh: jax.sharding.Mesh, programs: Iterator[Compiled]) -> Compiled | None:
    """The next program; the mesh is on only while it is made."""
    with jax.set_mesh(mesh):
        return next(programs, None)


def _asked(config: ConfigDict, sizes: ModelConfig, shards: int) -> dict[str, float]:
    """FLOPs that the model asks for, by program."""
    if config.task == "grpo":
        return grpo_flops(config, sizes, shards)
    return prm_flops(config, sizes) if config.task == "prm" else sft_flops(config, sizes)


def _runs(config: ConfigDict, sizes: ModelConfig, shards: int) -> dict[str, int]:
    """How often a step runs each program."""
    if config.task != "grpo":
        return {"update": 1, "apply": 1, "score": 0}  # a step scores nothing; an evaluation does
    rollout, section = config.rollout, config.updates
    batch = min(rollout.batch, rollout.prompts)
    prefills = -(-rollout.prompts // (shards * prompts_at_once(batch // shards, longest_prompt(config))))
    # Where every completion runs to its bound.
    segments = rollout.prompts // batch * -(-(rollout.new_tokens - 1) // steps_of_segment(SEGMENT, rollout.new_tokens))
    updates = section.epochs * rollout.prompts * rollout.group_size // section.completions
    micro_batches = updates * section.completions // rollout.group_size // section.micro_batch
    return {
        "reshard": 1,
        "reshard_layer": sizes.text.layers,
        "vision": rollout.prompts // batch,
        "prefill": prefills,
        "decode": segments,
        **dict.fromkeys(("deal", "log_probabilities", "update"), micro_batches),
        "apply": updates,
    }


def _too_large(error: TooLarge, topology: Topology, runs: int) -> Row:
    """A program that the compiler refused; what follows it in its part of the step was not compiled."""
    inside = {f"{shape} in the program": size for size, shape in error.largest[:3]}
    return Row(
        program=error.program,
        runs=runs,
        hbm_bytes=max(error.needed, topology.chip.hbm_capacity + 1),
        resident_bytes=0,
        hbm_capacity_bytes=topology.chip.hbm_capacity,
        temporary_bytes=0,
        flops=0,
        hbm_traffic_bytes=0,
        collectives={},
        seconds_overlapped=0,
        seconds_summed=0,
        share_of_peak=0,
        bound_by="no room",
        parts={**error.alive, **inside},
        notes=[],
        compile_seconds=0,
    )


def _row(compiled: Compiled, topology: Topology, mesh: jax.sharding.Mesh, asked: float, runs: int) -> Row:
    capacity = topology.chip.hbm_capacity
    alive = sum(compiled.alive.values())
    memory = compiled.executable.memory_analysis()
    program = hlo.parse(compiled.text)
    spent: Cost = cost(program, topology, mesh)
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = {
        **compiled.alive,
        "padding": max(0, memory.argument_size_in_bytes - alive),  # of the arguments, to whole tiles
        "temporaries": memory.temp_size_in_bytes,
        "results": made,
    }
    return Row(
        program=compiled.name,
        runs=runs,
        hbm_bytes=sum(parts.values()),
        resident_bytes=max(0, alive - memory.argument_size_in_bytes),
        hbm_capacity_bytes=capacity,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=spent.flops,
        hbm_traffic_bytes=spent.hbm_traffic_bytes,
        collectives=spent.collectives,
        seconds_overlapped=spent.seconds_overlapped,
        seconds_summed=spent.seconds_summed,
        share_of_peak=asked / (spent.seconds_overlapped * topology.chip.peak_flops) if spent.seconds_overlapped else 0,
        bound_by=spent.bound_by,
        parts=parts,
        notes=notes(program),
        compile_seconds=compiled.seconds,
    )


def search(
    config: ConfigDict,
    sizes: ModelConfig,
    topology: Topology,
    devices: list[jax.Device],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> ConfigDict:
    """The config with the largest batches that fit: prompts answered at once, groups of a micro-batch.

    SFT and reward models have rows in place of groups. Of the sizes that fit the step and the mesh, by bisection:
    memory grows with them.

    Raises:
      InputError: not even the smallest fits, or none does.
    """
    mesh = make_mesh(devices, **config.mesh, key_value_heads=sizes.text.key_value_heads)
    with jax.set_mesh(mesh):
        shards = row_shards()
    if config.task != "grpo":
        wanted = {"updates.rows": (config.task, [shards * 2**power for power in range(5)])}
    else:
        wanted = {
            "rollout.batch": ("rollout", rollout_batches(config, shards)),
            "updates.micro_batch": ("update", micro_batches(config, shards)),
        }
    config = ConfigDict(config)
    for field, (part, candidates) in wanted.items():
        best, low, high = None, 0, len(candidates) - 1
        while low <= high:
            middle = (low + high) // 2
            config.update_from_flattened_dict({field: candidates[middle]})
            misfit = next((row for row in plan(config, sizes, topology, devices, parts=(part,)) if not row.fits), None)
            say(f"config.{field}={candidates[middle]}: {'fits' if misfit is None else misfit.advice()}")
            if misfit is None:
                best, low = candidates[middle], middle + 1
            else:
                high = middle - 1
        if best is None:
            raise InputError(
                f"no config.{field} fits {topology.describe()}" + (f": {misfit.advice()}" if candidates else "")
            )
        config.update_from_flattened_dict({field: best})
    return config
