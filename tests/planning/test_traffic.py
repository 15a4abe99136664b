"""HBM bytes of operations and copies."""

import pytest

from vlaa_jax.planning import traffic
from vlaa_jax.planning.hlo import parse

STACK, LAYER = "bf16[36,128,2048]{2,1,0:T(8,128)(2,1)}", "bf16[128,2048]{1,0:T(8,128)(2,1)}"
LAYER_BYTES = 128 * 2048 * 2


def root(lines: str, before: str = ""):
    program = parse(f"HloModule jit_f\n{before}\nENTRY %main (x: f32[]) -> f32[] {{\n{lines}}}\n")
    main = program.computations["main"]
    return program, main, main.instructions[main.root]


@pytest.mark.parametrize(
    "lines, expected",
    [
        (f"  %x = {LAYER} parameter(0)\n  ROOT %y = {LAYER} all-reduce(%x), to_apply=%add\n", 0),
        (f"  %x = {LAYER} parameter(0)\n  ROOT %y = {LAYER} add(%x, %x)\n", 2 * LAYER_BYTES),
        (f"  %x = {LAYER} parameter(0)\n  ROOT %y = {LAYER[:-1]}S(1)}} negate(%x)\n", LAYER_BYTES),
        (f"  %x = {LAYER[:-1]}S(1)}} parameter(0)\n  ROOT %y = {LAYER[:-1]}S(1)}} negate(%x)\n", 0),
        (f"  %x = {LAYER} parameter(0)\n  ROOT %y = {STACK} bitcast(%x)\n", 0),
        (f"  %x = ({LAYER}, f32[8]) parameter(0)\n  ROOT %y = {LAYER} get-tuple-element(%x), index=0\n", 0),
        (
            f"  %x = {STACK} parameter(0)\n  %i = s32[] parameter(1)\n"
            "  ROOT %y = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)} dynamic-slice(%x, %i, %i, %i)\n",
            2 * LAYER_BYTES + 3 * 0 + 4,  # the slice twice, and the index
        ),
        (
            f"  %x = {STACK} parameter(0)\n  %i = s32[] parameter(1)\n  %u = bf16[1,128,2048]{{2,1,0}} parameter(2)\n"
            f"  ROOT %y = {STACK} dynamic-update-slice(%x, %u, %i, %i, %i)\n",
            2 * LAYER_BYTES + 4,
        ),
        (f'  %x = {LAYER} parameter(0)\n  ROOT %y = {STACK} custom-call(), custom_call_target="AllocateBuffer"\n', 0),
    ],
    ids=["collective", "twice", "into_vmem", "in_vmem", "bitcast", "element", "slice", "update", "buffer"],
)
def test_operation(lines, expected):
    assert traffic.hbm_bytes(*root(lines)) == expected


def test_fusion_reads_a_slice_and_updates_in_place():
    """One layer of a stack is read, converted, and put into a stack of float32."""
    fused = """
%inner (s: bf16[36,128,2048]) -> bf16[1,128,2048] {
  %s = bf16[36,128,2048]{2,1,0:T(8,128)(2,1)} parameter(0)
  %j = s32[] parameter(1)
  %b = bf16[36,128,2048]{2,1,0:T(8,128)(2,1)} bitcast(%s)
  ROOT %slice = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)} dynamic-slice(%b, %j, %j, %j)
}

%fused (s: bf16[36,128,2048], i: s32[], acc: f32[36,128,2048]) -> f32[36,128,2048] {
  %s = bf16[36,128,2048]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[] parameter(1)
  %acc = f32[36,128,2048]{2,1,0:T(8,128)} parameter(2)
  %layer = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)} fusion(%s, %i), kind=kLoop, calls=%inner
  %wide = f32[1,128,2048]{2,1,0:T(8,128)} convert(%layer)
  %old = f32[1,128,2048]{2,1,0:T(8,128)} dynamic-slice(%acc, %i, %i, %i)
  %new = f32[1,128,2048]{2,1,0:T(8,128)} add(%old, %wide)
  ROOT %out = f32[36,128,2048]{2,1,0:T(8,128)} dynamic-update-slice(%acc, %new, %i, %i, %i)
}
"""
    lines = f"""  %s = {STACK} parameter(0)
  %i = s32[]{{:S(6)}} parameter(1)
  %acc = f32[36,128,2048]{{2,1,0:T(8,128)}} parameter(2)
  ROOT %f = f32[36,128,2048]{{2,1,0:T(8,128)}} fusion(%s, %i, %acc), kind=kLoop, calls=%fused
"""
    # bfloat16 layer read, float32 layer read and written
    assert traffic.hbm_bytes(*root(lines, fused)) == LAYER_BYTES + 2 * 2 * LAYER_BYTES
    # A buffer made in the fusion is no update in place: all of it is written.
    fresh = fused.replace("f32[36,128,2048]{2,1,0:T(8,128)} dynamic-update-slice(%acc", "X").replace(
        "ROOT %out = X",
        "%zeros = f32[36,128,2048] broadcast(%i)\n  ROOT %out = f32[36,128,2048] dynamic-update-slice(%zeros",
    )
    assert traffic.hbm_bytes(*root(lines, fresh)) == LAYER_BYTES + 2 * LAYER_BYTES + 36 * 2 * LAYER_BYTES


