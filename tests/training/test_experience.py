"""How a step comes by its groups: the host judges while the chips sample."""

import dataclasses
import time

import pytest
import tiny
from resumable import made_up_rewards

from vlaa_jax.errors import InputError
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.training import experience
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.experience import Collector
from vlaa_jax.training.grpo_task import GRPOTask


@pytest.fixture(scope="module")
def task(folder):
    return GRPOTask(tiny.config("grpo", folder))


@pytest.fixture
def collect(folder, task, monkeypatch):
    """Makes the experience of a step, on made-up rewards; fields of the generator and the config may be changed."""
    monkeypatch.setattr(experience, "score_many", made_up_rewards)

    def collect(draw=0, *, batch=4, **changes):
        config = tiny.config("grpo", folder, **changes) if changes else task.config
        generator = dataclasses.replace(task._generator, batch=batch)
        collector = Collector(config, generator, task.source, task.index, task.encoder)
        return collector.collect(task.model, draw, Clock(), lambda: None)

    return collect


def spied(monkeypatch, owner, name, event):
    """Calls `event` before each call of a function."""
    original = getattr(owner, name)

    def spy(*arguments, **named):
        event()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, spy)


def said(groups):
    return [(group.draw, group.id, group.texts) for group in groups]


def test_a_chunk_is_judged_while_the_next_one_is_sampled(collect, monkeypatch):
    """And what a step gives does not tell into how many chunks it was cut."""
    events, seen = [], []
    spied(monkeypatch, Generator, "_sample", lambda: events.append("s"))
    spied(monkeypatch, experience, "score_many", lambda: events.append("j"))
    for batch, expected in ((4, "sj"), (2, "ssjj"), (1, "ssjsjsjj")):
        events.clear()
        seen.append(said(collect(batch=batch).judged))
        assert "".join(events) == expected
    assert [draw for draw, _, _ in seen[0]] == [0, 1, 2, 3]
    assert seen[0] == seen[1] == seen[2]


def test_the_next_prompts_are_made_ready_in_the_background(task, collect, monkeypatch):
    read = []
    encode = task.encoder.encode
    monkeypatch.setattr(task.encoder, "encode", lambda record: read.append(record.id) or encode(record))
    collector = Collector(task.config, task._generator, task.source, task.index, task.encoder)
    collector.collect(task.model, 0, Clock(), lambda: None)
    deadline = time.monotonic() + 60
    while len(read) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(read) == sorted(task.source[collector.data.place(draw)].id for draw in range(8))


def test_what_fails_is_raised_when_all_chunks_are_sampled(collect, monkeypatch):
    """Between chunks the processes of a run could not agree on it."""
    sampled = []
    spied(monkeypatch, Generator, "_sample", lambda: sampled.append(1))

    def fail(*_, **__):
        raise InputError("no verdict")

    monkeypatch.setattr(experience, "score_many", fail)
    with pytest.raises(InputError, match="no verdict"):
        collect(batch=1)
    assert len(sampled) == 4
