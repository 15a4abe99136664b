"""Which slices exist, how they are named and joined, and what the compiler says of their memory."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.planning import chips
from vlaa_jax.planning.chips import CHIPS, GIB, Topology, open_topology, read_topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="extra `plan` is not installed")


@pytest.mark.parametrize(
    "text, name, count",
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5e-256", "v5e:16x16", 256),
        ("v6e-8", "v6e:2x4", 8),
        ("v5p:2x2x1", "v5p:2x2x1", 4),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-16", "v5p:2x2x2", 8),
        ("2xv5e-16", "2xv5e:4x4", 32),
        ("2xv5p:2x2x1", "2xv5p:2x2x1", 8),
    ],
)
def test_names(text, name, count):
    topology = read_topology(text)
    assert (topology.name, topology.chips) == (name, count)
    assert read_topology(name) == topology


def test_description():
    assert read_topology("v6e-8").describe() == "v6e:2x4, 8 chips of 31.24 GiB"
    assert read_topology("v5e-1").describe() == "v5e:1x1, 1 chip of 15.75 GiB"


@pytest.mark.parametrize(
    "text, message",
    [
        ("v5e:4x5", "topology v5e:4x5 does not exist: the nearest is v5e:4x4"),
        ("v5e-12", "topology v5e-12 does not exist: the nearest is v5e:4x4"),
        ("v5p-12", "topology v5p-12 does not exist: the nearest is v5p:2x2x2"),
        ("v5p:2x2", "topology v5p:2x2 does not exist: the nearest is v5p:2x2x1"),
        ("2xv6e:1x2", "topology 2xv6e:1x2 does not exist: the nearest is 2xv6e:1x1"),
        ("h100:8", "topology h100:8 is unknown: expected a slice of v5e, v5p, v6e, like v5e:4x4, v5p-8 or 2xv6e:2x4"),
        ("0xv5e:4x4", "topology 0xv5e:4x4 is unknown: expected a slice of"),
    ],
)
def test_slices_that_do_not_exist(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_topology(text)


def test_rings():
    rings = lambda text: [read_topology(text).is_ring(axis) for axis in range(len(read_topology(text).shape))]  # noqa: E731
    assert rings("v5e:4x4") == [False, False]
    assert rings("v5e:8x16") == [False, True]
    assert rings("v6e:16x16") == [True, True]
    assert rings("v5p:2x2x4") == [False, False, False]  # less than a cube
    assert rings("v5p:4x4x8") == [True, True, True]


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(chips.sys, "platform", "darwin")
    message = "compiling for v5e:4x4 needs libtpu, extra `plan`: it has no wheel here: use a Linux container"
    with pytest.raises(InputError, match=message):
        open_topology(read_topology("v5e:4x4"))


@needs_libtpu
@pytest.mark.parametrize("chip", CHIPS)
def test_compiler_knows_every_slice(chip):
    for shape in CHIPS[chip].slices:
        devices = open_topology(Topology(CHIPS[chip], shape)).devices
        extents = tuple(1 + max(device.coords[axis] for device in devices) for axis in range(len(shape)))
        assert extents == shape and len(devices) == np.prod(shape)
    assert {device.slice_index for device in open_topology(Topology(CHIPS[chip], shape, 2)).devices} == {0, 1}


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_capacity_is_what_the_compiler_states(name):
    topology = read_topology(name)
    device = open_topology(topology).devices[0]
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh([device], "x"), jax.sharding.PartitionSpec())
    tebibyte = jax.ShapeDtypeStruct((2**28, 2**10), jnp.float32, sharding=sharding)
    with pytest.raises(Exception, match="Ran out of memory") as error:
        jax.jit(jnp.negative).lower(tebibyte).compile()
    stated = re.search(r"available HBM \(([\d.]+)G\)", str(error.value))[1]
    assert f"{topology.chip.hbm_capacity / GIB:.2f}" == stated
