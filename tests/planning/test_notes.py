"""Notes on what is wasteful."""

from vlaa_jax.planning.hlo import parse
from vlaa_jax.planning.notes import notes

CACHE = "bf16[8,2,2048,512]{3,2,1,0}"  # 32 MiB
DECODE = f"""
%condition (p: (s32[], pred[64], {CACHE})) -> pred[] {{
  %p = (s32[], pred[64], {CACHE}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %done = pred[64] get-tuple-element(%p), index=1
  %n = s32[] constant(1024)
  %less = pred[] compare(%i, %n), direction=LT
  %true = pred[] constant(true)
  %all = pred[] reduce(%done, %true), dimensions={{0}}, to_apply=%and
  %not = pred[] not(%all)
  ROOT %go = pred[] GO
}}

%body (p: (s32[], pred[64], {CACHE})) -> (s32[], pred[64], {CACHE}) {{
  %p = (s32[], pred[64], {CACHE}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %done = pred[64] get-tuple-element(%p), index=1
  %cache = {CACHE} get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %moved = {CACHE} copy(%cache), metadata={{op_name="jit(sample)/shard_map/while/body/layers.3/attend"}}
  %small = f32[64,8] broadcast(%i)
  %sum = f32[64,8] all-reduce(%small), replica_groups={{{{0,1}}}}, metadata={{op_name="jit(sample)/while/body/head"}}
  ROOT %out = (s32[], pred[64], {CACHE}) tuple(%next, %done, %moved)
}}
"""
ENTRY = f"""
ENTRY %main (cache: bf16[8,2,2048,512]) -> s32[] {{
  %cache = {CACHE} parameter(0)
  %done = pred[64] parameter(1)
  %zero = s32[] constant(0)
  %outside = {CACHE} copy(%cache)
  %t = (s32[], pred[64], {CACHE}) tuple(%zero, %done, %outside)
  %w = (s32[], pred[64], {CACHE}) while(%t), condition=%condition, body=%body
  ROOT %r = s32[] get-tuple-element(%w), index=0
}}
"""


def test_decode_loop():
    copy = "copy in a loop, while/body/layers.3/attend: bf16[8,2,2048,512], 32.0 MiB x 1024"
    collective = "all-reduce in a decode loop, while/body/head: f32[64,8], 0.0 MiB x 1024"
    assert notes(parse("HloModule jit_f, num_partitions=2\n" + DECODE.replace("GO", "and(%less, %not)") + ENTRY)) == [
        copy,
        collective,
    ]
    # Asking all chips whether they have ended is a collective too.
    asks = "  %ask = pred[] all-reduce(%all), to_apply=%and, replica_groups={{0,1}}\n  %not = pred[] not(%ask)"
    asking = DECODE.replace("GO", "and(%less, %not)").replace("  %not = pred[] not(%all)", asks)
    found = notes(parse("HloModule jit_f, num_partitions=2\n" + asking + ENTRY))
    assert found == [copy, collective, "all-reduce in a decode loop, ask: pred[], 0.0 MiB x 1025"]
    # Fetched to vector memory and written back whole.
    back = (
        f"  %moved = ({CACHE}, {CACHE[:-1]}:S(1)}}, u32[]) copy-start(%fetched)\n  %again = {CACHE} copy-done(%moved)\n"
    )
    fetched = f"  %fetched = {CACHE[:-1]}:S(1)}} negate(%cache)\n"
    start, end = DECODE.index("  %moved ="), DECODE.index("  %small =")
    evicting = DECODE[:start] + fetched + back + back.replace("moved", "other").replace("again", "twice") + DECODE[end:]
    evicting = evicting.replace("GO", "and(%less, %not)").replace("%done, %moved)", "%done, %again)")
    assert notes(parse("HloModule jit_f, num_partitions=2\n" + evicting + ENTRY)) == [
        "cache written back whole in a decode loop: bf16[8,2,2048,512], 32.0 MiB x 1024 (2 of them)",
        collective,
    ]
    # A loop that only counts is no decode loop.
    assert notes(parse("HloModule jit_f, num_partitions=2\n" + DECODE.replace("GO", "copy(%less)") + ENTRY)) == [copy]


def test_gathered_weight_and_summed_gradient():
    text = """HloModule jit_f, num_partitions=16

%take (g: bf16[2048,1024], i: s32[]) -> f32[128,1024] {
  %g = bf16[2048,1024] parameter(0)
  %i = s32[] parameter(1)
  %b = bf16[2048,1024] bitcast(%g)
  %part = bf16[128,1024] dynamic-slice(%b, %i, %i)
  ROOT %wide = f32[128,1024] convert(%part)
}

ENTRY %main (w: f32[128,1024]) -> f32[128,1024] {
  %w = f32[128,1024] parameter(0)
  %i = s32[] parameter(1)
  %narrow = bf16[128,1024] convert(%w)
  %all = f32[2048,1024] all-gather(%w), dimensions={0}, metadata={op_name="jit(f)/gate"}
  %half = bf16[2048,1024] all-gather(%narrow), dimensions={0}
  %sum = bf16[2048,1024] all-reduce(%half), to_apply=%add, metadata={op_name="jit(f)/up"}
  %kept = f32[128,1024] fusion(%sum, %i), kind=kLoop, calls=%take
  %whole = bf16[2048,1024] all-reduce(%half), to_apply=%add
  ROOT %out = (f32[128,1024], f32[2048,1024], bf16[2048,1024]) tuple(%kept, %all, %whole)
}
"""
    assert notes(parse(text)) == [
        "gathered float32 weight, gate: f32[2048,1024], 8.0 MiB; bfloat16 would halve it",
        "all-reduce of which each chip keeps a part, up: bf16[2048,1024], 4.0 MiB; a reduce-scatter would send half",
    ]


def test_what_is_not_counted():
    text = """HloModule jit_f
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  ROOT %k = f32[8] custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/mine/pallas_call"}
}
"""
    assert notes(parse(text)) == ["kernel mine/pallas_call: its FLOPs are not known; it counts none"]
