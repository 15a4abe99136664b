"""Reads the text of a compiled program: its computations, and how often each runs.

The compiler's own `cost_analysis()` counts the body of a loop once and a kernel as nothing. What stands on a line is
counted elsewhere in this package; how often the line runs is said here.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

HBM, VECTOR_MEMORY, HOST = 0, 1, 5  # memory spaces; the others are small (flags, scalars)

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2}
_BYTES |= {"f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")
_SAME_VALUE = ("bitcast", "copy", "convert", "reshape")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program on one chip.

    Attributes:
      dtype: as the text names it.
      shape: sizes.
      bytes: of its values.
      padded_bytes: that it takes up; the last axes of its layout are padded to whole tiles.
      space: memory that it lives in, `HBM`, `VECTOR_MEMORY`, `HOST` or another.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: float
    padded_bytes: float
    space: int

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      name: unique in its computation.
      opcode: `fusion`, `convolution`, `all-gather`, ...
      results: arrays that it makes; a tuple's parts in order.
      operands: names of instructions of the same computation.
      literal: value of a constant, number of a parameter; '' otherwise.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs."""
        return tuple(
            name.strip().lstrip("%") for match in _CALLED.finditer(self.attributes) for name in match[1].split(",")
        )

    def attribute(self, name: str) -> str:
        """Value of `name=...` or `"name":"..."` up to the next comma or blank, quotes removed; '' without one."""
        match = re.search(rf'\b{name}"?[=:](\{{[^}}]*\}}|"[^"]*"|[^,\s]+)', self.attributes)
        return match[1].strip('"') if match else ""

    @functools.cached_property
    def part(self) -> str:
        """Where in the model it comes from: the scopes of its traced operation."""
        return self.attribute("op_name")


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of the schedule, by name; `root` is the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of its parameters, in order."""
        found = (one for one in self.instructions.values() if one.opcode == "parameter")
        return tuple(one.name for one in sorted(found, key=lambda one: int(one.literal)))

    @functools.cached_property
    def users(self) -> Mapping[str, list[tuple[Instruction, int]]]:
        """For each name, the instructions that take it and as which operand."""
        out: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for place, operand in enumerate(instruction.operands):
                out[operand].append((instruction, place))
        return out

    def operands(self, instruction: Instruction) -> tuple[Array, ...]:
        """Arrays that one of its instructions takes; those of a tuple one after the other."""
        return tuple(array for name in instruction.operands for array in self.instructions[name].results)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A `while`.

    Attributes:
      instruction: the `while` itself.
      caller: the computation that it stands in.
      condition, body: names of its computations.
      trips: how often its body runs at most; None when its condition compares with no constant.
      ends_early: whether its condition reads more than the counter.
    """

    instruction: Instruction
    caller: Computation
    condition: str
    body: str
    trips: int | None
    ends_early: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a compiled program; `entry` is where it starts, `chips` of each slice run it together."""

    computations: Mapping[str, Computation]
    entry: str
    chips: int

    @functools.cached_property
    def loops(self) -> tuple[Loop, ...]:
        """Every `while` that runs."""
        return tuple(
            self._loop(caller, instruction)
            for caller in map(self.computations.__getitem__, self.times)
            for instruction in caller.instructions.values()
            if instruction.opcode == "while"
        )

    @functools.cached_property
    def times(self) -> dict[str, float]:
        """How often each scheduled computation runs; those inside fusions belong to their fusion.

        The condition of a loop runs once more than its body. Of a conditional every branch counts, an upper bound. A
        loop without a known end counts once.
        """
        out: dict[str, float] = {}

        def visit(name: str, times: float) -> None:
            out[name] = out.get(name, 0) + times
            caller = self.computations[name]
            for instruction in caller.instructions.values():
                if instruction.opcode == "while":
                    loop = self._loop(caller, instruction)
                    trips = 1 if loop.trips is None else loop.trips
                    visit(loop.body, times * trips)
                    visit(loop.condition, times * (trips + 1))
                elif instruction.opcode in ("call", "conditional"):
                    for called in instruction.called:
                        visit(called, times)

        visit(self.entry, 1)
        return out

    def scheduled(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Every instruction that runs by itself, with its computation and how often."""
        for name, times in self.times.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, times

    def _loop(self, caller: Computation, instruction: Instruction) -> Loop:
        condition, body = (instruction.attribute(part).lstrip("%") for part in ("condition", "body"))
        carried = caller.instructions[instruction.operands[0]]
        places = carried.operands if carried.opcode == "tuple" else ()
        test = self._test(self.computations[condition], self.computations[condition].root)
        bounds = []
        for place, bound in test.bounds:
            start = self._constant(caller, places[place]) if places else None
            end = bound if isinstance(bound, int) else self._constant(caller, places[bound[0]]) if places else None
            if end is not None:
                bounds.append(math.ceil((end - (start or 0)) / self._step(self.computations[body], place)))
        return Loop(instruction, caller, condition, body, max(min(bounds), 0) if bounds else None, test.reads_more)

    def _test(self, computation: Computation, name: str, arguments: tuple = ()) -> "_Test":
        """What the boolean `name` of a condition asks.

        Args:
          computation: the condition, or a fusion in it.
          name: of the boolean.
          arguments: what the parameters of a fusion are, as `_value` says it.
        """
        instruction = computation.instructions[name]
        if instruction.opcode == "and":
            parts = [self._test(computation, operand, arguments) for operand in instruction.operands]
            return _Test(sum((part.bounds for part in parts), ()), any(part.reads_more for part in parts))
        if instruction.opcode in ("fusion", "call"):
            inner = self.computations[instruction.called[0]]
            values = tuple(self._value(computation, operand, arguments) for operand in instruction.operands)
            return self._test(inner, inner.root, values)
        if instruction.opcode == "compare" and instruction.attribute("direction") in ("LT", "GT"):
            left, right = (self._value(computation, operand, arguments) for operand in instruction.operands)
            if instruction.attribute("direction") == "GT":
                left, right = right, left
            if isinstance(left, tuple) and right is not None:
                return _Test(((left[0], right),), False)
        if instruction.opcode in _SAME_VALUE:
            return self._test(computation, instruction.operands[0], arguments)
        return _Test((), True)

    def _value(self, computation: Computation, name: str, arguments: tuple) -> "int | tuple[int] | None":
        """A constant, `(place,)` in the loop's tuple, or None."""
        instruction = computation.instructions[name]
        if instruction.opcode == "constant":
            return _integer(instruction.literal)
        if instruction.opcode == "get-tuple-element":
            return (int(instruction.attribute("index")),)
        if instruction.opcode == "parameter" and arguments:
            return arguments[int(instruction.literal)]
        if instruction.opcode in _SAME_VALUE:
            return self._value(computation, instruction.operands[0], arguments)
        return None

    def _constant(self, computation: Computation, name: str) -> int | None:
        """The integer `name` where it is known."""
        value = self._value(computation, name, ())
        return value if isinstance(value, int) else None

    def _step(self, body: Computation, place: int) -> int:
        """What a pass of a loop adds to its counter."""
        root = body.instructions[body.root]
        counter = body.instructions[root.operands[place]] if root.opcode == "tuple" else root
        while counter.opcode in _SAME_VALUE:
            counter = body.instructions[counter.operands[0]]
        steps = [self._constant(body, operand) for operand in counter.operands] if counter.opcode == "add" else []
        return next((step for step in steps if step), 1)


