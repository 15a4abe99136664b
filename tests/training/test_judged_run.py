"""GRPO with a reward model: as the scorer of open-ended answers, and for steps."""

import copy
import dataclasses
import math
import re
import zlib

import jax
import loopback
import numpy as np
import processes
import pytest
import tiny
from flax import nnx

from vlaa_jax.ahead import compiling, distinct
from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.evaluate import Evaluator
from vlaa_jax.evaluation.judges.reward import RewardJudge
from vlaa_jax.models import reward_model
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.processing.step_places import step_places
from vlaa_jax.processing.steps import split_steps
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.rewards import router
from vlaa_jax.rollout.sampler import sampling_weights
from vlaa_jax.training import saved_policy
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.grpo_task import GRPOTask
from vlaa_jax.training.loop import train
from vlaa_jax.training.run_folder import open_run


@pytest.fixture(scope="module")
def heads(folder):
    """A process model of random weights in `process`, an outcome model, and a process model that knows one number."""
    policy = hf.load(folder / "policy")
    for name, kind, scale in (("process", "process", 1.0), ("outcome", "outcome", 1.0), ("constant", "process", 0.0)):
        head = reward_model.RewardHead(policy.config.text.width, nnx.Rngs(5))
        head.weight[...] = head.weight[...] * scale
        head.bias[...] = head.bias[...] + 0.25
        layout = hf.read_layout(folder / "policy")
        reward_model.save(reward_model.with_head(policy, head), kind, folder / name, layout)
    return folder


@pytest.fixture(autouse=True)
def whole_text_answers(monkeypatch):
    """Random text has no tags: all of it is the answer."""
    monkeypatch.setattr(router, "answer_text", lambda text, *, strict: (text.strip() or "nothing", ""))


