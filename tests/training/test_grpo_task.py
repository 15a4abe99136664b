"""Three steps of GRPO on digit scenes with a made-up reward: what is counted, what is frozen, what is compiled."""

import collections
import dataclasses
import types

import jax
import numpy as np
import pytest
import tiny
from resumable import made_up_rewards

from vlaa_jax.ahead import compiling, distinct
from vlaa_jax.errors import InputError
from vlaa_jax.objectives.kl import update_kl_coefficient
from vlaa_jax.objectives.shared_prompt import row_bucket
from vlaa_jax.processing.records import VERIFIERS
from vlaa_jax.rollout import schedule
from vlaa_jax.training import experience
from vlaa_jax.training.batch_sizes import row_buckets
from vlaa_jax.training.checkpoint import Checkpoints
from vlaa_jax.training.clock import Clock, CompileCounter
from vlaa_jax.training.grpo import group_log_probabilities
from vlaa_jax.training.grpo_task import GRPOTask, micro_batches

COMPILED = "/jax/core/compile/backend_compile_duration"


def host(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def short_segments(patch, task):
    """Half of all tokens end a completion, segments have two steps and buckets down to one row: rows come and go."""
    patch.setattr(schedule, "_FEWEST_ROWS", 1)
    ends = tuple(range(10, 330))
    sampling = dataclasses.replace(task._generator.sampling, end_tokens=ends)
    task._generator = dataclasses.replace(task._generator, segment=2, sampling=sampling)
    task._collector._generator = task._generator


@pytest.fixture(scope="module")
def run(folder):
    """A task after three steps, and for each step what it reported and did."""
    jax.clear_caches()  # programs of other tests would count as compiled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experience, "score_many", made_up_rewards)
        task = GRPOTask(tiny.config("grpo", folder, rollout__batch=2, rollout__row_ratio=2))
        out = types.SimpleNamespace(task=task, reports=[], compiled=[], updates=[], mismatch=[], kl_coefficients=[])
        out.said = []
        out.start = host((task.state.frozen, task.state.trainable))
        out.frozen = host(task.state.frozen)
        task.begin()
        short_segments(patch, task)
        compiled = CompileCounter()
        names: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, fun_name="", **__: names.append(fun_name) if event == COMPILED else None
        )
        clock = Clock()
        with compiling(distinct(task.programs()), out.said.append) as programs:
            programs.wait()
        out.compiled_ahead = names.copy()
        names.clear()
        take, apply, update = task._take, task._updater.apply, task._update
        open_update: list[list[int]] = []

        def spy_on_take(groups, scored, chosen, *lengths):
            open_update.append(chosen.tolist())
            return take(groups, scored, chosen, *lengths)

        def spy_on_apply(*args):
            out.updates[-1].append(open_update.copy())
            open_update.clear()
            return apply(*args)

        def spy_on_update(number, groups, scored, *rest):
            # The policy of this step, by the trainer's pass, before its first update.
            part, of = take(groups, scored, np.arange(4), *rest[:2])
            fresh = np.asarray(group_log_probabilities(task.model, part, policy=task._policy))
            out.mismatch.append(np.abs(fresh - np.asarray(of.old))[np.asarray(of.mask)].max())
            return update(number, groups, scored, *rest)

        task._take, task._updater.apply, task._update = spy_on_take, spy_on_apply, spy_on_update
        for number in (1, 2, 3):
            out.updates.append([])
            out.kl_coefficients.append(task.numbers["kl_coefficient"])
            out.reports.append(task.step(number, clock, lambda: None))
            out.compiled.append(compiled.count)
        out.kl_coefficients.append(task.numbers["kl_coefficient"])
        out.in_steps = names.copy()
        yield out


def test_a_step_is_prompts_times_group_completions_in_whole_groups(run):
    for number, (report, updates) in enumerate(zip(run.reports, run.updates, strict=True), 1):
        assert len(report.samples) == 4 * 2
        assert report.metrics["updates"] == 2 * number
        # Two updates of two micro-batches of one group; every group once.
        assert [[len(places) for places in update] for update in updates] == [[1, 1], [1, 1]]
        assert sorted(place for update in updates for places in update for place in places) == [0, 1, 2, 3]
    orders = {str(updates) for updates in run.updates}
    assert len(orders) > 1  # dealt out anew in every step


def test_prompts_are_drawn_one_after_the_other_without_repetition(run):
    draws = [[row["draw"] for row in report.samples[::2]] for report in run.reports]
    assert draws == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    ids = [row["id"] for report in run.reports for row in report.samples[::2]]
    assert len(set(ids)) == 12
    assert run.task.numbers["draws"] == 12
    assert run.reports[-1].metrics["epoch"] == pytest.approx(12 / len(run.task.index.good))


