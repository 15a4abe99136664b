"""The table of lifetimes against a step that runs: what it calls gone is gone."""

import weakref

import jax
import pytest
import tiny
from resumable import made_up_rewards

from vlaa_jax.rollout import generate
from vlaa_jax.training import experience, grpo_task
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.grpo_task import GRPOTask
from vlaa_jax.training.lifetimes import is_alive


def test_a_step_frees_what_the_table_calls_gone(folder, monkeypatch):
    whole = lambda out: out  # noqa: E731
    made: dict[str, list[weakref.ref]] = {}
    seen: dict[str, set[str]] = {}

    def keep(name, tree):
        made[name] = [weakref.ref(leaf) for leaf in jax.tree.leaves(tree)]

    def spy(owner, function, program, *, makes=None, takes=None):
        original = getattr(owner, function)

        def wrapped(*args, **kwargs):
            alive = {name for name, leaves in made.items() if any(leaf() is not None for leaf in leaves)}
            seen.setdefault(program, alive)
            for name, place in (takes or {}).items():
                keep(name, args[place])
            out = original(*args, **kwargs)
            for name, part in (makes or {}).items():
                keep(name, part(out))
            return out

        monkeypatch.setattr(owner, function, wrapped)

    monkeypatch.setattr(experience, "score_many", made_up_rewards)
    spy(experience, "sampling_weights", "reshard", makes={"sampling weights": whole})
    spy(generate, "encode_images", "vision", makes={"features": whole}, takes={"patches": 1})
    spy(generate, "admit", "prefill", makes={"caches": lambda out: out[0]})
    spy(generate, "decode", "decode", makes={"caches": lambda out: out[0], "completions": lambda out: out[1]})
    spy(grpo_task, "take_groups", "deal", takes={"scores": 1}, makes={"micro-batches": whole})
    spy(grpo_task, "group_log_probabilities", "log_probabilities")
    task = GRPOTask(tiny.config("grpo", folder))
    spy(task._updater, "add", "update", makes={"gradient": whole})
    spy(task._updater, "apply", "apply")
    task.begin()
    task.step(1, Clock(), lambda: None)

    assert seen["prefill"] >= {"sampling weights", "features"}
    assert seen["decode"] >= {"sampling weights", "caches"}
    assert seen["apply"] >= {"gradient", "features", "completions"}
    gone = {program: sorted(name for name in alive if not is_alive(name, program)) for program, alive in seen.items()}
    assert not any(gone.values()), gone


@pytest.mark.quick
def test_the_reference_waits_on_the_host():
    assert is_alive("reference", "decode")
    assert not is_alive("reference", "decode", waiting=("reference",))
    assert is_alive("reference", "log_probabilities", waiting=("reference",))
    assert is_alive("step judge", "update") and not is_alive("step judge", "update", waiting=("step judge",))
    assert is_alive("step judge", "judge_steps", waiting=("step judge",))
