"""Bytes that an instruction moves between HBM and the chip, and the copies that run beside the computation.

Only arrays in HBM count, at their padded size. A fusion reads of an operand that it slices or gathers from just that
part, and writes of one that it updates in place just the update; what it passes through costs nothing.
"""

import dataclasses

from vlaa_jax.planning.collectives import KINDS, is_reduce_scatter
from vlaa_jax.planning.flops import read_kernel
from vlaa_jax.planning.hlo import HBM, HOST, Array, Computation, Instruction, Program

_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id while conditional call "
    "opt-barrier send recv send-done recv-done add-dependency domain".split()
)
# Custom calls that only name memory.
_FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding")
_PARTS = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Copy:
    """An asynchronous copy: bytes read from and written to HBM, and bytes to or from the host's memory."""

    hbm: float
    host: float


def hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Read and written by an instruction while it runs; 0 for asynchronous copies and for collectives."""
    if instruction.opcode in KINDS or any(map(is_reduce_scatter, instruction.called)):
        return 0.0
    if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-start")):
        return 0.0
    if instruction.attribute("custom_call_target") in _FREE_CALLS:
        return 0.0
    if kernel := read_kernel(computation, instruction):
        arrays = {name: computation.instructions[name].results[0] for name in instruction.operands}
        once = sum(map(_in_hbm, (*arrays.values(), *instruction.results)))
        return once + sum(
            kernel.streamed_bytes(arrays[name], tokens) - arrays[name].padded_bytes
            for name, tokens in kernel.streamed
            if arrays[name].space == HBM
        )
    reads = 0.0
    for name in dict.fromkeys(instruction.operands):
        arrays = computation.instructions[name].results
        places = [place for place, operand in enumerate(instruction.operands) if operand == name]
        whole = sum(map(_in_hbm, arrays))
        parts = [_read(program, instruction, place) for place in places] if whole else []
        reads += whole if None in parts else min(whole, sum(parts))
    return reads + _written(program, computation, instruction)


def copy(program: Program, computation: Computation, instruction: Instruction) -> Copy | None:
    """The copy that an instruction starts, or None."""
    kind = instruction.opcode.removesuffix("-start")
    if kind == "async":
        inner = program.computations[instruction.called[0]]
        kind = inner.instructions[inner.root].opcode
    if not instruction.opcode.endswith("-start") or kind in KINDS:
        return None
    if kind == "copy":
        target, source = instruction.results[:2]
        moved = target.padded_bytes
    else:
        taken = len(computation.operands(instruction))
        source, target = instruction.results[0], instruction.results[taken]
        moved = instruction.results[1].padded_bytes if kind == "dynamic-update-slice" else target.padded_bytes
    ends = (source.space, target.space)
    return Copy(moved * ends.count(HBM), moved if HOST in ends else 0.0)


def _in_hbm(array: Array) -> float:
    return array.padded_bytes if array.space == HBM else 0.0


def _read(program: Program, user: Instruction, place: int) -> float | None:
    """Bytes that `user` reads of its operand at `place`; None for all of it."""
    if user.opcode in _PARTS and place == 0:
        return sum(array.padded_bytes for array in user.results)
    if user.opcode in ("dynamic-update-slice", "scatter") and place == 0:
        return 0.0
    if user.opcode == "fusion":
        inner = program.computations[user.called[0]]
        return _read_by_users(program, inner, inner.parameters[place])
    # A collective in a fusion is counted with the collectives, and a tuple passes on.
    if user.opcode in ("tuple", *KINDS) or "AsyncCollective" in user.attribute("custom_call_target"):
        return 0.0
    return None


def _read_by_users(program: Program, computation: Computation, name: str) -> float | None:
    """Bytes that a fused computation reads of its value `name`; None for all of it."""
    total = 0.0
    for user, place in computation.users[name]:
        parts = [] if user.opcode == "bitcast" else [_read(program, user, place)]
        if _passes_on(program, user, place):
            parts.append(_read_by_users(program, computation, user.name))
        if None in parts:
            return None
        total += sum(parts)
    return total


def _passes_on(program: Program, user: Instruction, place: int) -> bool:
    """Whether `user` gives its operand on under another shape: a bitcast, or a fusion of nothing else."""
    if user.opcode != "fusion":
        return user.opcode == "bitcast"
    inner = program.computations[user.called[0]]
    return _origin(inner, inner.root).name == inner.parameters[place]


def _origin(computation: Computation, name: str) -> Instruction:
    """The instruction that makes what `name` shows under another shape."""
    maker = computation.instructions[name]
    while maker.opcode == "bitcast":
        maker = computation.instructions[maker.operands[0]]
    return maker


def _written(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes of its results."""
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return sum(_update(computation, instruction)) if instruction.results[0].space == HBM else 0.0
    if instruction.opcode != "fusion":
        return sum(map(_in_hbm, instruction.results))
    inner = program.computations[instruction.called[0]]
    root = inner.instructions[inner.root]
    makers = root.operands if root.opcode == "tuple" else (root.name,)
    if len(makers) != len(instruction.results):  # a start of a collective
        return 0.0
    return sum(
        _made(program, inner, maker, array)
        for maker, array in zip(makers, instruction.results, strict=True)
        if array.space == HBM
    )


def _made(program: Program, computation: Computation, name: str, array: Array) -> float:
    """Bytes written where `name` of a fused computation becomes the result `array`."""
    maker = _origin(computation, name)
    if maker.opcode == "parameter" or maker.opcode in KINDS:
        return 0.0
    if "AsyncCollective" in maker.attribute("custom_call_target"):
        return 0.0
    if maker.opcode in ("dynamic-update-slice", "scatter"):
        if _origin(computation, maker.operands[0]).opcode == "parameter":
            return sum(_update(computation, maker))
    if maker.opcode == "fusion":
        inner = program.computations[maker.called[0]]
        if inner.instructions[inner.root].opcode != "tuple":
            return _made(program, inner, inner.root, array)
    return array.padded_bytes


def _update(computation: Computation, instruction: Instruction) -> list[float]:
    """Bytes that an update in place writes; a scatter reads them as well."""
    if instruction.opcode == "scatter":
        return [2 * computation.instructions[instruction.operands[-1]].results[0].padded_bytes]
    return [computation.instructions[instruction.operands[1]].results[0].padded_bytes]
