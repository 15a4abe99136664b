"""FLOPs of products as the TPU compiler writes them, and of attention kernels."""

import pytest

from vlaa_jax.planning.flops import flops, read_kernel
from vlaa_jax.planning.hlo import parse


def entry(lines: str, *, before: str = ""):
    """The last instruction of an entry computation, with what counting it needs."""
    program = parse(f"HloModule jit_f\n{before}\nENTRY %main (x: f32[]) -> f32[] {{\n{lines}}}\n")
    main = program.computations["main"]
    return program, main, main.instructions[main.root]


@pytest.mark.parametrize(
    "left, right, out, attributes, expected",
    [
        # [M, K] x [K, N]
        ("bf16[5888,2048]", "bf16[2048,256]", "bf16[5888,256]", "dim_labels=bf_io->bf", 2 * 5888 * 2048 * 256),
        # A weight gradient: the rows are contracted.
        ("bf16[5888,2048]", "bf16[5888,256]", "f32[2048,256]", "dim_labels=fb_io->bf", 2 * 5888 * 2048 * 256),
        # A batch of 16 products [64, 128] x [128, 32]: the batch is a window whose only valid tap is its own.
        (
            "bf16[16,64,128]",
            "bf16[16,128,32]",
            "bf16[16,64,32]",
            "window={size=16 stride=15 pad=0_0 lhs_dilate=16}, dim_labels=0bf_0io->0bf",
            2 * 16 * 64 * 128 * 32,
        ),
        # All heads at once: heads are a window that slides over one place and its padding.
        (
            "bf16[4096,2048,1]",
            "bf16[2048,16,128]",
            "bf16[4096,16,128]",
            "window={size=16 pad=15_15 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
            2 * 4096 * 2048 * 16 * 128,
        ),
        # An image: 3 x 3 taps with padding 1 on 5 places meet 13 inputs on each axis.
        (
            "f32[2,5,5,8]",
            "f32[3,3,8,4]",
            "f32[2,5,5,4]",
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            2 * 2 * 8 * 4 * 13 * 13,
        ),
    ],
)
def test_convolution(left, right, out, attributes, expected):
    program, main, product = entry(
        f"  %l = {left} parameter(0)\n  %r = {right} parameter(1)\n"
        f"  ROOT %c = {out} convolution(%l, %r), {attributes}\n"
    )
    assert flops(program, main, product).total == expected


def test_dot():
    program, main, product = entry(
        "  %l = f32[8,3,7] parameter(0)\n  %r = f32[8,7,5] parameter(1)\n"
        "  ROOT %d = f32[8,3,5] dot(%l, %r), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
        "rhs_contracting_dims={1}\n"
    )
    assert flops(program, main, product).total == 2 * 8 * 3 * 7 * 5


def test_products_inside_fusions_and_recomputed_ones():
    fused = """
%inner (l: bf16[8,16], r: bf16[16,4]) -> bf16[8,4] {
  %l = bf16[8,16] parameter(0)
  %r = bf16[16,4] parameter(1)
  ROOT %c = bf16[8,4] convolution(%l, %r), dim_labels=bf_io->bf, metadata={op_name="jit(f)/AGAINdot_general"}
}

%outer (l: bf16[8,16], r: bf16[16,4]) -> bf16[8,4] {
  %l = bf16[8,16] parameter(0)
  %r = bf16[16,4] parameter(1)
  %f = bf16[8,4] fusion(%l, %r), kind=kOutput, calls=%inner
  ROOT %n = bf16[8,4] negate(%f)
}
"""
    line = (
        "  %l = bf16[8,16] parameter(0)\n  %r = bf16[16,4] parameter(1)\n"
        "  ROOT %f = bf16[8,4] fusion(%l, %r), kind=kOutput, calls=%outer\n"
    )
    once = flops(*entry(line, before=fused.replace("AGAIN", "")))
    again = flops(*entry(line, before=fused.replace("AGAIN", "checkpoint/rematted_computation/")))
    assert (once.total, once.repeated) == (2 * 8 * 16 * 4, 0)
    assert (again.total, again.repeated) == (2 * 8 * 16 * 4, 2 * 8 * 16 * 4)


KERNEL = """  %n = s8[1,8,3] parameter(0)
  %q = bf16[4,2048,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %k = bf16[2,2048,128]{2,1,0:T(8,128)(2,1)} parameter(2)
  %s = s32[2048,128] parameter(3)
  %lse = f32[4,1,2048] parameter(4)
  ROOT %a = RESULT custom-call(OPERANDS), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_qPART\\": 256, \\"block_kvPART\\": 512, \\"block_kv_compute\\": 128}"
}}, metadata={op_name="jit(f)/SCOPEvisited_blocks_11_12_13/jit(_splash_attention)/splash_mha_KIND/pallas_call"}
"""
FORWARD = ("(f32[256,128], bf16[4,2048,128], f32[4,2048,128])", "%n, %n, %q, %k, %k, %s", "fwd_segmented_residuals", "")
DQ = ("(f32[256,128], bf16[4,2048,128])", "%n, %n, %q, %k, %k, %s, %lse, %q, %lse", "dq_no_residuals", "_dq")
DKV = (
    "(f32[512,128], f32[512,128], bf16[2,2048,128], bf16[2,2048,128])",
    "%n, %n, %q, %k, %k, %s, %lse, %q, %lse",
    "dkv_no_residuals",
    "_dkv",
)
ONE = 2 * 256 * 512 * 128 * 4  # one product in one block of every query head


@pytest.mark.parametrize(
    "case, scope, total, repeated, streamed",
    [
        (FORWARD, "", 2 * 11 * ONE, 0, ("k", "k")),
        (FORWARD, "checkpoint/rematted_computation/", 2 * 11 * ONE, 2 * 11 * ONE, ("k", "k")),
        (DQ, "", 3 * 12 * ONE, 2 * 12 * ONE, ("k", "k")),
        (DKV, "", 4 * 13 * ONE, 13 * ONE, ("q", "q")),
    ],
)
def test_kernel(case, scope, total, repeated, streamed):
    result, operands, kind, part = case
    text = KERNEL.replace("RESULT", result).replace("OPERANDS", operands).replace("KIND", kind)
    program, main, call = entry(text.replace("PART", part).replace("SCOPE", scope))
    count = flops(program, main, call)
    assert (count.total, count.repeated) == (total, repeated)
    kernel = read_kernel(main, call)
    assert tuple(name for name, _ in kernel.streamed) == streamed
    # Per head 13 blocks of 256 queries, or 11 of 512 keys, in bfloat16.
    tokens = {"k": 512, "q": 256}[streamed[0]]
    array = main.instructions[streamed[0]].results[0]
    assert kernel.streamed_bytes(array, tokens) == kernel.blocks * tokens * 128 * 2


def test_kernel_of_unknown_blocks_counts_nothing():
    text = KERNEL.replace("RESULT", FORWARD[0]).replace("OPERANDS", FORWARD[1]).replace("KIND", FORWARD[2])
    program, main, call = entry(text.replace("visited_blocks_11_12_13/", "").replace("PART", "").replace("SCOPE", ""))
    assert read_kernel(main, call) is None and flops(program, main, call).total == 0
