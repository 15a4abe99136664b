"""The time of a compiled program by our own model: published rates, the program's text, and the rules below.

It ranks programs and says what bounds them; it is no timing. The compiler's own estimate leaves out collectives,
kernels and asynchronous copies.

*An operation* costs the largest of three: its FLOPs over the chip's peak, its HBM bytes over the bandwidth, and the
compiler's `estimated_cycles` over the clock. The cycles count for products too: by them large products reach 0.9 of the
peak on v5e and v5p and 0.7 on v6e. Where they leave out that operands come from HBM (products of few rows) the bytes
are more and count; where they rate a plain reduction far above its bytes they count, so the model errs towards slow.
Arrays in vector memory move no HBM bytes. Operations run one after the other: their sum is the channel `compute`.

*A kernel* of attention carries no estimate: its FLOPs are those of the blocks that it visits, its bytes each operand
and result once and the streamed ones (keys and values, or queries and the output's gradient) once for every visited
block of every head. A head narrower than the matrix unit fills only a part of it, and takes as long as a wide one. The
exponentials are not counted.

*Copies* (copy-start, slice-start: DMAs) run on the HBM channel, those to and from the host's memory on the host link.
The HBM channel carries all HBM bytes: copies, those of the operations, and the arrays of collectives.

*Collectives* run on the inter-chip links (ICI) by rings along every axis of the slice that their group spans, all at
once; a closed ring is used both ways, a line moves the bytes of one direction (its last chip has one link). An
all-to-all takes what the cut through the middle of the longest axis takes. Between slices the bytes go over each
chip's share of the data-centre network (DCN). Latencies are not counted.

`seconds_overlapped` is the largest channel: everything hides behind it. `seconds_summed` is all of them one after the
other: nothing hides. The truth lies between.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from vlaa_jax.planning import traffic
from vlaa_jax.planning.chips import Topology
from vlaa_jax.planning.collectives import Collective, sent_bytes
from vlaa_jax.planning.collectives import collectives as collectives_of
from vlaa_jax.planning.flops import flops, read_kernel
from vlaa_jax.planning.hlo import HBM, Computation, Instruction, Program
from vlaa_jax.sharding import AXES

_LARGEST = 20
_CYCLES = "compiler's cycles"


@dataclasses.dataclass(frozen=True)
class Contribution:
    """What one line of the program adds to a channel.

    Attributes:
      seconds: of all its runs.
      channel: `compute`, `HBM`, `ICI`, `DCN` or `host link`.
      limit: what it waits for: a name of `Cost.bound_by`.
      times: how often it runs.
      instruction: its name and first result, and the axes of the mesh that a collective runs along.
      part: scopes of its traced operation.
    """

    seconds: float
    channel: str
    limit: str
    times: float
    instruction: str
    part: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of a program takes on each chip.

    Attributes:
      flops: of products and kernels.
      unrepeated_flops: of them, those that are not computed again in the backward pass.
      hbm_traffic_bytes: read and written.
      collectives: for each kind how often it runs and the bytes that a chip sends; those between slices by themselves.
      seconds_overlapped: when the busiest channel hides all others.
      seconds_summed: when nothing overlaps.
      bound_by: what the busiest channel waits for: `matrix unit`, `HBM`, `compiler's cycles`, `ICI`, `DCN` or
        `host link`.
      channels: seconds of each.
      largest: contributions, largest first.
    """

    flops: float
    unrepeated_flops: float
    hbm_traffic_bytes: float
    collectives: Mapping[str, Mapping[str, float]]
    seconds_overlapped: float
    seconds_summed: float
    bound_by: str
    channels: Mapping[str, float]
    largest: Sequence[Contribution]


def cost(program: Program, topology: Topology, mesh: Mesh) -> Cost:
    """Applies the rules above.

    Args:
      program: compiled for `mesh`.
      topology: of its chips.
      mesh: its devices carry coordinates.
    """
    total = _Sum()
    for computation, instruction, times in program.scheduled():
        total.add_operation(_operation(program, computation, instruction, topology), instruction, times)
        if moved := traffic.copy(program, computation, instruction):
            total.hbm_bytes += times * moved.hbm
            total.add(times * moved.hbm / topology.chip.hbm_bandwidth, "HBM", "HBM", instruction, times)
            total.add(times * moved.host / topology.chip.host_bandwidth, "host link", "host link", instruction, times)
        for one in collectives_of(program, computation, instruction):
            channel = "ICI" if one.slices == 1 else "DCN"
            kind = one.kind if one.slices == 1 else f"{one.kind} between slices"
            total.counts[kind] += times
            total.sent[kind] += times * one.sent_bytes
            total.hbm_bytes += times * _local_bytes(one)
            seconds = times * _collective_seconds(one, topology, mesh)
            total.add(seconds, channel, channel, one.instruction, times, along=mesh_axes(one, mesh))
    return total.cost(topology)


