"""The text of a program: arrays, lines, and how often a loop runs."""

import pytest

from vlaa_jax.planning.hlo import HBM, HOST, VECTOR_MEMORY, parse

ADD = """
%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %step = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%i, %step)
  %y = f32[8,128]{1,0:T(8,128)} add(%x, %x)
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, %y)
}
"""
ENTRY = """
ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = s32[]{:T(128)} constant(START)
  %copy = s32[]{:T(128)} copy(%start)
  %t = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%copy, %x)
  %w = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[8,128]{1,0:T(8,128)} get-tuple-element(%w), index=1
}
"""
COUNTS = """
%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(END)
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}
"""


def program(*parts: str, start: int = 0, end: int = 36, step: int = 1):
    text = "HloModule jit_f, is_scheduled=true, num_partitions=16\n" + "".join(parts)
    return parse(text.replace("START", str(start)).replace("END", str(end)).replace("STEP", str(step)))


@pytest.mark.parametrize(
    "array, size, padded, space",
    [
        ("f32[36,2048]{1,0:T(8,128)}", 294_912, 40 * 2048 * 4, HBM),  # 36 rows take up 40
        ("bf16[5888,3]{0,1:T(4,128)(2,1)S(1)}", 35_328, 5888 * 4 * 2, VECTOR_MEMORY),  # 3 columns, the slow axis, are 4
        ("s32[]{:T(128)}", 4, 512, HBM),
        ("pred[1,4,1000]{2,1,0:T(4,128)(4,1)}", 4000, 4096, HBM),
        ("f32[100]{0:T(1024)S(5)}", 400, 4096, HOST),
        ("bf16[2,3]", 12, 12, HBM),
    ],
)
def test_bytes_of_an_array(array, size, padded, space):
    text = f"ENTRY %main (x: f32[1]) -> f32[1] {{\n  ROOT %x = {array} parameter(0)\n}}\n"
    (result,) = parse(text).computations["main"].instructions["x"].results
    assert (result.bytes, result.padded_bytes, result.space) == (size, padded, space)


def test_line_of_a_kernel_that_breaks():
    text = """HloModule jit_f
ENTRY %main.1_spmd (q: bf16[4,256,128]) -> bf16[4,256,128] {
  %q = bf16[4,256,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k.1 = (f32[256,128]{1,0:T(8,128)}, bf16[4,256,128]{2,1,0:T(8,128)(2,1)S(1)}) custom-call(%q, %q, /*index=2*/%q), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256}"
}}, metadata={op_name="jit(f)/a, b/pallas_call" stack_frame_id=3}, backend_config={"custom_call_config":{"body":"TUz="}}
  ROOT %out = bf16[4,256,128]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%k.1), index=1
}
"""
    main = parse(text).computations["main.1_spmd"]
    kernel = main.instructions["k.1"]
    assert list(main.instructions) == ["q", "k.1", "out"] and main.root == "out"
    assert kernel.opcode == "custom-call" and kernel.operands == ("q", "q", "q")
    assert kernel.attribute("custom_call_target") == "tpu_custom_call" and kernel.part == "jit(f)/a, b/pallas_call"
    assert [str(array) for array in kernel.results] == ["f32[256,128]", "bf16[4,256,128]"]


@pytest.mark.parametrize("start, end, step, trips", [(0, 36, 1, 36), (2, 14, 3, 4), (5, 5, 1, 0)])
def test_trips_of_a_counting_loop(start, end, step, trips):
    counting = program(ADD, COUNTS, ENTRY, start=start, end=end, step=step)
    assert counting.times == {"main": 1, "body": trips, "condition": trips + 1}
    assert not counting.loops[0].ends_early


def test_computation_of_another_core():
    """v6e gathers on its sparse cores; such computations end in another line."""
    text = """
%async (p: bf16[64,128], i: s32[32]) -> bf16[32,128] {
  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[32]{0:T(128)} parameter(1)
  ROOT %call = bf16[32,128]{1,0:T(8,128)(2,1)} custom-call(%p, %i), custom_call_target="gather"
}, execution_thread="sparsecore"

ENTRY %main (x: bf16[64,128]) -> bf16[64,128] {
  ROOT %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
}
"""
    found = parse(text)
    assert list(found.computations["async"].instructions) == ["p", "i", "call"]
    assert list(found.computations["main"].instructions) == ["x"] and found.entry == "main"


def test_trips_of_a_loop_in_a_loop():
    outer = ENTRY.replace("main", "outer").replace("ENTRY ", "").replace("%body", "%inside")
    outer = outer.replace(
        "while(%t), condition=%condition, body=%inside", "while(%t), condition=%condition, body=%body"
    )
    around = """
%around (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %c = f32[8,128]{1,0:T(8,128)} call(%x), to_apply=%outer
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, %c)
}
"""
    entry = ENTRY.replace("body=%body", "body=%around")
    times = program(ADD, COUNTS, outer, around, entry, end=6).times
    assert times == {"main": 1, "around": 6, "outer": 6, "body": 36, "condition": 7 + 6 * 7}


def test_decode_loop_ends_at_its_bound_or_early():
    """The condition is a fusion of `and`; the bound is carried in the loop's tuple."""
    text = """
%fused (done: pred[64], i: s32[], n: s32[]) -> pred[] {
  %done = pred[64]{0:T(512)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %n = s32[]{:T(128)} parameter(2)
  %true = pred[] constant(true)
  %all = pred[]{:T(512)} reduce(%done, %true), dimensions={0}, to_apply=%and
  %not = pred[]{:T(512)} not(%all)
  %less = pred[]{:T(512)} compare(%i, %n), direction=LT
  ROOT %both = pred[]{:T(512)} and(%less, %not)
}

%condition (p: (s32[], pred[64], s32[])) -> pred[] {
  %p = (s32[], pred[64]{0:T(512)}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %done = pred[64]{0:T(512)} get-tuple-element(%p), index=1
  %n = s32[] get-tuple-element(%p), index=2
  ROOT %go = pred[]{:T(512)} fusion(%done, %i, %n), kind=kLoop, calls=%fused
}

%body (p: (s32[], pred[64], s32[])) -> (s32[], pred[64], s32[]) {
  %p = (s32[], pred[64]{0:T(512)}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %done = pred[64]{0:T(512)} get-tuple-element(%p), index=1
  %n = s32[] get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], pred[64]{0:T(512)}, s32[]) tuple(%next, %done, %n)
}

ENTRY %main (done: pred[64]) -> s32[] {
  %done = pred[64]{0:T(512)} parameter(0)
  %zero = s32[] constant(0)
  %bound = s32[] BOUND
  %t = (s32[], pred[64]{0:T(512)}, s32[]) tuple(%zero, %done, %bound)
  %w = (s32[], pred[64]{0:T(512)}, s32[]) while(%t), condition=%condition, body=%body
  ROOT %r = s32[] get-tuple-element(%w), index=0
}
"""
    (loop,) = program(text.replace("BOUND", "constant(1024)")).loops
    assert (loop.trips, loop.ends_early) == (1024, True)
    unknown = program(text.replace("BOUND", "multiply(%zero, %zero)"))
    assert unknown.loops[0].trips is None and unknown.times["body"] == 1