@dataclasses.dataclass(frozen=True)
class _Test:
    """`bounds`: (place of a counter in the loop's tuple, its end: a number or a place); `reads_more`: of the rest."""

    bounds: tuple[tuple[int, "int | tuple[int]"], ...]
    reads_more: bool


def parse(text: str) -> Program:
    """From the text of a compiled module."""
    computations, entry = {}, ""
    name, root, lines = "", "", []

    def close() -> None:
        instructions = [_instruction(match[2], line[match.end() :]) for match, line in lines]
        computations[name] = Computation(name, {one.name: one for one in instructions}, root)

    for line in text.splitlines():
        if match := _LINE.match(line):
            lines.append((match, line))
            root = match[2] if match[1] else root
        elif line == "}" or line.startswith("}, execution_thread="):
            if name:
                close()
            name = ""
        elif not line.startswith(" ") and (header := _HEADER.match(line)):
            name, root, lines = header[2], "", []
            entry = name if header[1] else entry
        elif lines:  # a kernel's metadata contain line breaks
            lines[-1] = (lines[-1][0], lines[-1][1] + line)
    chips = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Program(computations, entry, int(chips[1]) if chips else 1)


def _instruction(name: str, text: str) -> Instruction:
    stop = _closing(text[1:]) + 2 if text.startswith("(") else text.index(" ")
    results = tuple(_array(*match.groups()) for match in _ARRAY.finditer(text[:stop]))
    opcode, _, rest = text[stop:].strip().partition("(")
    stop = _closing(rest)
    literal = rest[:stop] if opcode in ("constant", "parameter") else ""
    operands = () if literal else tuple(re.findall(r"%([\w.\-]+)", rest[:stop]))
    return Instruction(name, opcode, results, operands, literal, rest[stop + 1 :])


@functools.lru_cache
def _array(dtype: str, sizes: str, layout: str | None) -> Array:
    shape = tuple(int(size) for size in sizes.split(",") if size)
    order, _, tiling = (layout or "").partition(":")
    padded = [shape[int(axis)] for axis in order.split(",") if axis] or list(shape)  # fastest axis first
    tile = re.match(r"T\(([\d,]+)\)", tiling)
    for place, size in enumerate(reversed(tile[1].split(",")) if tile else ()):
        if place < len(padded):
            padded[place] = -(-padded[place] // int(size)) * int(size)
        else:
            padded.append(int(size))
    space = re.search(r"S\((\d+)\)", tiling)
    width = _BYTES.get(dtype, 0)
    return Array(dtype, shape, math.prod(shape) * width, math.prod(padded) * width, int(space[1]) if space else HBM)


def _closing(text: str) -> int:
    """Place of the parenthesis that closes one opened before `text`."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text)


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d+", text) else None
