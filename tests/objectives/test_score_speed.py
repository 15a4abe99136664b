"""The command that times one pass against one for each prefix, at its smallest size."""

import score_speed


def test_both_ways_give_the_same_and_one_pass_runs_fewer_tokens():
    found = score_speed.measure(score_speed.SIZES["tiny"], runs=2)
    assert found.difference < 2e-5 < 0.1 < found.spread
    assert len(found.one) == len(found.prefixes) == 2 and min(found.one + found.prefixes) > 0
    # A prompt of 11 tokens (6 of the picture) and 16 solutions of 20, against 160 prompts with 2 to 20 more.
    assert 11 + 16 * 20 <= found.row < 11 + 16 * 20 + 64
    assert found.rows == 160 * 32