def test_fusion_passes_on_and_returns_several():
    fused = f"""
%fused (a: {LAYER}, b: {LAYER}) -> ({LAYER}, {LAYER}, {LAYER}) {{
  %a = {LAYER} parameter(0)
  %b = {LAYER} parameter(1)
  %sum = {LAYER} add(%a, %a)
  ROOT %out = ({LAYER}, {LAYER}, {LAYER}) tuple(%sum, %b, %sum)
}}
"""
    lines = f"""  %a = {LAYER} parameter(0)
  %b = {LAYER} parameter(1)
  ROOT %f = ({LAYER}, {LAYER}, {LAYER[:-1]}S(1)}}) fusion(%a, %b), kind=kLoop, calls=%fused
"""
    assert traffic.hbm_bytes(*root(lines, fused)) == 2 * LAYER_BYTES


def test_weight_that_a_nested_fusion_only_reshapes_is_read():
    fused = """
%shape (w: bf16[256,1024]) -> bf16[128,2048] {
  %w = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %b = bf16[128,2048]{1,0:T(8,128)(2,1)} bitcast(%w)
}

%fused (w: bf16[256,1024], x: bf16[64,128]) -> bf16[64,2048] {
  %w = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %s = bf16[128,2048]{1,0:T(8,128)(2,1)} fusion(%w), kind=kLoop, calls=%shape
  ROOT %c = bf16[64,2048]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %s), dim_labels=bf_io->bf
}
"""
    lines = """  %w = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %f = bf16[64,2048]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %x), kind=kOutput, calls=%fused
"""
    assert traffic.hbm_bytes(*root(lines, fused)) == 256 * 1024 * 2


@pytest.mark.parametrize(
    "line, hbm, host",
    [
        ("(f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]) copy-start(%x)", 4096, 0),
        ("(f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]) copy-start(%x)", 8192, 0),
        ("(f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(5)}, u32[]) copy-start(%x)", 4096, 4096),
        (
            "((f32[64,128]{1,0:T(8,128)}), f32[16,128]{1,0:T(8,128)S(1)}, s32[]) slice-start(%x), slice={[0:16]}",
            16 * 128 * 4,
            0,
        ),
    ],
    ids=["prefetch", "in_hbm", "from_host", "slice"],
)
def test_copy(line, hbm, host):
    program, main, started = root(f"  %x = f32[64,128]{{1,0:T(8,128)}} parameter(0)\n  ROOT %c = {line}\n")
    assert traffic.copy(program, main, started) == traffic.Copy(hbm, host)
    assert traffic.hbm_bytes(program, main, started) == 0


def test_kernel_fetches_keys_anew_for_every_block():
    lines = """  %q = bf16[4,2048,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[2,2048,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %v = bf16[2,2048,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(2)
  ROOT %a = bf16[4,2048,128]{2,1,0:T(8,128)(2,1)} custom-call(%q, %k, %v), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256, \\"block_kv\\": 512}"
}}, metadata={op_name="visited_blocks_11_12_13/splash_mha_fwd/pallas_call"}
"""
    queries = 4 * 2048 * 128 * 2
    # queries and output once; keys 11 blocks of 512 for each of 4 heads; values are on the chip
    assert traffic.hbm_bytes(*root(lines)) == 2 * queries + 4 * 11 * 512 * 128 * 2
