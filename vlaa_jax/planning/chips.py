"""TPU chips and slices: what a chip can do by its published figures, which slices exist, how their chips are joined.

The published figures are those of docs.cloud.google.com/tpu/docs/ v5e, v5p and v6e, as read in 2026.
"""

import dataclasses
import importlib.util
import math
import os
import platform
import re
import sys

import jax
from jax.experimental import topologies

from vlaa_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip.

    Attributes:
      name: as topologies spell it.
      peak_flops: FLOP/s of bfloat16 products.
      hbm_bandwidth: bytes/s.
      hbm_capacity: bytes that the compiler lets a program use.
      clock: Hz, of the compiler's estimated cycles.
      matrix_unit: rows and columns of the systolic array.
      link_bandwidth: bytes/s of one inter-chip link in one direction.
      dcn_bandwidth: bytes/s of a chip's share of its host's network cards, in one direction.
      host_bandwidth: bytes/s between a chip and its host's memory, in one direction.
      wrap_around: an axis is a ring where this divides its size, else a line; of cubes all axes are, or none.
      slices: shapes that exist.
      cloud_names: prefixes of cloud names.
      cores: that a cloud name counts for a chip.
    """

    name: str
    peak_flops: float
    hbm_bandwidth: float
    hbm_capacity: int
    clock: float
    matrix_unit: int
    link_bandwidth: float
    dcn_bandwidth: float
    host_bandwidth: float
    wrap_around: int
    slices: tuple[tuple[int, ...], ...]
    cloud_names: tuple[str, ...]
    cores: int


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16)),
    *((8, 16, 16), (16, 16, 16), (16, 16, 24)),
)

# Peak, HBM bandwidth, ICI: the "key specifications" of each page. Its "bidirectional ICI bandwidth per chip" is that of
# all links (4, 6, 4) in both directions: 400, 1200, 800 GB/s. Network: 2 x 100 Gbit/s and 4 x 200 Gbit/s a host of 8
# chips (v5e, v6e), 50 Gbit/s a chip (v5p). HBM capacity: what libtpu 0.0.51 states when a program does not fit. Clock:
# peak over 2^17, 2^18, 2^19 FLOPs a cycle, which the compiler's estimates for large products come near (0.95, 0.95,
# 0.76). Host link: 15 GB/s, from a worked example of the JAX scaling book ("How to think about TPUs"); the pages above
# state none. Wrap-around: v5e and v6e on an axis of 16; v5p slices are made of cubes of 4x4x4, whose axes close.
CHIPS = {
    "v5e": Chip(
        name="v5e",
        peak_flops=197e12,
        hbm_bandwidth=819e9,
        hbm_capacity=int(15.75 * GIB),
        clock=1.5e9,
        matrix_unit=128,
        link_bandwidth=50e9,
        dcn_bandwidth=3.125e9,
        host_bandwidth=15e9,
        wrap_around=16,
        slices=_FLAT,
        cloud_names=("v5litepod", "v5e"),
        cores=1,
    ),
    "v5p": Chip(
        name="v5p",
        peak_flops=459e12,
        hbm_bandwidth=2765e9,
        hbm_capacity=int(95.73 * GIB),
        clock=1.75e9,
        matrix_unit=128,
        link_bandwidth=100e9,
        dcn_bandwidth=6.25e9,
        host_bandwidth=15e9,
        wrap_around=4,
        slices=_CUBES,
        cloud_names=("v5p",),
        cores=2,
    ),
    "v6e": Chip(
        name="v6e",
        peak_flops=918e12,
        hbm_bandwidth=1638e9,
        hbm_capacity=int(31.24 * GIB),
        clock=1.75e9,
        matrix_unit=256,
        link_bandwidth=100e9,
        dcn_bandwidth=12.5e9,
        host_bandwidth=15e9,
        wrap_around=16,
        slices=_FLAT,
        cloud_names=("v6e",),
        cores=1,
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that run one program.

    Attributes:
      chip: their kind.
      shape: of one slice, chips along each axis.
      slices: that the data-centre network joins.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def name(self) -> str:
        """As `read_topology` accepts it."""
        prefix = f"{self.slices}x" if self.slices > 1 else ""
        return f"{prefix}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def describe(self) -> str:
        chips = "1 chip" if self.chips == 1 else f"{self.chips} chips"
        return f"{self.name}, {chips} of {self.chip.hbm_capacity / GIB:.2f} GiB"

    def is_ring(self, axis: int) -> bool:
        """Whether the chips along an axis close to a ring; else they are a line."""
        sizes = self.shape if len(self.shape) == 3 else (self.shape[axis],)
        return all(size % self.chip.wrap_around == 0 for size in sizes)


def read_topology(text: str) -> Topology:
    """From a shape (`v5e:4x4`, `v5p:2x2x1`), a cloud name (`v5litepod-16`, `v6e-8`, `v5p-8`: v5p counts two cores a
    chip), or several slices of one (`2xv5e:4x4`).

    Raises:
      InputError: there is no such slice; the message names the nearest.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)(?::([\dx]+)|-(\d+))", text.strip().lower())
    chip = next((chip for chip in CHIPS.values() if match and match[2] in (chip.name, *chip.cloud_names)), None)
    slices = int(match[1] or 1) if match else 1
    if chip is None or slices < 1:
        kinds = ", ".join(CHIPS)
        raise InputError(f"topology {text} is unknown: expected a slice of {kinds}, like v5e:4x4, v5p-8 or 2xv6e:2x4")
    if match[3]:
        shape = tuple(int(size) for size in match[3].split("x") if size)
        count = math.prod(shape)
    else:
        count = int(match[4]) / chip.cores
        shape = next((shape for shape in chip.slices if math.prod(shape) == count), ())
    if shape not in chip.slices:
        nearest = min(chip.slices, key=lambda one: abs(math.log(math.prod(one) / max(count, 1))))
        raise InputError(f"topology {text} does not exist: the nearest is {Topology(chip, nearest, slices).name}")
    return Topology(chip, shape, slices)


def open_topology(topology: Topology) -> topologies.TopologyDescription:
    """The compiler's description of a topology, on a host without a TPU.

    It sets what libtpu wants off the cloud, so call it before JAX makes an array.

    Raises:
      InputError: libtpu is not installed.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Without these two it complains that it is no TPU host; which they name does not matter.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several programs may compile at once
    if importlib.util.find_spec("libtpu") is None:
        wheel = sys.platform == "linux" and platform.machine() == "x86_64"
        way = "pip install -e '.[plan]'" if wheel else "it has no wheel here: use a Linux container or Google Colab"
        raise InputError(f"compiling for {topology.name} needs libtpu, extra `plan`: {way}")
    if not jax.config.jax_platforms:  # else JAX would look for a TPU
        jax.config.update("jax_platforms", "cpu")
    shape = "x".join(map(str, topology.shape))
    several = {"num_slices": topology.slices} if topology.slices > 1 else {}
    return topologies.get_topology_desc(f"{topology.chip.name}:{shape}", platform="tpu", **several)
