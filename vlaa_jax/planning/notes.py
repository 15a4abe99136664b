"""Says in words what is wasteful in a compiled program."""

import collections
import re
from collections.abc import Iterator

from vlaa_jax.planning.collectives import Collective
from vlaa_jax.planning.collectives import collectives as collectives_of
from vlaa_jax.planning.flops import is_kernel, read_kernel
from vlaa_jax.planning.hlo import HBM, VECTOR_MEMORY, Array, Computation, Instruction, Loop, Program

LARGE_COPY = 4 * 2**20  # bytes
LARGE_WEIGHT = 2**20
_MOVES_ONLY = frozenset(("parameter", "copy", "bitcast", "transpose", "reshape"))


def notes(program: Program) -> list[str]:
    """Sentences about what costs time without need; each names the part of the program, the array and its bytes.

    A copy of at least `LARGE_COPY` in a loop; in one that ends early (decoding) an array that is written back from
    vector memory, and a collective; a gathered float32 weight of at least `LARGE_WEIGHT`; an all-reduce of which each
    chip keeps a part; and what `cost` cannot count: a loop without a known end, an unknown kernel.
    """
    counts = collections.Counter(_notes(program))
    return [note if count == 1 else f"{note} ({count} of them)" for note, count in counts.items()]


def _notes(program: Program) -> Iterator[str]:
    bodies = _inside(program, program.loops)
    decoding = _inside(program, [loop for loop in program.loops if loop.ends_early])
    for loop in program.loops:
        if loop.trips is None:
            yield f"loop {_where(loop.instruction)}: how often it runs is not known; it counts once"
    for computation, instruction, times in program.scheduled():
        copied = _copied(program, computation, instruction)
        if copied and copied.bytes >= LARGE_COPY and computation.name in bodies:
            yield f"copy in a loop, {_where(instruction)}: {_amount(copied, times)}"
        written = _written_back(instruction)
        if written and written.bytes >= LARGE_COPY and computation.name in decoding:
            yield f"cache written back whole in a decode loop: {_amount(written, times)}"
        if is_kernel(instruction) and read_kernel(computation, instruction) is None:
            yield f"kernel {_where(instruction)}: its FLOPs are not known; it counts none"
        for one in collectives_of(program, computation, instruction):
            where = _where(one.instruction)
            largest = max(one.results, key=lambda array: array.bytes) if one.results else one.operands[0]
            if computation.name in decoding:
                yield f"{one.kind} in a decode loop, {where}: {_amount(largest, times)}"
            if one.kind == "all-gather" and largest.dtype == "f32" and largest.bytes >= LARGE_WEIGHT:
                yield f"gathered float32 weight, {where}: {_amount(largest, times)}; bfloat16 would halve it"
            for array in _scattered(program, computation, one):
                yield (
                    f"all-reduce of which each chip keeps a part, {where}: {_amount(array, times)}; "
                    "a reduce-scatter would send half"
                )


def _inside(program: Program, loops: list[Loop] | tuple[Loop, ...]) -> set[str]:
    """Computations that run in the bodies and conditions of loops."""
    found: set[str] = set()
    waiting = [name for loop in loops for name in (loop.body, loop.condition)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            for instruction in program.computations[name].instructions.values():
                if instruction.opcode in ("while", "call", "conditional"):
                    waiting += instruction.called
    return found


def _copied(program: Program, computation: Computation, instruction: Instruction) -> Array | None:
    """The array in HBM that an instruction only moves elsewhere in HBM."""
    opcode = instruction.opcode
    if opcode == "fusion":
        inside = {one.opcode for name in instruction.called for one in program.computations[name].instructions.values()}
        opcode = "copy" if inside <= _MOVES_ONLY else opcode
    if opcode not in ("copy", "copy-start") or not instruction.operands:
        return None
    target, source = instruction.results[0], computation.instructions[instruction.operands[0]].results[0]
    return target if target.space == source.space == HBM else None


def _written_back(instruction: Instruction) -> Array | None:
    """The array that a copy moves from vector memory to HBM: one that was fetched to be changed in a place or two."""
    if instruction.opcode != "copy-start":
        return None
    target, source = instruction.results[:2]
    return target if (target.space, source.space) == (HBM, VECTOR_MEMORY) else None


def _scattered(program: Program, computation: Computation, collective: Collective) -> Iterator[Array]:
    """Results of an all-reduce that are only read in slices."""
    instruction = collective.instruction
    if collective.kind != "all-reduce" or instruction.name not in computation.instructions:
        return
    for place, array in enumerate(collective.results):
        if len(collective.results) == 1:
            names = [instruction.name]
        else:
            taken = (user for user, _ in computation.users[instruction.name] if user.opcode == "get-tuple-element")
            names = [user.name for user in taken if int(user.attribute("index")) == place]
        if array.bytes >= LARGE_WEIGHT and names and all(_only_sliced(program, computation, name) for name in names):
            yield array


def _only_sliced(program: Program, computation: Computation, name: str) -> bool:
    users = computation.users[name]
    return bool(users) and all(_slices(program, computation, user, place) for user, place in users)


def _slices(program: Program, computation: Computation, user: Instruction, place: int) -> bool:
    if user.opcode in ("bitcast", "copy", "reshape", "convert"):
        return _only_sliced(program, computation, user.name)
    if user.opcode == "fusion":
        inner = program.computations[user.called[0]]
        return _only_sliced(program, inner, inner.parameters[place])
    return user.opcode in ("dynamic-slice", "slice") and place == 0


def _where(instruction: Instruction) -> str:
    scopes = re.sub(r"^jit\([^)]*\)/|shard_map/|closed_call/", "", instruction.part)
    return scopes or instruction.name


def _amount(array: Array, times: float) -> str:
    often = f" x {times:.0f}" if times > 1 else ""
    return f"{array}, {array.bytes / 2**20:.1f} MiB{often}"
