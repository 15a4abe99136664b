"""Seconds by phase: of a made-up clock, and of real tiny runs, whose seconds add up to those of their steps."""

import time

import pytest
import tiny
from resumable import made_up_rewards

from vlaa_jax.training import experience
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.grpo_task import GRPOTask
from vlaa_jax.training.loop import train
from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.sft_task import SFTTask


@pytest.mark.quick
def test_a_phase_inside_another_counts_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    clock = Clock()
    wait(100)
    with clock.phase("update"):
        wait(1)
        with clock.phase("reference"):
            wait(10)
        wait(2)
    wait(100)
    with pytest.raises(ZeroDivisionError), clock.phase("update"):
        wait(4)
        raise ZeroDivisionError
    assert clock.read() == {"update": 7.0, "reference": 10.0}
    assert clock.read() == {}


@pytest.mark.parametrize(("name", "make"), [("grpo", GRPOTask), ("sft", SFTTask)])
def test_the_seconds_of_a_step_add_up(folder, tmp_path, monkeypatch, name, make):
    monkeypatch.setattr(experience, "score_many", made_up_rewards)
    config = tiny.config(name, folder, steps=8)
    train(make(config), tmp_path / "run", recorded=config, command="")
    shares = []
    for row in RunFolder(tmp_path / "run").metrics()[1:]:
        seconds = {key.removeprefix("seconds/"): value for key, value in row.items() if key.startswith("seconds/")}
        whole, other = seconds.pop("step"), seconds.pop("other")
        assert sum(seconds.values()) + other == pytest.approx(whole)
        assert other >= 0 and "update" in seconds
        shares.append(other / whole)
    # The least: a phase that has no name is missed in every step, a machine that does something else only in some.
    assert min(shares) < 0.02, shares
