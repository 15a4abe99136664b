"""FLOPs of products, and of the attention kernels by the blocks that they visit."""

import dataclasses
import functools
import math
import re

from vlaa_jax.planning.hlo import Array, Computation, Instruction, Program

# A kernel's traced operation carries its visited blocks in this scope: forward, dq, dkv (`models.splash`).
_VISITED = re.compile(r"visited_blocks_(\d+)_(\d+)_(\d+)")
_REMATERIALIZED = "rematted_computation"  # a scope of `jax.checkpoint`
_KERNEL = re.compile(r"splash_\w+?_(fwd|dq|dkv)")


@dataclasses.dataclass(frozen=True)
class Flops:
    """`total`, and what of it the backward pass computes again (`repeated`): rematerialized products, and the scores
    that backward kernels make anew."""

    total: float
    repeated: float

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.total + other.total, self.repeated + other.repeated)


def flops(program: Program, computation: Computation, instruction: Instruction) -> Flops:
    """Of one instruction, with the products inside its fusion."""
    if instruction.opcode == "fusion":
        fused = (program.computations[name] for name in instruction.called)
        return sum((flops(program, inner, one) for inner in fused for one in inner.instructions.values()), Flops(0, 0))
    again = _REMATERIALIZED in instruction.part
    if kernel := read_kernel(computation, instruction):
        return Flops(kernel.flops, kernel.flops if again else kernel.repeated_flops)
    count = {"convolution": _convolution, "dot": _dot}.get(instruction.opcode)
    total = count(instruction, computation) if count else 0.0
    return Flops(total, total if again else 0.0)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A splash attention kernel: forward, gradient of the queries (dq), of keys and values (dkv).

    Attributes:
      products: in a block. Two forward (scores, output); a backward kernel makes the scores and the gradient of their
        softmax again, and has one product for each gradient that it returns.
      repeated: of them, those that an earlier kernel has made.
      blocks: visited, of all heads and rows.
      queries, keys: of a block.
      width: of a head.
      streamed: operands that are fetched anew for every visited block, with their tokens of a block.
    """

    products: int
    repeated: int
    blocks: int
    queries: int
    keys: int
    width: int
    streamed: tuple[tuple[str, int], ...]

    @property
    def flops(self) -> float:
        return self.products * self._product

    @property
    def repeated_flops(self) -> float:
        return self.repeated * self._product

    @property
    def _product(self) -> float:
        return 2.0 * self.blocks * self.queries * self.keys * self.width

    def streamed_bytes(self, array: Array, tokens: int) -> float:
        """Read from an operand by all visited blocks together."""
        return self.blocks * tokens * self.width * array.bytes / math.prod(array.shape)


def is_kernel(instruction: Instruction) -> bool:
    """Whether it is a kernel of our own choice, which the compiler does not see into."""
    return instruction.opcode == "custom-call" and instruction.attribute("custom_call_target") == "tpu_custom_call"


def read_kernel(computation: Computation, instruction: Instruction) -> Kernel | None:
    """The attention kernel that an instruction is, or None."""
    if not is_kernel(instruction):
        return None
    visited, kind = _VISITED.search(instruction.part), _KERNEL.search(instruction.part)
    if not (visited and kind):
        return None
    suffix = {"fwd": "", "dq": "_dq", "dkv": "_dkv"}[kind[1]]
    size = lambda name: int(re.search(rf'"{name}{suffix}\\?": (\d+)', instruction.attributes)[1])  # noqa: E731
    queries, keys = size("block_q"), size("block_kv")
    named = [(name, computation.instructions[name].results[0]) for name in instruction.operands]
    heads = [(name, array) for name, array in named if len(array.shape) >= 3 and array.dtype in ("bf16", "f32")]
    (query, shape), (key, _), (value, _) = heads[:3]
    if kind[1] == "dkv":
        like = [name for name, array in heads[3:] if array.shape == shape.shape]
        streamed = tuple((name, queries) for name in (query, *like[-1:]))
    else:
        streamed = ((key, keys), (value, keys))
    gradients = [array for array in instruction.results if len(array.shape) >= 3] if kind[1] != "fwd" else []
    blocks = int(visited[("fwd", "dq", "dkv").index(kind[1]) + 1]) * math.prod(shape.shape[:-2])
    repeated = {"fwd": 0, "dq": 2, "dkv": 1}[kind[1]]
    return Kernel(2 + len(gradients), repeated, blocks, queries, keys, shape.shape[-1], streamed)


def _dot(instruction: Instruction, computation: Computation) -> float:
    left = computation.instructions[instruction.operands[0]].results[0].shape
    contracted = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
    return 2.0 * math.prod(instruction.results[0].shape) * math.prod(left[int(axis)] for axis in contracted)


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """On TPU every product is a convolution; an axis of a batched product becomes a window that is mostly padding."""
    labels = re.split("_|->", instruction.attribute("dim_labels"))
    left, right = (computation.instructions[name].results[0].shape for name in instruction.operands)
    out = instruction.results[0].shape
    window = _window(instruction.attribute("window"))
    total = 2.0 * right[labels[1].index("i")] * math.prod(out[labels[2].index(label)] for label in "bf")
    for place, label in enumerate(sorted(filter(str.isdigit, labels[2]))):
        total *= _taps(left[labels[0].index(label)], out[labels[2].index(label)], *(part[place] for part in window))
    return total


def _window(text: str) -> tuple[list[int], ...]:
    """Sizes, strides, left paddings, dilations of the input and of the window, one for each spatial axis."""
    fields = dict(field.split("=") for field in text.strip("{}").split())
    axes = len(fields.get("size", "").split("x"))

    def numbers(name: str, default: int) -> list[int]:
        return [int(part.split("_")[0]) for part in fields[name].split("x")] if name in fields else [default] * axes

    return (
        numbers("size", 1),
        numbers("stride", 1),
        numbers("pad", 0),
        numbers("lhs_dilate", 1),
        numbers("rhs_dilate", 1),
    )


@functools.lru_cache
def _taps(inputs: int, outputs: int, size: int, stride: int, pad: int, dilation: int, window_dilation: int) -> int:
    """Pairs of an output place and a window place that meet an input and not padding."""
    reach = (inputs - 1) * dilation + 1
    count = 0
    for tap in range(size):
        start = tap * window_dilation - pad  # of output 0; output o meets start + o * stride
        first = max(0, -(start // stride))
        last = min(outputs - 1, (reach - 1 - start) // stride)
        # One output in `period` meets an input and not a hole between two.
        period = dilation // math.gcd(stride, dilation)
        meets = (out for out in range(first, min(first + period, last + 1)) if (start + out * stride) % dilation == 0)
        if (out := next(meets, None)) is not None:
            count += (last - out) // period + 1
    return count