def test_advantages_are_those_of_the_rewards(run):
    for report in run.reports:
        scores = np.asarray([row["score"] for row in report.samples]).reshape(4, 2)
        found = np.asarray([row["advantage"] for row in report.samples]).reshape(4, 2)
        # Of two different rewards one is above and one below the mean, by 1 / sqrt 2 deviations.
        expected = np.sign(scores - scores.mean(axis=1, keepdims=True)) / np.sqrt(2)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_shuffled_rewards_are_learnt_from_and_the_true_ones_reported(folder, monkeypatch):
    monkeypatch.setattr(experience, "score_many", made_up_rewards)
    config = tiny.config("grpo", folder, rollout__batch=2, rollout__row_ratio=2)
    config.rewards.shuffled = True
    task = GRPOTask(config)
    task.begin()
    short_segments(monkeypatch, task)
    seen = []
    score = task._score
    task._score = lambda rollout, rewards, *sizes: (seen.append(rewards), score(rollout, rewards, *sizes))[1]
    told = [
        np.reshape([row["score"] for row in task.step(number, Clock(), lambda: None).samples], (4, 2))
        for number in (1, 2, 3)
    ]
    for learnt, true in zip(seen, told, strict=True):
        np.testing.assert_allclose(np.sort(learnt.ravel()), np.sort(true.ravel()))
    assert any((learnt != true).any() for learnt, true in zip(seen, told, strict=True))


def test_the_shown_pictures_are_those_of_sampled_records(run):
    for report in run.reports:
        assert len(report.pictures) == run.task.config.log.samples == 4
        assert set(report.pictures) <= {row["id"] for row in report.samples}


def test_the_first_update_of_every_step_has_ratio_one(run):
    """With images, in float32, in the first step and after updates."""
    for report, mismatch in zip(run.reports, run.mismatch, strict=True):
        assert mismatch < 1e-4
        assert report.metrics["first_update/ratio"] == pytest.approx(1, abs=1e-3)
        assert report.metrics["first_update/ratio_max"] == pytest.approx(1, abs=1e-3)
    assert abs(run.reports[-1].metrics["update/kl"]) > 1e-6  # and the policy did move


def test_the_coefficient_of_the_kl_moves_once_a_step(run):
    section = run.task.config.objective
    for before, after, report in zip(run.kl_coefficients, run.kl_coefficients[1:], run.reports, strict=False):
        assert report.metrics["kl_coefficient"] == before
        expected = update_kl_coefficient(before, report.metrics["kl"], section.kl_target, section.kl_horizon, 8)
        assert after == expected
    assert len(set(run.kl_coefficients)) > 1


def test_a_frozen_tower_keeps_every_bit_and_has_no_moments(run):
    state = run.task.state
    for old, new in zip(run.frozen, host(state.frozen), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(run.frozen) > 10
    names = [
        jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path((state.trainable, state.optimizer))
    ]
    assert names and not any("vision" in name for name in names)
    changed = [not np.array_equal(a, b) for a, b in zip(run.start, host((state.frozen, state.trainable)), strict=True)]
    assert sum(changed) >= 10


def test_a_kind_without_examples_has_no_key(run):
    kinds = set()
    for report in run.reports:
        present = {row["verifier"] for row in report.samples}
        kinds.add(frozenset(present))
        for name in ("reward", "valid", "accuracy", "reward_if_valid"):
            assert {key.partition("/")[2] for key in report.metrics if key.startswith(f"{name}/")} == present
        assert all(np.isfinite(value) for value in report.metrics.values())
    assert any(len(present) < len(VERIFIERS) for present in kinds)


# What else a step compiles are operations on a few numbers.
LARGE = {
    "copy_outside_layers": 1,
    "copy_layer": 1,
    "encode_images": 1,
    "join_rows": 1,
    "open_slots": 1,
    "empty_caches": 1,
    "admit": 1,
    "_decode_rows": 3,  # of 4, 2 and 1 rows; two slots, then one
    "take": 3 + 1 + 1 + 1,  # 4 rows to 2 and 1, 2 to 1; back to 4 while prompts wait; two slots to one
    "take_groups": 1,
    "group_log_probabilities": 1,
    "_add": 1,
    "_apply": 1,
}


def large(names):
    return collections.Counter(name[4:-1] for name in names if name[4:-1] in LARGE)


def test_the_large_programs_are_compiled_ahead_and_only_then(run):
    assert large(run.compiled_ahead) == LARGE
    assert len(run.said) == sum(LARGE.values())
    # Those of the spy in this file: all four groups at once, the policy in place of the reference.
    assert large(run.in_steps) == {"take_groups": 1, "group_log_probabilities": 1}
    assert run.compiled[0] == run.compiled[1] == run.compiled[2]
    assert len({row["length"] for report in run.reports for row in report.samples}) > 2


def test_a_run_that_goes_on_needs_the_same_programs(run, folder, tmp_path, monkeypatch):
    """And keeps the buckets that it began with."""
    monkeypatch.setattr(experience, "score_many", made_up_rewards)
    task = GRPOTask(tiny.config("grpo", folder, rollout__batch=2, rollout__row_ratio=2))
    task.numbers["row_buckets"] = [500, 448]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, task.state, task.numbers, None)
        checkpoints.wait()
        task = GRPOTask(tiny.config("grpo", folder, rollout__batch=2, rollout__row_ratio=2))
        task.state, task.numbers = checkpoints.restore(task.state, 1)
    task.begin()
    short_segments(monkeypatch, task)
    assert any("of 500 tokens" in program.name for program in task.programs())
    names: list[str] = []
    listen = lambda event, *_, fun_name="", **__: names.append(fun_name) if event == COMPILED else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    task.step(1, Clock(), lambda: None)
    # Those of a rollout are there; the updater's belong to the task.
    assert large(names) == {"_add": 1, "_apply": 1}


