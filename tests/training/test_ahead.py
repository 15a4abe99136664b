"""Sampling one step ahead: whose completions a step learns from, and by which loss."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from resumable import made_up_rewards

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.grpo import GRPOObjective, grpo_loss, loss_denominator, truncated_importance_weights
from vlaa_jax.training import experience
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.experience import Collector
from vlaa_jax.training.grpo import group_log_probabilities
from vlaa_jax.training.grpo_task import GRPOTask

AHEAD = {"rollout__ahead": True, "rollout__batch": 2, "objective__importance_cap": 1.5}


@pytest.mark.quick
@pytest.mark.parametrize(("advantage", "expected"), [(1.0, -1.23), (-1.0, 1.35)])
def test_the_loss_by_hand(advantage, expected):
    """Probabilities of two tokens: 1/2, 1/4 by the older policy, 0.4, 1/2 before the step's updates, 0.6, 1/2 now.

    w = min(0.4 / 0.5, 1.5), min(0.5 / 0.25, 1.5) = 0.8, 1.5 and r = 0.6 / 0.4, 0.5 / 0.5 = 1.5, 1.
    A = 1:  -(0.8 * 1.2 + 1.5 * 1) / 2 = -1.23: the clip at 1.2 bounds this step's move alone.
    A = -1: (0.8 * 1.5 + 1.5 * 1) / 2 = 1.35.
    """
    sampler, old, now = (jnp.log(jnp.asarray([pair])) for pair in ([0.5, 0.25], [0.4, 0.5], [0.6, 0.5]))
    mask = jnp.ones((1, 2), bool)
    objective = GRPOObjective(kl_placement="none")
    weights = truncated_importance_weights(old, sampler, mask, cap=1.5)
    loss, _ = grpo_loss(
        now,
        old,
        None,
        jnp.asarray([advantage]),
        mask,
        objective=objective,
        kl_coefficient=0.0,
        importance_weights=weights,
    )
    assert float(loss / loss_denominator(mask, objective)) == pytest.approx(expected)


def test_a_step_learns_from_what_the_policy_before_the_last_one_sampled(folder, monkeypatch):
    monkeypatch.setattr(experience, "score_many", made_up_rewards)
    task = GRPOTask(tiny.config("grpo", folder, **AHEAD))
    task.begin()
    policies, seen = [], []
    score = task._score

    def spy(*arguments):
        groups, scored = score(*arguments)
        part, _ = task._take(groups, scored, np.arange(4), *arguments[2:4])
        log_probability = [group_log_probabilities(m, part, policy=task._policy) for m in (*policies, task.model)]
        seen.append((arguments[0].completions, scored, log_probability))
        policies.append(jax.tree.map(jnp.copy, task.model))
        return groups, scored

    task._score = spy
    collector = Collector(tiny.config("grpo", folder), task._generator, task.source, task.index, task.encoder)
    fresh = [collector.collect(task.model, draw, Clock(), lambda: None).judged for draw in (0, 4)]
    reports = [task.step(number, Clock(), lambda: None) for number in (1, 2, 3)]

    # Steps 1 and 2 learn from the start policy's completions.
    for report, groups in zip(reports, fresh, strict=False):
        texts = [text for group in groups for text in group.texts]
        assert [row["completion"] for row in report.samples] == texts
    assert [row["draw"] for row in reports[2].samples[::2]] == [8, 9, 10, 11]
    assert task.waiting["tokens"].shape == (4, 2, 6)
    for step, sampler in ((1, 0), (2, 0), (3, 1)):
        completions, scored, log_probability = seen[step - 1]
        mask = np.asarray(scored.mask)
        difference = lambda a, b: np.abs(np.asarray(a) - np.asarray(b))[mask].max()  # noqa: B023, E731
        assert difference(completions.log_probability, log_probability[sampler]) < 1e-4
        assert difference(scored.old, log_probability[step - 1]) < 1e-4
        if step > 1:
            assert difference(completions.log_probability, scored.old) > 1e-2  # the policy has moved since
        ratio = np.exp(np.asarray(scored.old - completions.sampled_log_probability))
        assert difference(scored.importance, np.minimum(ratio, 1.5)) < 1e-5
        assert reports[step - 1].metrics["first_update/ratio"] == pytest.approx(1, abs=1e-3)


def test_one_copy_of_the_weights_at_a_time(folder, monkeypatch):
    """In the first step too, which samples for itself and for the next one."""
    monkeypatch.setattr(experience, "score_many", made_up_rewards)
    copy, copies = experience.sampling_weights, []

    def spy(*arguments):
        assert not [reference for reference in copies if reference() is not None]
        made = copy(*arguments)
        copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr(experience, "sampling_weights", spy)
    task = GRPOTask(tiny.config("grpo", folder, **AHEAD))
    task.begin()
    task.step(1, Clock(), lambda: None)
    task.step(2, Clock(), lambda: None)
    assert len(copies) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__importance_cap": 0.0}, r"expected config\.objective\.importance_cap above 0, as 2\.0"),
        ({"rollout__oversample": 2.0}, r"config\.rollout\.ahead and config\.rollout\.oversample above 1 exclude"),
    ],
)
def test_what_it_needs(folder, changes, message):
    with pytest.raises(InputError, match=message):
        GRPOTask(tiny.config("grpo", folder, **AHEAD | changes)).begin()
