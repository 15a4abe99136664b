"""The measurement of long-tailed lengths, on a small policy."""

import tiny

from vlaa_jax.evaluation.long_tail import measure


def test_segments_run_fewer_row_steps_for_the_same_tokens():
    found = measure(tiny.SIZES, rounds=1, prompts=4, group=8, prompt_tokens=8, mean=16, cap=96)
    mean, longest = found.lengths
    assert 8 < mean < 32 and 48 < longest <= 96, "geometric"
    assert found.same == 1
    # The plain loop: 32 rows until the longest has ended.
    assert found.row_steps["plain"] == 32 * (longest - 1)
    assert found.row_steps["segments"] < 0.6 * found.row_steps["plain"]
    assert found.wasted["segments"] < found.wasted["plain"]
    assert found.ratio > 0 and len(found.seconds["plain"]) == 1