def test_the_share_of_padding(run):
    task = run.task
    for report in run.reports:
        records = [next(r for r in task.source if r.id == row["id"]) for row in report.samples[::2]]
        prompts = [task.encoder.encode(record) for record in records]
        tokens, windows = sum(len(p.tokens) for p in prompts), sum(len(p.vision.frames) for p in prompts)
        assert report.metrics["rollout/padding_share"] == pytest.approx(1 - tokens / (4 * 400))
        assert report.metrics["rollout/window_padding_share"] == pytest.approx(1 - windows / (4 * 8))
        # A row of an update holds a prompt and its two completions.
        real = tokens + sum(row["length"] for row in report.samples)
        assert report.metrics["update/real_token_share"] == pytest.approx(real / (4 * 448), rel=1e-5)


def test_a_step_that_is_not_finite_is_not_applied(run):
    task = run.task
    before = host((task.state.trainable, task.state.optimizer, task.state.updates))
    kept, task.numbers["kl_coefficient"] = task.numbers["kl_coefficient"], float("nan")
    run.updates.append([])
    report = task.step(4, Clock(), lambda: None)
    task.numbers["kl_coefficient"] = kept
    for old, new in zip(before, host((task.state.trainable, task.state.optimizer, task.state.updates)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert report.metrics["non_finite_updates"] == 2
    assert "loss" not in report.metrics and "learning_rate" not in report.metrics
    assert report.bad_batch["ids"] == [row["id"] for row in report.samples[::2]]
    assert np.asarray(report.bad_batch["tokens"]).shape == (4, 2, 6)


@pytest.mark.quick
def test_micro_batches_hold_each_group_once_sorted_by_tokens():
    prompts, lengths = np.asarray([10, 13, 3, 20]), np.asarray([[5, 1], [2, 2], [6, 6], [3, 1]])
    parts = micro_batches(np.asarray([3, 0, 2, 1]), prompts, lengths, 2)
    assert [part.tolist() for part in parts] == [[2, 0], [1, 3]]  # 15, 16, 17 and 24 tokens


@pytest.mark.quick
def test_at_least_seven_tenths_of_an_updates_tokens_are_real():
    """Lengths as in the paper: updates of 256 completions in groups of 4, micro-batches of 16 rows."""
    rng = np.random.default_rng(0)
    config = tiny.grpo_mixed.get_config("3b")
    buckets = row_buckets(config, np.asarray([256, 1792]))
    real = slots = 0
    used = set()
    for _ in range(20):
        prompts = rng.integers(256, 1793, 64)
        lengths = np.clip(np.rint(rng.normal(235, 90, (64, 4))), 1, 1024).astype(int)
        for places in micro_batches(rng.permutation(64), prompts, lengths, config.updates.micro_batch):
            length = row_bucket(prompts[places], lengths[places], buckets)
            used.add(length)
            real += prompts[places].sum() + lengths[places].sum()
            slots += len(places) * length
    print(f"{real / slots:.3f} of the tokens are real, in rows of {sorted(used)}")
    assert real / slots >= 0.7


def test_without_a_penalty_there_is_no_reference(folder):
    task = GRPOTask(tiny.config("grpo", folder, objective__kl_placement="none"))
    assert task._reference is None
    metrics: dict = {}
    task._control_kl(metrics, 8)
    assert metrics == {} and task.numbers["kl_coefficient"] == task.config.objective.kl_coefficient


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates__completions": 3}, "updates.completions is 3: expected whole groups of 2 that divide.* nearest 2"),
        ({"updates__completions": 6}, "updates.completions is 6: expected whole groups of 2 that divide.* nearest 4"),
        (
            {"updates__micro_batch": 3},
            "updates.micro_batch is 3: expected groups that divide an update's 2,.* nearest 2",
        ),
        ({"updates__row_completions": 3}, "row_completions is 3: expected a divisor of the group size 2; nearest 2"),
        ({"rollout__batch": 3}, "rollout.batch is 3: expected prompts that divide a step's 4.* nearest 2"),
        (
            {"updates__row_buckets": (400, 410)},
            r"row_buckets is \(400, 410\): expected one of at least 448, for the longest prompt and 2 completion",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(folder, changes, message):
    with pytest.raises(InputError, match=message):
        GRPOTask(tiny.config("grpo", folder, **changes))