def mesh_axes(collective: Collective, mesh: Mesh) -> tuple[str, ...]:
    """Axes of the mesh that a collective runs along."""
    if collective.slices > 1:
        return AXES[:1]
    group = collective.groups[0]
    sizes = list(mesh.shape.values())
    places = [[chip // math.prod(sizes[axis + 1 :]) % sizes[axis] for chip in group] for axis in range(len(sizes))]
    return tuple(name for name, along in zip(mesh.axis_names, places, strict=True) if len(set(along)) > 1)


@dataclasses.dataclass(frozen=True)
class _Operation:
    """Seconds of one run by each limit, and what it counts."""

    flops: float
    repeated: float
    hbm_bytes: float
    limits: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return max(self.limits.values())

    @property
    def limit(self) -> str:
        # Cycles are named where they are not those of the matrix unit or the memory and what it loses.
        order = sorted(self.limits, key=self.limits.__getitem__)
        return order[-2] if order[-1] == _CYCLES and self.limits[order[-2]] > self.seconds / 2 else order[-1]


def _operation(program: Program, computation: Computation, instruction: Instruction, topology: Topology) -> _Operation:
    chip = topology.chip
    count = flops(program, computation, instruction)
    moved = traffic.hbm_bytes(program, computation, instruction)
    kernel = read_kernel(computation, instruction)
    fill = kernel.width / (-(-kernel.width // chip.matrix_unit) * chip.matrix_unit) if kernel else 1.0
    limits = {
        "matrix unit": count.total / chip.peak_flops / fill,
        "HBM": moved / chip.hbm_bandwidth,
        _CYCLES: float(instruction.attribute("estimated_cycles") or 0) / chip.clock,
    }
    return _Operation(count.total, count.repeated, moved, limits)


def _local_bytes(collective: Collective) -> float:
    """HBM bytes that a chip reads for a collective and writes of its result."""
    arrays = (*collective.operands, *collective.results)
    return sum(array.padded_bytes for array in arrays if array.space == HBM)


def _collective_seconds(collective: Collective, topology: Topology, mesh: Mesh) -> float:
    if collective.slices > 1:
        return collective.sent_bytes / topology.chip.dcn_bandwidth
    # In a program over several slices chips are numbered inside their own.
    places = [mesh.devices.flat[chip].coords for chip in collective.groups[0]]
    extents = [len({place[axis] for place in places}) for axis in range(len(topology.shape))]
    link = topology.chip.link_bandwidth
    rates = {
        axis: link * (2 if extent == topology.shape[axis] and topology.is_ring(axis) else 1)
        for axis, extent in enumerate(extents)
        if extent > 1
    }
    if not rates:
        return 0.0
    if collective.kind == "all-to-all":
        return max(collective.size * extents[axis] / (4 * rate) for axis, rate in rates.items())
    if collective.kind == "collective-permute":
        return collective.size / link
    return sent_bytes(collective.kind, collective.size, len(places)) / sum(rates.values())


class _Sum:
    """Collects what the lines of a program add."""

    def __init__(self):
        self.flops = self.repeated = self.hbm_bytes = 0.0
        self.limits: dict[str, float] = collections.Counter()
        self.counts: dict[str, float] = collections.Counter()
        self.sent: dict[str, float] = collections.Counter()
        self.contributions: list[Contribution] = []

    def add(
        self,
        seconds: float,
        channel: str,
        limit: str,
        instruction: Instruction,
        times: float,
        along: Sequence[str] = (),
    ) -> None:
        if seconds:
            shown = " ".join(
                (instruction.name, *map(str, instruction.results[:1]), *(f"along {axis}" for axis in along))
            )
            self.contributions.append(Contribution(seconds, channel, limit, times, shown, instruction.part))

    def add_operation(self, operation: _Operation, instruction: Instruction, times: float) -> None:
        self.flops += times * operation.flops
        self.repeated += times * operation.repeated
        self.hbm_bytes += times * operation.hbm_bytes
        self.limits[operation.limit] += times * operation.seconds
        self.add(times * operation.seconds, "compute", operation.limit, instruction, times)

    def cost(self, topology: Topology) -> Cost:
        chip = topology.chip
        alone: dict[str, float] = collections.Counter()
        for one in self.contributions:
            alone[one.channel] += one.seconds
        channels = {**alone, "HBM": self.hbm_bytes / chip.hbm_bandwidth}
        busiest = max(channels, key=channels.__getitem__)
        overlapped = channels[busiest]
        unrepeated = self.flops - self.repeated
        return Cost(
            flops=self.flops,
            unrepeated_flops=unrepeated,
            hbm_traffic_bytes=self.hbm_bytes,
            collectives={kind: {"count": self.counts[kind], "bytes": self.sent[kind]} for kind in sorted(self.counts)},
            seconds_overlapped=overlapped,
            seconds_summed=sum(alone.values()),
            bound_by=max(self.limits, key=self.limits.__getitem__) if busiest == "compute" else busiest,
            channels=channels,
            largest=sorted(self.contributions, key=lambda one: -one.seconds)[:_LARGEST],
        )
