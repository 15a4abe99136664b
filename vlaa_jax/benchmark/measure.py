"""The parts of the benchmark: both sides in processes of their own, checked against each other, then timed."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from vlaa_jax.benchmark import agreement, bounds
from vlaa_jax.benchmark.alternation import Alternation, Measured, Run, alternate
from vlaa_jax.benchmark.presets import Preset
from vlaa_jax.benchmark.worker import Worker

_ROOM = "vlaa_jax.benchmark"
_READ_WIDTH, _READ_VECTORS = 4096, 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      part: of `presets.PARTS`.
      name: what was done.
      unit: what is counted a second.
      amount: of it in one run.
      ours, theirs: the runs.
      bound: least seconds on this machine, of the part of a run that `measured` names; None where none is known.
      measured: our median seconds that the bound is for.
      notes: sentences: agreement, and what else was found.
      figures: further numbers.
    """

    part: str
    name: str
    unit: str
    amount: float
    ours: Measured
    theirs: Measured
    bound: float | None = None
    measured: float | None = None
    notes: tuple[str, ...] = ()
    figures: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.theirs.seconds / self.ours.seconds

    @property
    def share(self) -> float | None:
        """Of the machine's limit."""
        return self.bound / self.measured if self.bound and self.measured else None

    def json(self) -> dict[str, Any]:
        sides = {"ours": self.ours.json(), "theirs": self.theirs.json()}
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | sides | {"ratio": self.ratio, "share_of_limit": self.share}


def environment(preset: Preset) -> dict[str, str]:
    """Variables of both sides' processes."""
    common = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if preset.device == "cpu":
        return common | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return common | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the two sides share the device's memory


@contextlib.contextmanager
def both_sides(folder: pathlib.Path, preset: Preset) -> Iterator[tuple[Worker, Worker]]:
    """Fresh processes, so that the peak of memory is this part's."""
    with (
        Worker(f"{_ROOM}.ours", folder, environment(preset)) as ours,
        Worker(f"{_ROOM}.theirs", folder, environment(preset)) as theirs,
    ):
        yield ours, theirs


def prepare(folder: pathlib.Path, preset: Preset, **job: Any) -> None:
    """Writes all inputs; arguments of the job as in `prepare.Prepare.write`."""
    with Worker(f"{_ROOM}.prepare", folder, environment(preset)) as worker:
        worker.ask("write", **job)


def measure_limits(
    folder: pathlib.Path, preset: Preset, how: Alternation
) -> tuple[bounds.Limits, dict[str, float], dict[str, Any]]:
    """The machine's rates: the better of the two sides'.

    Returns:
      The limits; matrix rates and bandwidths of each side; what both sides say of themselves.
    """
    with both_sides(folder, preset) as (ours, theirs):
        described = {"ours": ours.ask("describe"), "theirs": theirs.ask("describe")}
        found = {}
        # A product with a few vectors reads its matrix once and has little else to do.
        side, long = preset.matrix, preset.buffer // (_READ_WIDTH * bounds.BYTES[preset.dtype])
        for label, amount, shape in (
            ("matrix_rate", 2 * side**3, (side, side, side)),
            ("bandwidth", preset.buffer, (long, _READ_WIDTH, _READ_VECTORS)),
        ):

            def multiply(worker: Worker, shape: tuple[int, ...] = shape):
                rows, inner, columns = shape
                return lambda: worker.run("product", rows=rows, inner=inner, columns=columns)

            for name, measured in alternate(label, {"ours": multiply(ours), "theirs": multiply(theirs)}, how).items():
                found[f"{label}_{name}"] = amount / measured.seconds
    limits = bounds.Limits(
        max(found["matrix_rate_ours"], found["matrix_rate_theirs"]),
        max(found["bandwidth_ours"], found["bandwidth_theirs"]),
    )
    return limits, found, described


def sampling(folder: pathlib.Path, preset: Preset, limits: bounds.Limits, how: Alternation) -> Iterator[Row]:
    """Group sampling, for every number of prompts; its bound is that of the decode steps after the prompt."""
    with both_sides(folder, preset) as (ours, theirs):
        agreement.check_prompts(ours, theirs)
        notes = (agreement.check_greedy(ours, theirs, preset),)
        how.say(notes[0])
        for prompts in preset.sampling_prompts:
            rows = prompts * preset.group
            found = {}
            for new_tokens in (1, preset.new_tokens):

                def sample(side: Worker, new_tokens: int = new_tokens, prompts: int = prompts):
                    return lambda: side.run("sample", prompts=prompts, new_tokens=new_tokens)

                label = f"sampling of {rows} x {new_tokens} tokens"
                sides = {"ours": sample(ours), "theirs": sample(theirs)}
                found[new_tokens] = alternate(label, sides, how)
                for name, measured in found[new_tokens].items():
                    _check_count(name, measured, rows * new_tokens)
            first, whole = found[1], found[preset.new_tokens]
            steps = preset.new_tokens - 1
            floor = limits.seconds(bounds.decode_flops(preset, prompts), bounds.decode_bytes(preset, prompts))
            step = {name: (whole[name].seconds - first[name].seconds) / steps for name in whole}
            yield Row(
                part="sampling",
                name=f"sampling, {prompts} x {preset.group} completions of {preset.new_tokens} tokens",
                unit="tokens",
                amount=rows * preset.new_tokens,
                ours=whole["ours"],
                theirs=whole["theirs"],
                bound=floor,
                measured=step["ours"],
                notes=notes,
                figures={
                    "prefill_seconds_ours": first["ours"].seconds,
                    "prefill_seconds_theirs": first["theirs"].seconds,
                    "decode_step_seconds_ours": step["ours"],
                    "decode_step_seconds_theirs": step["theirs"],
                    "decode_step_ratio": step["theirs"] / step["ours"],
                    "decode_step_floor_seconds": floor,
                },
            )


