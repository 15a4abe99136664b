"""What chips send each other."""

import types

import pytest

from vlaa_jax.planning.collectives import Collective, collectives
from vlaa_jax.planning.cost import mesh_axes
from vlaa_jax.planning.hlo import parse

HEADER = "HloModule jit_f, num_partitions=16\n"
GROUPS = "replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}"


def found(lines: str, before: str = "") -> list[Collective]:
    program = parse(f"{HEADER}{before}\nENTRY %main (x: f32[]) -> f32[] {{\n{lines}}}\n")
    return [one for line in program.scheduled() for one in collectives(program, *line[:2])]


@pytest.mark.parametrize(
    "line, kind, sent",
    [
        # 64 x 32 float32 are 8,192 bytes; three quarters of what is gathered come from others.
        (f"f32[256,32] all-gather(%x), {GROUPS}, dimensions={{0}}", "all-gather", 4 * 8192 * 3 / 4),
        (f"(f32[64,32], f32[256,32]) all-gather-start(%x), {GROUPS}", "all-gather", 4 * 8192 * 3 / 4),
        (f"f32[64,32] all-reduce(%x), {GROUPS}, to_apply=%sum", "all-reduce", 2 * 8192 * 3 / 4),
        (f"f32[16,32] reduce-scatter(%x), {GROUPS}, dimensions={{0}}, to_apply=%sum", "reduce-scatter", 8192 * 3 / 4),
        (f"f32[64,32] all-to-all(%x), {GROUPS}, dimensions={{0}}", "all-to-all", 8192 * 3 / 4),
        ("f32[64,32] collective-permute(%x), source_target_pairs={{0,1},{1,0}}", "collective-permute", 8192),
        ("f32[64,32] all-reduce(%x), replica_groups={}, to_apply=%sum", "all-reduce", 2 * 8192 * 15 / 16),
    ],
)
def test_bytes(line, kind, sent):
    (one,) = found(f"  %x = f32[64,32] parameter(0)\n  ROOT %c = {line}\n")
    assert (one.kind, one.sent_bytes) == (kind, sent)


@pytest.mark.parametrize(
    "written, groups",
    [
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
    ],
)
def test_groups(written, groups):
    line = f"f32[64,32] all-reduce(%x), channel_id=1, replica_groups={written}, to_apply=%sum"
    (one,) = found(f"  %x = f32[64,32] parameter(0)\n  ROOT %c = {line}\n")
    assert one.groups == groups


def test_reduce_scatter_as_the_tpu_writes_it():
    fused = f"""
%all-reduce-scatter.3 (x: bf16[4160,2048]) -> bf16[1040,2048] {{
  %x = bf16[4160,2048] parameter(0)
  %r = bf16[4160,2048] all-reduce(%x), {GROUPS}, to_apply=%sum
  %i = s32[] constant(0)
  ROOT %d = bf16[1040,2048]{{1,0:S(1)}} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={{1040,2048}}
}}
"""
    lines = """  %x = bf16[4160,2048] parameter(0)
  ROOT %f = bf16[1040,2048]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
"""
    (one,) = found(lines, fused)
    assert (one.kind, one.sent_bytes) == ("reduce-scatter", 4160 * 2048 * 2 * 3 / 4)


def test_gather_that_runs_beside_a_product_counts_once():
    """It stands in three fusions: its start, the product beside which it runs, and its end."""
    config = 'backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}'
    gather = f"bf16[256,32] all-gather(%a), channel_id=4, {GROUPS}, dimensions={{0}}, {config}"
    fusions = f"""
%begin (a: bf16[64,32]) -> (bf16[64,32], bf16[256,32], s32[2]) {{
  %a = bf16[64,32]{{1,0:S(1)}} parameter(0)
  %g = {gather}
  ROOT %s = (bf16[64,32]{{1,0:S(1)}}, bf16[256,32]{{1,0:S(1)}}, s32[2]) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}}

%beside (a: bf16[64,32], x: bf16[8,8]) -> (bf16[8,8], bf16[256,32]) {{
  %a = bf16[64,32]{{1,0:S(1)}} parameter(0)
  %x = bf16[8,8] parameter(1)
  %p = bf16[8,8] convolution(%x, %x), dim_labels=bf_io->bf
  %g = {gather}
  ROOT %t = (bf16[8,8], bf16[256,32]) tuple(%p, %g)
}}

%end (a: bf16[64,32]) -> bf16[256,32] {{
  %a = bf16[64,32]{{1,0:S(1)}} parameter(0)
  %g = {gather}
  ROOT %d = bf16[256,32]{{1,0:S(1)}} custom-call(%a, %g), custom_call_target="AsyncCollectiveDone"
}}
"""
    lines = """  %a = bf16[64,32]{1,0:S(1)} parameter(0)
  %x = bf16[8,8] parameter(1)
  %s = (bf16[64,32]{1,0:S(1)}, bf16[256,32]{1,0:S(1)}, s32[2]) fusion(%a), kind=kCustom, calls=%begin
  %p = (bf16[8,8], bf16[256,32]{1,0:S(1)}) fusion(%a, %x), kind=kOutput, calls=%beside
  ROOT %d = bf16[256,32]{1,0:S(1)} fusion(%a), kind=kCustom, calls=%end
"""
    (one,) = found(lines, fusions)
    assert (one.kind, one.sent_bytes) == ("all-gather", 256 * 32 * 2 * 3 / 4)
    assert [array.space for array in one.results] == [1]


def test_gradient_between_slices():
    lines = """  %x = f32[2048,1024] parameter(0)
  %after = token[] after-all()
  ROOT %send = (f32[2048,1024]{1,0:T(8,128)}, u32[], token[]) send(%x, %after), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="psum.7_0",_xla_megascale_target="{1,2}x{0:3}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
"""
    (one,) = found(lines)
    assert (one.kind, one.slices, one.sent_bytes) == ("all-reduce", 2, 2 * 2048 * 1024 * 4 / 2)


def test_axes_of_the_mesh():
    mesh = types.SimpleNamespace(axis_names=("slice", "fsdp", "tensor"), shape={"slice": 1, "fsdp": 4, "tensor": 2})
    line = "  %x = f32[8] parameter(0)\n  ROOT %c = f32[8] all-reduce(%x), to_apply=%sum, replica_groups={}\n"
    along = lambda groups: mesh_axes(found(line.replace("{}", groups))[0], mesh)  # noqa: E731
    assert along("{{0,2,4,6},{1,3,5,7}}") == ("fsdp",)
    assert along("{{0,1},{2,3},{4,5},{6,7}}") == ("tensor",)
    assert along("[1,8]<=[8]") == ("fsdp", "tensor")
