"""How a step comes by its groups: the host judges while the chips sample."""

import dataclasses
import time
import zlib

import jax
import numpy as np
import pytest
import tiny
from resumable import made_up_rewards

from vlaa_jax.errors import InputError
from vlaa_jax.rollout import generate
from vlaa_jax.training import experience
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.experience import Collector
from vlaa_jax.training.grpo_task import GRPOTask


@pytest.fixture(scope="module")
def task(folder):
    task = GRPOTask(tiny.config("grpo", folder))
    task.begin()
    return task


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


def test_groups_are_judged_while_others_are_sampled(collect, monkeypatch):
    """And what a step gives does not tell how many were sampled at once."""
    events, seen = [], []
    spied(monkeypatch, generate, "decode", lambda: events.append("s"))
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


def test_what_fails_is_raised_when_all_groups_are_sampled(collect, monkeypatch):
    """Before that the processes of a run could not agree on it."""
    sampled = []
    spied(monkeypatch, generate, "decode", lambda: sampled.append(1))

    def fail(*_, **__):
        raise InputError("no verdict")

    monkeypatch.setattr(experience, "score_many", fail)
    with pytest.raises(InputError, match="no verdict"):
        collect(batch=1)
    assert len(sampled) == 4


def coin(requests, **_):
    """Rewards under which many groups have no signal: 0 or 1 by the text's checksum."""
    traces = made_up_rewards(requests)
    texts = (request.completion.encode("utf-8", "replace") for request in requests)
    return [
        dataclasses.replace(trace, score=float(zlib.crc32(text) % 2)) for trace, text in zip(traces, texts, strict=True)
    ]


def varies(group):
    return len({trace.score for trace in group.traces}) > 1


def test_dynamic_sampling_fills_the_step_with_groups_that_have_signal(collect, monkeypatch):
    """The same draws and weights give the same tokens with it on and off, whatever happens to their groups."""
    monkeypatch.setattr(experience, "score_many", coin)
    plain = [group for draw in (0, 4, 8, 12) for group in collect(draw).judged]
    found = collect(batch=2, rollout__oversample=4.0)
    assert sum(map(varies, plain[:4])) < 4, "something must be dropped for this test to say anything"

    assert len(found.judged) == 4 and all(map(varies, found.judged))
    drawn = len(found.all)
    assert 4 < drawn <= 16 and sorted(group.draw for group in found.all) == list(range(drawn))
    assert found.kept_share == 4 / drawn
    by_draw = sorted(found.all, key=lambda group: group.draw)
    assert said(by_draw) == said(plain[:drawn])
    # The first with signal are taken; the first ones stay where they were.
    assert {group.draw for group in found.judged} == {group.draw for group in plain if varies(group)} & set(
        range(drawn)
    ) - {group.draw for group in found.dropped if varies(group)}
    for place, group in enumerate(plain[:4]):
        assert not varies(group) or found.judged[place].draw == group.draw


def test_the_arrays_of_dynamic_sampling_are_those_of_its_groups(task, collect, monkeypatch):
    monkeypatch.setattr(experience, "score_many", coin)
    found = collect(batch=2, rollout__oversample=4.0)
    decode = task.encoder.tokenizer.decode
    data = Collector(task.config, task._generator, task.source, task.index, task.encoder).data
    rollout = jax.tree.map(np.asarray, found.rollout)
    for b, group in enumerate(found.judged):
        lengths = rollout.completions.lengths[b]
        np.testing.assert_array_equal(lengths, group.lengths)
        assert group.texts == [decode(row[:n]) for row, n in zip(rollout.completions.tokens[b], lengths, strict=True)]
        prompt = data.draw(group.draw).prompt
        size = len(prompt.tokens)
        np.testing.assert_array_equal(rollout.rows.tokens[b, :size], prompt.tokens)
        assert not rollout.rows.segments[b, size:].any()
        np.testing.assert_array_equal(rollout.rows.positions[:, b, :size], prompt.positions)
        own = collect(group.draw // 4 * 4).rollout.features[group.draw % 4]
        np.testing.assert_allclose(rollout.features[b], own, atol=1e-5)


def test_dynamic_sampling_has_a_bound(collect, monkeypatch):
    def one(requests, **_):
        return [dataclasses.replace(trace, score=1.0) for trace in made_up_rewards(requests)]

    monkeypatch.setattr(experience, "score_many", one)
    found = collect(batch=2, rollout__oversample=2.6)
    assert [group.draw for group in found.judged] == [0, 1, 2, 3]  # the rest stays as it is
    assert sorted(group.draw for group in found.dropped) == [4, 5, 6, 7, 8, 9]
    assert found.kept_share == 0


def test_fewer_prompts_than_a_step_learns_from_are_refused(collect):
    with pytest.raises(InputError, match=r"config.rollout.oversample is 0.5: expected 1 \(off\) or more"):
        collect(rollout__oversample=0.5)