def config(folder, **changes):
    changes = {"rewards__enabled": ("open_ended",), "rewards__scorer": f"process:{folder / 'process'}", **changes}
    return tiny.config("grpo", folder, **changes)


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("ahead", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_a_reward_model_as_scorer_and_its_continuation(heads, tmp_path, monkeypatch, ahead):
    """Two open-ended records, drawn again and again: the same bits after a stop between checkpoints."""
    setting = config(heads, steps=4, rollout__ahead=ahead, objective__importance_cap=2.0 if ahead else 0.0)
    asked: list[tuple[str, str]] = []
    call = RewardJudge.__call__

    def spy(self, questions):
        assert self.model.reward_head.bias[...].sharding.memory_kind == "device"
        asked.extend((question.record.id, text) for question in questions for text in question.responses)
        return call(self, questions)

    monkeypatch.setattr(RewardJudge, "__call__", spy)
    whole = GRPOTask(setting)
    assert whole.scorer._judge._judge.model.reward_head.bias[...].sharding.memory_kind == "pinned_host"
    train(whole, tmp_path / "whole", recorded=setting, command="again")
    metrics, samples = processes.lines(tmp_path / "whole")

    # What is rewarded is what the formula says of the two scores; some answers are better, some are not.
    beta = whole.numbers["scorer_beta"]
    assert {row["scorer_beta"] for row in metrics[1:]} == {beta} and beta > 0
    assert {row["rule"] for row in samples} == {"better", "not_better"}
    for row in samples:
        ours, theirs = map(float, re.fullmatch(r"(\S+) against (\S+)", row["normal_form"]).groups())
        assert row["score"] == pytest.approx(max(0.0, 1 - math.exp(-beta * (ours - theirs))), abs=1e-4)
    assert {row["scorer_unread"] for row in metrics[1:]} == {0}

    # Two pairs set beta; then each reference is scored once in the whole run.
    records = [whole.source[place] for place in whole.index.good]
    assert len(records) == 2 and len(samples) == 4 * 8
    for record in records:
        assert asked[4:].count((record.id, record.answer)) == 1
    assert sorted(whole.numbers["scorer_references"].values()) == sorted(whole.scorer.references.values())
    assert len(whole.scorer.references) == 2

    policy = saved_policy.from_run(open_run(tmp_path / "whole"), setting)  # for tools that evaluate the run
    assert (policy.scorer, policy.scorer_beta) == (setting.rewards.scorer, beta)

    update, calls = GRPOTask._update, iter(range(100))

    def stopped(self, *arguments):
        if next(calls) == 3:  # in step 4, between the checkpoints of 2 and 4
            raise Stop
        return update(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(GRPOTask, "_update", stopped)
        train(GRPOTask(setting), tmp_path / "run", recorded=setting, command="again")
    asked.clear()
    train(GRPOTask(setting), tmp_path / "run", recorded=setting, command="again")
    assert processes.lines(tmp_path / "run") == (metrics, samples)
    assert not {(record.id, record.answer) for record in records} & set(asked)  # known from the checkpoint


def test_the_number_of_the_config_is_taken(heads, capsys):
    task = GRPOTask(config(heads, rewards__scorer_beta=0.7, rewards__scorer=f"outcome:{heads / 'outcome'}"))
    task.begin()
    assert task.numbers["scorer_beta"] == task.scorer.beta == 0.7
    assert "beta" not in capsys.readouterr().out


def test_the_beta_of_the_scores_a_stop_and_held_out_answers(heads, capsys):
    task = GRPOTask(config(heads, rewards__scorer_memory="device"))
    task.begin()
    one, other = (task.source[place] for place in task.index.good)
    scores = task.scorer.score_batch([(one, [one.answer, other.answer]), (other, [other.answer, one.answer])])
    median = np.median(np.abs(np.diff(scores)))
    assert task.scorer.beta == pytest.approx(math.log(2) / median, rel=1e-4)
    assert f"beta {task.scorer.beta:.4g}, so that the median difference" in capsys.readouterr().out

    def stop_when_judged():
        if task.scorer.references:
            raise Stop

    before = copy.deepcopy(task.numbers)
    with pytest.raises(Stop):
        task.step(1, Clock(), stop_when_judged)
    assert task.numbers == before  # a stopped step is done again as if it had not begun
    task.scorer.references = {}

    evaluator = Evaluator(task.source, task.index, task.encoder, batch=4, scorer=task.scorer)
    results = evaluator(sampling_weights(task.model, np.float32), dataclasses.replace(task._generator, batch=0))
    assert [result.record.id for result in results] == [one.id, other.id] and len(results[0].answers) == 2
    for record, result in zip((one, other), results, strict=True):
        for answer in result.answers:
            ((theirs, ours),) = task.scorer.score_batch([(record, [record.answer, answer.trace.extracted])])
            expected = max(0.0, 1 - math.exp(-task.scorer.beta * (ours - theirs)))
            assert answer.trace.score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards__scorer": "process:{folder}/constant"}, "gives every one of 4 answers the score 0.25"),
        ({"rewards__scorer": "outcome:{folder}/process"}, "was trained as process model; name it process:"),
        ({"rewards__scorer": "process:{folder}/policy"}, "is no reward model"),
        ({"rewards__scorer": "rubric:gpt"}, "nothing here answers the prompts of a rubric judge"),
        ({"rewards__scorer": "likelihood"}, "name its folder, likelihood:DIR"),
        ({"rewards__scorer_beta": -1.0}, "scorer_beta is -1.0: expected a number above 0, or 0"),
        ({"rewards__scorer_memory": "disk"}, "scorer_memory is 'disk': expected 'device' or 'pinned_host'"),
        ({"rewards__process": "outcome:{folder}/outcome"}, "judges whole answers: expected process:DIR"),
        ({"rewards__process": "process:{folder}/process", "rewards__process_weight": 0.0}, "process_weight is 0.0"),
        ({"rewards__process": "process:{folder}/process", "rewards__shuffled": True}, "exclude each other"),
    ],
)
def test_what_cannot_judge_is_refused(heads, changes, message):
    changes = {name: value.format(folder=heads) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        GRPOTask(config(heads, **changes)).begin()


def test_a_class_scores_answer_by_answer_and_may_get_another_beta(folder):
    task = GRPOTask(tiny.config("grpo", folder, rewards__scorer_beta=0.3))
    assert task.scorer.beta == 0.3 and type(task.scorer).beta == 0.8
    task.begin()
    assert "scorer_beta" not in task.numbers


def test_rewards_of_steps(heads, monkeypatch):
    """Every verifier's records; a token's advantage is its completion's and what the steps add that end behind it."""
    # Line ends and step marks among random text would be rare.
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, tokens: decode(self, tokens).replace("e", "\n\n"))
    judge = f"process:{heads / 'process'}"
    task = GRPOTask(
        config(heads, rewards__enabled=("digit", "open_ended"), rewards__process=judge, rewards__process_weight=0.5)
    )
    task.begin()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, fun_name="", **__: compiled.append(fun_name) if "backend_compile" in event else None
    )
    with compiling(distinct(task.programs()), lambda text: None) as programs:
        programs.wait()
    ahead = compiled.copy()
    seen = []
    score = task._score
    task._score = lambda *arguments: seen.append(score(*arguments)) or seen[-1]
    report = task.step(1, Clock(), lambda: None)
    assert not {"jit(take_groups)", "jit(_add)"} & set(compiled[len(ahead) :])
    assert report.metrics["non_finite_updates"] == 0 and report.metrics["process/unread"] == 0

    groups, scored = seen[0]
    tokens, lengths = np.asarray(groups.tokens), np.asarray(groups.lengths)
    found = np.asarray(scored.advantages)
    rewards = np.reshape([row["score"] for row in report.samples], (4, 2))
    counts, tokenizer = [], task.encoder.tokenizer
    for b in range(4):
        rows = report.samples[2 * b : 2 * b + 2]
        # A token that ends two steps has the score of the later one.
        ends = [
            dict(zip(step_places(tokenizer, tokens[b, g, : lengths[b, g]]).tolist(), row["step_scores"], strict=True))
            for g, row in enumerate(rows)
        ]
        steps = np.asarray([value for own in ends for value in own.values()])
        spread = rewards[b].std(ddof=1) + 1e-9
        for g, row in enumerate(rows):
            assert len(row["step_scores"]) == len(split_steps(row["completion"]))
            counts.append(len(row["step_scores"]))
            expected = np.full(lengths[b, g], (rewards[b, g] - rewards[b].mean()) / spread)
            for end, value in ends[g].items():
                expected[: end + 1] += 0.5 * (value - steps.mean()) / (steps.std(ddof=1) + 1e-9)
            np.testing.assert_allclose(found[b, g, : lengths[b, g]], expected, atol=1e-3)
            assert row["advantage"] == pytest.approx(expected[0], abs=1e-3)
    assert max(counts) > 1 and report.metrics["process/steps"] == pytest.approx(np.mean(counts))


