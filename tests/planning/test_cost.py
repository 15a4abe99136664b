"""The model of time: each rule by hand-computed seconds on a v5e of published rates."""

import itertools
import types

import numpy as np
import pytest

from vlaa_jax.planning.chips import read_topology
from vlaa_jax.planning.cost import cost
from vlaa_jax.planning.hlo import parse

PEAK, HBM, CLOCK, LINK, DCN, HOST = 197e12, 819e9, 1.5e9, 50e9, 3.125e9, 15e9


def price(lines: str, *, topology: str = "v5e:4x4", before: str = "", fsdp: int = 16, tensor: int = 1):
    """Cost of an entry computation on a mesh whose chips are numbered row by row."""
    slice_ = read_topology(topology)
    devices = [types.SimpleNamespace(coords=(*place, 0)) for place in itertools.product(*map(range, slice_.shape))]
    mesh = types.SimpleNamespace(
        devices=np.array(devices, dtype=object).reshape(1, fsdp, tensor),
        axis_names=("slice", "fsdp", "tensor"),
        shape={"slice": 1, "fsdp": fsdp, "tensor": tensor},
    )
    text = f"HloModule jit_f, num_partitions={slice_.chips}\n{before}\nENTRY %main (x: f32[]) -> f32[] {{\n{lines}}}\n"
    return cost(parse(text), slice_, mesh)


def test_product_takes_the_peak_or_the_compilers_cycles():
    lines = """  %x = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %c = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %x), dim_labels=bf_io->bf
"""
    flops = 2 * 4096**3
    plain = price(lines)
    assert plain.flops == plain.unrepeated_flops == flops and plain.hbm_traffic_bytes == 0
    assert plain.seconds_overlapped == plain.seconds_summed == pytest.approx(flops / PEAK)
    assert plain.bound_by == "matrix unit"
    estimated = lines.replace("io->bf\n", 'io->bf, backend_config={"window_config":{"estimated_cycles":"1200000"}}\n')
    slower = price(estimated)
    assert slower.seconds_overlapped == pytest.approx(1_200_000 / CLOCK) and slower.bound_by == "matrix unit"


def test_recomputed_product_counts_apart():
    both = price("""  %x = bf16[512,512]{1,0:S(1)} parameter(0)
  %a = bf16[512,512]{1,0:S(1)} convolution(%x, %x), dim_labels=bf_io->bf
  ROOT %b = bf16[512,512]{1,0:S(1)} convolution(%x, %a), dim_labels=bf_io->bf, \
metadata={op_name="checkpoint/rematted_computation/dot_general"}
""")
    assert both.unrepeated_flops == both.flops / 2


def test_operation_of_few_rows_waits_for_its_weights():
    lines = """  %x = bf16[64,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[2048,11008]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[64,11008]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf, \
backend_config={"estimated_cycles":"CYCLES"}
"""
    found = price(lines.replace("CYCLES", "29808"))
    moved = 2 * (64 * 2048 + 2048 * 11008 + 64 * 11008)
    assert found.hbm_traffic_bytes == moved and found.bound_by == "HBM"
    assert found.seconds_overlapped == pytest.approx(moved / HBM)  # 57.1 us
    slower = price(lines.replace("CYCLES", "128004"))
    assert slower.seconds_overlapped == pytest.approx(128_004 / CLOCK) and slower.bound_by == "HBM"
    assert price(lines.replace("CYCLES", "200000")).bound_by == "compiler's cycles"


def test_cycles_of_an_operation_without_products():
    lines = """  %x = f32[1024,1024]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %y = f32[1024,1024]{1,0:T(8,128)S(1)} exponential(%x), backend_config={"estimated_cycles":"3000"}
"""
    found = price(lines)
    assert found.seconds_overlapped == pytest.approx(3000 / CLOCK) and found.bound_by == "compiler's cycles"


def test_copies_run_beside_and_the_bounds_differ():
    """A product of 17.4 us beside a prefetch of 8 MiB, read from HBM only, in a loop of ten."""
    loop = """
%condition (p: (s32[], bf16[1024,1024])) -> pred[] {
  %p = (s32[], bf16[1024,1024]{1,0:S(1)}, f32[2048,1024]{1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%p), index=0
  %n = s32[]{:S(6)} constant(10)
  ROOT %less = pred[]{:S(6)} compare(%i, %n), direction=LT
}

%body (p: (s32[], bf16[1024,1024])) -> (s32[], bf16[1024,1024]) {
  %p = (s32[], bf16[1024,1024]{1,0:S(1)}, f32[2048,1024]{1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%p), index=0
  %x = bf16[1024,1024]{1,0:S(1)} get-tuple-element(%p), index=1
  %w = f32[2048,1024]{1,0} get-tuple-element(%p), index=2
  %start = (f32[2048,1024]{1,0:S(1)}, f32[2048,1024]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %c = bf16[1024,1024]{1,0:S(1)} convolution(%x, %x), dim_labels=bf_io->bf
  %done = f32[2048,1024]{1,0:S(1)} copy-done(%start)
  %one = s32[]{:S(6)} constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  ROOT %out = (s32[], bf16[1024,1024]{1,0:S(1)}, f32[2048,1024]{1,0}) tuple(%next, %c, %w)
}
"""
    lines = """  %x = bf16[1024,1024]{1,0:S(1)} parameter(0)
  %w = f32[2048,1024]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %t = (s32[], bf16[1024,1024]{1,0:S(1)}, f32[2048,1024]{1,0}) tuple(%zero, %x, %w)
  ROOT %l = (s32[], bf16[1024,1024]{1,0:S(1)}, f32[2048,1024]{1,0}) while(%t), condition=%condition, body=%body
"""
    found = price(lines, before=loop)
    product, prefetch = 2 * 1024**3 / PEAK, 2048 * 1024 * 4 / HBM
    assert found.flops == 10 * 2 * 1024**3
    assert found.hbm_traffic_bytes == 10 * 2048 * 1024 * 4
    assert found.seconds_overlapped == pytest.approx(10 * product, rel=1e-3)
    assert found.seconds_summed == pytest.approx(10 * (product + prefetch), rel=1e-3)
    assert [(one.channel, one.times) for one in found.largest[:2]] == [("compute", 10), ("HBM", 10)]