def lengths(folder: pathlib.Path, preset: Preset, how: Alternation) -> Iterator[Row]:
    """Uneven completions, in segments and in one loop that waits for the longest: the same tokens."""
    sizes = preset.lengths
    with Worker(f"{_ROOM}.ours", folder, environment(preset)) as ours:
        sides = {name: lambda name=name: ours.run("lengths", whole=name == "theirs") for name in ("ours", "theirs")}
        found = alternate("uneven lengths", sides, how)
    note = agreement.check_drawn(folder)
    how.say(note)
    rows, drawn = sizes.prompts * preset.group, found["ours"].median("tokens_drawn")
    yield Row(
        part="lengths",
        name=f"uneven lengths, {sizes.prompts} x {preset.group} completions, geometric of mean {sizes.mean}, "
        f"at most {sizes.cap}",
        unit="tokens",
        amount=drawn,
        ours=found["ours"],
        theirs=found["theirs"],
        notes=(note,),
        figures={"mean_length": drawn / rows}
        | {
            f"{what}_{name}": found[name].median(what)
            for what in ("tokens_drawn", "longest", "row_steps", "wasted")
            for name in found
        },
    )


def update(
    folder: pathlib.Path, preset: Preset, limits: bounds.Limits, rates: dict[str, float], how: Alternation
) -> Iterator[Row]:
    """GRPO's update of one group; its bound is that of its matrix products.

    A run follows another of its side that does not count. Updates do so in training, and the gigabytes that each takes
    anew come slowly where the other side has just had them: on a virtual machine from the host.
    """

    def second(side: Worker) -> Callable[[], Run]:
        return lambda: (side.ask("update"), side.run("update"))[1]

    with both_sides(folder, preset) as (ours, theirs):
        notes = [agreement.check_log_probabilities(ours, theirs, folder, preset)]
        notes.append(agreement.check_update(ours.ask("update"), theirs.ask("update"), preset))
        for note in notes:
            how.say(note)
        found = alternate("update", {"ours": second(ours), "theirs": second(theirs)}, how)
    flops = bounds.update_flops(preset, shared=True)
    flop_ratio = bounds.update_flops(preset, shared=False) / flops
    rate_ratio = rates["matrix_rate_ours"] / rates["matrix_rate_theirs"]
    yield Row(
        part="update",
        name=f"update, one prompt with {preset.group} completions of {preset.update_tokens} tokens",
        unit="completion tokens",
        amount=preset.group * preset.update_tokens,
        ours=found["ours"],
        theirs=found["theirs"],
        bound=limits.seconds(flops, 0),
        measured=found["ours"].seconds,
        notes=tuple(notes),
        figures={
            "flop_ratio": flop_ratio,
            "matrix_rate_ratio": rate_ratio,
            "ratio_bound": flop_ratio * rate_ratio,
            "share_of_ratio_bound": found["theirs"].seconds / found["ours"].seconds / (flop_ratio * rate_ratio),
        },
    )


def step(folder: pathlib.Path, preset: Preset, how: Alternation) -> Iterator[Row]:
    """The whole step with rewards, against TRL's trainer."""
    with both_sides(folder, preset) as (ours, theirs):
        sides = {"ours": lambda: ours.run("step"), "theirs": lambda: theirs.run("step")}
        found = alternate("step", sides, how)
    completions = preset.step_prompts * preset.group
    for name, measured in found.items():
        _check_count(name, measured, completions * preset.new_tokens)
    phases = sorted({name for run in found["ours"].runs for name in run.result if name.startswith("seconds_")})
    yield Row(
        part="step",
        name=f"step, {preset.step_prompts} x {preset.group} completions of {preset.new_tokens} tokens",
        unit="completion tokens",
        amount=completions * preset.new_tokens,
        ours=found["ours"],
        theirs=found["theirs"],
        figures={f"ours_{name}": found["ours"].median(name) for name in phases},
    )


def _check_count(name: str, measured: Measured, expected: int) -> None:
    drawn = {run.result["tokens_drawn"] for run in measured.runs}
    if drawn != {expected}:
        raise agreement.Disagreement(f"{name} drew {sorted(drawn)} tokens, expected {expected} in every run")