@pytest.mark.slow
def test_an_endpoint_scores_a_run_of_the_command(heads, tmp_path):
    def grade(request, number):
        number = zlib.crc32(loopback.read(request)[0].encode())
        return loopback.completion(request, f"I looked.\nOverall Score: {1 + number % 5}")

    with loopback.Endpoint(grade) as server:
        changes = {"rewards__scorer": "rubric:grader", "rewards__base_url": server.base_url, "steps": 2}
        arguments = processes.flags(heads, "grpo", rewards__enabled=("open_ended",), **changes)
        cache = {"VLAA_JAX_CACHE": str(tmp_path / "cache")}
        (ended,) = processes.run(1, tmp_path / "run", arguments, script="training/judged", environment=cache)
    assert ended.popen.returncode == 0, ended.said()
    metrics, samples = processes.lines(tmp_path / "run")
    assert server.asked["grader"] >= 2 and [row["scorer_unread"] for row in metrics[1:]] == [0, 0]
    beta = metrics[1]["scorer_beta"]
    for row in samples:
        ours, theirs = map(float, re.fullmatch(r"(\S+) against (\S+)", row["normal_form"]).groups())
        assert 1 <= ours <= 5 and theirs in (1, 2, 3, 4, 5)
        assert row["score"] == pytest.approx(max(0.0, 1 - math.exp(-beta * (ours - theirs))), abs=1e-4)


@pytest.mark.slow
def test_two_processes_judge_as_two_devices(heads, tmp_path):
    """Each runs the rows of its chips, in the same batches; groups in rows of one completion fill both devices."""
    judge = f"process:{heads / 'process'}"
    changes = {"steps": 3, "updates__micro_batch": 2, "updates__row_completions": 1, "rewards__scorer": judge}
    changes |= {"rewards__enabled": ("digit", "open_ended"), "rewards__process": judge}
    changes |= {"data__evaluation": f"{heads / 'scenes'}:rl", "evaluation__batch": 4, "evaluation__every": 2}
    for count in (1, 2):
        arguments = processes.flags(heads, "grpo", **changes)
        ended = processes.run(count, tmp_path / f"run-{count}", arguments, devices=2 // count, script="training/judged")
        assert {each.popen.returncode for each in ended} == {0}, [each.said() for each in ended]
    metrics, samples = processes.lines(tmp_path / "run-1")
    assert {"better", "not_better"} <= {row["rule"] for row in samples}
    assert any(row["step_scores"] for row in samples) and metrics[1]["scorer_beta"] > 0
    assert processes.lines(tmp_path / "run-2") == (metrics, samples)