def test_copy_from_the_host():
    found = price("""  %x = f32[1024,1024]{1,0:S(5)} parameter(0)
  ROOT %c = (f32[1024,1024]{1,0}, f32[1024,1024]{1,0:S(5)}, u32[]) copy-start(%x)
""")
    assert found.channels["host link"] == pytest.approx(4 * 2**20 / HOST) and found.bound_by == "host link"


@pytest.mark.parametrize(
    "topology, fsdp, tensor, operation, seconds",
    [
        # Both axes of 4x4 are lines: 50 GB/s each.
        ("v5e:4x4", 16, 1, "all-gather(%x), replica_groups={}", 16 * 2**20 * 15 / 16 / (2 * LINK)),
        ("v5e:4x4", 16, 1, "all-reduce(%x), replica_groups={}", 2 * 2**20 * 15 / 16 / (2 * LINK)),
        # Two neighbours: one link.
        ("v5e:4x4", 8, 2, "all-reduce(%x), replica_groups=[8,2]<=[16]", 2 * 2**20 / 2 / LINK),
        # A closed axis of 16 goes both ways.
        ("v5e:16x16", 256, 1, "all-gather(%x), replica_groups={}", 256 * 2**20 * 255 / 256 / (4 * LINK)),
        ("v5e:8x16", 128, 1, "all-gather(%x), replica_groups={}", 128 * 2**20 * 127 / 128 / (3 * LINK)),
        # The middle of an axis of four: half of the chips send half of their bytes over four links.
        ("v5e:4x4", 16, 1, "all-to-all(%x), replica_groups={}", 2**20 / LINK),
        ("v5e:4x4", 16, 1, "collective-permute(%x), source_target_pairs={{0,1},{1,2}}", 2**20 / LINK),
        ("v5p:2x2x1", 4, 1, "all-gather(%x), replica_groups={}", 4 * 2**20 * 3 / 4 / (2 * 100e9)),
        ("v5e:4x4", 16, 1, "all-reduce(%x), replica_groups=[16,1]<=[16]", 0),
    ],
)
def test_collectives(topology, fsdp, tensor, operation, seconds):
    array = "f32[512,512]{1,0:T(8,128)S(1)}"  # 1 MiB
    lines = f"  %x = {array} parameter(0)\n  ROOT %c = {array} {operation}\n"
    found = price(lines, topology=topology, fsdp=fsdp, tensor=tensor)
    assert found.channels.get("ICI", 0) == pytest.approx(seconds)
    assert found.bound_by == ("ICI" if seconds else found.bound_by)


def test_gradient_between_slices():
    found = price("""  %x = f32[512,512]{1,0:S(1)} parameter(0)
  %after = token[] after-all()
  ROOT %send = (f32[512,512]{1,0:S(1)}, u32[], token[]) send(%x, %after), \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
""")
    assert found.channels["DCN"] == pytest.approx(2**20 / DCN) and found.bound_by == "DCN"
    assert found.collectives == {"all-reduce between slices": {"count": 1, "bytes": 2**20}}


def test_kernel_of_a_narrow_head_fills_a_part_of_the_matrix_unit():
    lines = """  %q = bf16[16,1024,80]{2,1,0:S(1)} parameter(0)
  ROOT %a = bf16[16,1024,80]{2,1,0:S(1)} custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512}"
}}, metadata={op_name="visited_blocks_4_4_4/splash_mha_fwd/pallas_call"}
"""
    flops = 2 * 2 * 4 * 16 * 512 * 512 * 80
    found = price(lines)
    assert found.flops == flops
    assert found.seconds_overlapped == pytest.approx(flops / PEAK * 128 / 80)


def test_largest_contributions_name_their_axes():
    found = price(
        "  %x = f32[512,512]{1,0:S(1)} parameter(0)\n"
        "  ROOT %sum = f32[512,512]{1,0:S(1)} all-reduce(%x), replica_groups=[8,2]<=[16], "
        'metadata={op_name="jit(f)/layers/output"}\n',
        fsdp=8,
        tensor=2,
    )
    (one,) = found.largest
    assert (one.instruction, one.part) == ("sum f32[512,512] along tensor", "jit(f)/layers/output")
