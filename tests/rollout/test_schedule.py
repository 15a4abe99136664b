"""Which completion runs where: by hand, and against what must always hold."""

import numpy as np
import pytest

from vlaa_jax.rollout.schedule import Schedule, moves, prompts_at_once, row_buckets, steps_of_segment

pytestmark = pytest.mark.quick


def test_sizes_of_programs():
    assert row_buckets(16, 8, 2) == (128, 64, 32, 16, 8)
    assert row_buckets(16, 8, 4) == (128, 32, 8)
    assert row_buckets(3, 4, 2) == (12, 8)
    assert row_buckets(130, 1, 4) == (130, 33, 9)
    assert row_buckets(2, 2, 2) == (4,)
    assert prompts_at_once(16, 300) == 4  # a quarter of the slots
    assert prompts_at_once(16, 1500) == prompts_at_once(1, 10) == 1
    assert (steps_of_segment(16, 1024), steps_of_segment(16, 6), steps_of_segment(16, 1)) == (16, 5, 1)


def done(schedule: Schedule, *completions: int) -> np.ndarray:
    out = np.zeros((len(schedule.prompts), 5 * 4), bool)
    out[0, list(completions)] = True
    return out.reshape(-1, 5, 4)


def test_a_step_by_step_example():
    """One chip, five prompts of four completions, three slots: 12 rows or 8."""
    schedule = Schedule(1, 5, 3, 4, at_once=2)
    first, second = schedule.admit(), schedule.admit()
    assert (first.slots.tolist(), first.prompts.tolist()) == ([[0, 1]], [[0, 1]])
    assert (second.slots.tolist(), second.prompts.tolist()) == ([[2, 3]], [[2, 5]]), "the last place is nobody's"
    assert schedule.admit() is None and schedule.busy
    assert schedule.fit() is None
    assert schedule.completions.tolist() == [list(range(12))]
    # Four ended, of three prompts: no slot is free, and 8 rows hold the rest.
    schedule.retire(done(schedule, 0, 5, 6, 11))
    assert schedule.admit() is None
    move = schedule.fit()
    assert move.rows.tolist() == [[1, 2, 3, 4, 7, 8, 9, 10]] and move.slots is None
    assert schedule.completions.tolist() == [[1, 2, 3, 4, 7, 8, 9, 10]]
    assert schedule.row_slots().tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    # Prompt 1 is done: its slot goes to prompt 3, and in 12 rows each has the place of its slot.
    schedule.retire(done(schedule, 0, 5, 6, 11, 4, 7))
    admission = schedule.admit()
    assert (admission.slots.tolist(), admission.prompts.tolist()) == ([[1, 3]], [[3, 5]])
    move = schedule.fit()
    assert schedule.completions.tolist() == [[-1, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, -1]]
    assert move.rows[0, [1, 2, 3, 8, 9, 10]].tolist() == [0, 1, 2, 5, 6, 7]
    assert schedule.row_slots().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0]]


def test_a_prefill_waits_until_it_is_half_full():
    schedule = Schedule(1, 5, 4, 1, at_once=4)
    schedule.admit()
    schedule.fit()
    assert schedule.admit() is None
    schedule.retire(np.asarray([[[True], [False], [False], [False], [False]]]))
    assert schedule.admit().prompts.tolist() == [[4, 5, 5, 5]], "but one is all that is left"


@pytest.mark.parametrize("seed", range(20))
def test_every_completion_runs_until_it_is_done_and_all_chips_agree(seed):
    rng = np.random.default_rng(seed)
    chips, prompts, slots, group = (int(n) for n in rng.integers(1, (4, 12, 7, 6)))
    slots = min(slots, prompts)
    buckets = row_buckets(slots, group, 2)
    lengths = 1 + rng.geometric(0.2, (chips, prompts * group))
    ran = np.zeros_like(lengths)
    schedule = Schedule(chips, prompts, slots, group, at_once=int(rng.integers(1, 4)))
    held = np.full((chips, slots), -1)  # prompt whose cache lies in each slot of the chips
    rows = np.full((chips, buckets[0]), -1)  # completion whose cache lies in each row
    while True:
        while admission := schedule.admit():
            for chip in range(chips):
                real = admission.slots[chip] < slots
                assert (admission.prompts[chip][~real] == prompts).all()
                held[chip, admission.slots[chip][real]] = admission.prompts[chip][real]
        if not schedule.busy:
            break
        move = schedule.fit()
        if move is not None:
            assert (rows.shape[1], move.rows.shape[1]) in moves(slots, buckets, refill=prompts > slots)
            rows = np.take_along_axis(rows, move.rows, axis=1)
            held = held if move.slots is None else np.take_along_axis(held, move.slots, axis=1)
        size = rows.shape[1]
        assert size in buckets and held.shape[1] == min(slots, size)
        for chip in range(chips):
            now, slot = schedule.completions[chip], schedule.row_slots()[chip]
            real = now >= 0
            assert len(set(now[real])) == real.sum()
            assert (held[chip, slot[real]] == now[real] // group).all()
            old = real & (ran[chip, np.maximum(now, 0)] > 0)
            assert (rows[chip, old] == now[old]).all(), "its cache is where it runs"
            if size == held.shape[1] * group:
                assert (np.flatnonzero(real) == slot[real] * group + now[real] % group).all()
            under_way = np.isin(np.arange(prompts * group) // group, held[chip]) & (ran[chip] < lengths[chip])
            assert set(np.flatnonzero(under_way)) <= set(now[real])
            rows[chip] = now
            ran[chip, now[real]] += 3
        schedule.retire((ran >= lengths).reshape(chips, prompts, group))
    assert (ran >= lengths).all()
