"""What chips send each other: the collectives of a program, who takes part, and the bytes that each chip sends."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from vlaa_jax.planning.hlo import Array, Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of the whole array that the group gathers, sums or exchanges: what one chip holds in the end of an
        all-gather, at the start of the others.
      operands, results: arrays.
      groups: chips, by their place in the mesh, that take part together.
      slices: of how many slices it is that only the data-centre network joins; 1 inside a slice.
      instruction: the line that it stands on; inside a fusion when that runs it.
    """

    kind: str
    size: float
    operands: tuple[Array, ...]
    results: tuple[Array, ...]
    groups: tuple[tuple[int, ...], ...]
    slices: int
    instruction: Instruction

    @property
    def sent_bytes(self) -> float:
        """That each chip sends, and as many it receives."""
        return sent_bytes(self.kind, self.size, len(self.groups[0]) if self.slices == 1 else self.slices)


def sent_bytes(kind: str, size: float, members: int) -> float:
    """Bytes that each of the members sends at least.

    Args:
      kind: one of `KINDS`.
      size: as in `Collective`.
      members: chips, or groups of chips that act as one.
    """
    if kind == "collective-permute":
        return size if members > 1 else 0.0
    return {"all-reduce": 2.0}.get(kind, 1.0) * size * (members - 1) / members


def collectives(program: Program, computation: Computation, instruction: Instruction) -> Iterator[Collective]:
    """Those that one scheduled instruction runs; of one that runs across several fusions, its start."""
    if instruction.opcode == "send" and (target := instruction.attribute("_xla_megascale_target")):
        yield _between_slices(computation, instruction, target)
    elif instruction.opcode in ("fusion", "async-start"):
        for name in instruction.called:
            inner = program.computations[name]
            for one in inner.instructions.values():
                if not _continues(inner, one):
                    yield from collectives(program, inner, one)
    elif (kind := instruction.opcode.removesuffix("-start")) in KINDS:
        users = [user for user, _ in computation.users[instruction.name]]
        maker = instruction
        if kind == "all-reduce" and is_reduce_scatter(computation.name):
            kind, maker = "reduce-scatter", users[0]
        elif started := [user for user in users if _target(user) == "AsyncCollectiveStart"]:
            maker = started[0]
        groups = _groups(instruction, program.chips)
        operands = computation.operands(instruction)
        results = maker.results
        if len(results) > len(operands):  # of a start: operands, results, flags
            results = results[len(operands) : 2 * len(operands)]
        size = sum(array.bytes for array in operands) * (len(groups[0]) if kind == "all-gather" else 1)
        yield Collective(kind, size, operands, results, groups, 1, instruction)


def is_reduce_scatter(name: str) -> bool:
    """Whether the computation is a fusion of an all-reduce and a slice of it: most reduce-scatters on TPU are."""
    return name.startswith("all-reduce-scatter")


def _continues(computation: Computation, instruction: Instruction) -> bool:
    """Whether a collective in a fusion was started by an earlier one."""
    if "async_collective_fusion_config" not in instruction.attributes:
        return False
    return all(_target(user) != "AsyncCollectiveStart" for user, _ in computation.users[instruction.name])


def _target(instruction: Instruction) -> str:
    return instruction.attribute("custom_call_target")


def _between_slices(computation: Computation, send: Instruction, target: str) -> Collective:
    """A transfer that the chips of equal place in all slices make, `{slices}x{devices}`, as a pair of send and recv."""
    kind = send.attribute("_xla_megascale_transfer_type").lower().replace("_", "-")
    kind = kind if kind in KINDS else "collective-permute"
    meeting = send.attribute("_xla_host_transfer_rendezvous")
    received = [
        one.results[0]
        for one in computation.instructions.values()
        if one.opcode == "recv" and one.attribute("_xla_host_transfer_rendezvous") == meeting
    ]
    sent = send.results[0]
    size = received[0].bytes if kind == "all-gather" and received else sent.bytes
    slices = len(re.findall(r"\d+", target.partition("x")[0]))
    return Collective(kind, size, (sent,), tuple(received), (), slices, send)


def _groups(instruction: Instruction, chips: int) -> tuple[tuple[int, ...], ...]:
    """From `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)`, `{}` or pairs of source and target."""
    if pairs := re.search(r"source_target_pairs=(\{\{.*?\}\})", instruction.attributes):
        return _listed(pairs[1])
    match = re.search(r"replica_groups=(\{\{.*?\}\}|\[[^ ]*)", instruction.attributes)
    if not match:
        return (tuple(range(chips)),)
    if match[1].startswith("{"):
        return _listed(match[1])
    form = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", match[1])
    shape, sizes, order = ([int(part) for part in text.split(",")] if text else None for text in form.groups())
    places = np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(shape)
    return tuple(tuple(map(int, row)) for row in places)


def _listed(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(chip) for chip in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", text))
