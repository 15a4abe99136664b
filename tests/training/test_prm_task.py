"""A tiny reward model learns, resumes, is evaluated, exported and trained on."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from vlaa_jax.errors import InputError
from vlaa_jax.models import reward_model
from vlaa_jax.models.qwen2_5_vl.encoder import open_encoder
from vlaa_jax.objectives.step_scores import score_steps
from vlaa_jax.processing.conversation import OWN_NOTE, OWN_SYSTEM, load_prompt
from vlaa_jax.training import saved_policy
from vlaa_jax.training.export import export
from vlaa_jax.training.loop import train
from vlaa_jax.training.prm_task import PRMTask
from vlaa_jax.training.run_folder import RunFolder, without_volatile

COMMAND = "python launch/tpu_train.py"


@pytest.fixture(scope="module")
def config(folder):
    return tiny.config(
        "prm", folder, steps=20, data__evaluation=f"{folder / 'processes'}:heldout", checkpoint__every=10
    )


@pytest.fixture(scope="module")
def trained(folder, config):
    """A task at its end, and its folder."""
    task = PRMTask(config)
    train(task, folder / "prm-run", recorded=config, command=COMMAND)
    return task, folder / "prm-run"


def lines(workdir):
    return [without_volatile(row) for row in RunFolder(workdir).metrics()]


def test_the_loss_falls_and_held_out_steps_are_judged(trained):
    _, workdir = trained
    rows = lines(workdir)
    assert [row["step"] for row in rows] == list(range(21))
    assert np.mean([row["loss"] for row in rows[-4:]]) < 0.7 * np.mean([row["loss"] for row in rows[1:5]])
    assert [row["step"] for row in rows if "evaluation/loss" in row] == list(range(0, 21, 2))
    wanted = {"mse", "brier", "ece", "first_below_half/auroc", "first_below_half/f1", "pairs_in_order", "loss"}
    assert {f"evaluation/{name}" for name in wanted} <= set(rows[0]) & set(rows[-1])
    # Of mean squared errors: the loss is the metric.
    assert rows[0]["evaluation/loss"] == pytest.approx(rows[0]["evaluation/mse"], rel=1e-5)
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["update/squared_error"], rel=1e-5)


def test_the_report_shows_before_and_after(trained, config, capsys):
    _, workdir = trained
    page = (workdir / "report.html").read_text()
    assert "Held-out step judgement" in page and "held-out errors of step scores" in page
    assert "first step with value &lt; 0.5: F1" in page and "The mean squared error of held-out steps went from" in page
    lines = (workdir / "evaluation" / "after-steps.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 6 and first["step"] == 20 and len(first["scores"]) == len(first["values"]) > 3
    train(PRMTask(config), workdir, recorded=config, command=COMMAND)
    out = capsys.readouterr().out
    assert "This run is finished (20 steps); nothing was changed." in out and "Held-out step judgement" in out


def test_a_resumed_reward_model_repeats_the_same_steps(trained, config, folder):
    task, workdir = trained
    copy = folder / "prm-resumed"
    shutil.copytree(workdir, copy)
    (copy / "report.html").unlink()
    shutil.rmtree(copy / "checkpoints" / "20")
    again = PRMTask(config)
    train(again, copy, recorded=config, command=COMMAND)
    assert lines(copy) == lines(workdir) and again.numbers == task.numbers
    for name in ("before", "after"):
        path = f"evaluation/{name}-steps.jsonl"
        assert (copy / path).read_bytes() == (workdir / path).read_bytes()


def test_an_exported_reward_model_scores_as_in_training_and_goes_on(trained, config, folder, tmp_path):
    task, workdir = trained
    out = tmp_path / "process"
    assert export(RunFolder(workdir, reading=True), config, out) == 20
    model, kind = reward_model.load(out)
    assert kind == "process"
    solutions, labels = task._data.update(0).micro_batches[0]
    ours = np.asarray(score_steps(task.model, solutions, dtype="float32"))
    theirs = np.asarray(score_steps(model, solutions, dtype="float32"))
    np.testing.assert_allclose(theirs[labels.weights > 0], ours[labels.weights > 0], atol=1e-6)
    # It is asked as in training.
    assert json.loads((out / OWN_NOTE).read_text())["prompt_sha256"] == RunFolder(workdir).header()["prompt_sha256"]
    encoder = open_encoder(out, load_prompt(str(out / OWN_SYSTEM)))
    assert encoder.prompt.system == task.encoder.prompt.system
    assert encoder.images.max_pixels == task.encoder.images.max_pixels
    card = (out / "README.md").read_text()
    assert "A reward model of the kind `process`" in card and "held-out mean squared error of step scores: 0." in card
    # Training goes on from its head, not from a new one, and only as what it is.
    with config.unlocked():
        onward = config.copy_and_resolve_references()
    onward.model.checkpoint = str(out)
    same = jax.tree.map(np.array_equal, PRMTask(onward).state.trainable, task.state.trainable)
    assert all(jax.tree.leaves(same))
    onward.model.kind = "outcome"
    with pytest.raises(InputError, match=r"config.model.kind is 'outcome', but the head in .* is 'process'"):
        PRMTask(onward)


def test_a_run_of_a_reward_model_is_no_policy(trained, config):
    with pytest.raises(InputError, match="trained a reward model, which answers nothing"):
        saved_policy.from_run(RunFolder(trained[1], reading=True), config)


def test_the_vision_tower_stays_as_it_was(trained, folder):
    task, _ = trained
    start = PRMTask(task.config)
    unchanged = jax.tree.map(np.array_equal, task.state.frozen, start.state.frozen)
    assert all(jax.tree.leaves(unchanged)) and jax.tree.leaves(task.state.frozen)
    head = task.model.reward_head.weight[...], start.model.reward_head.weight[...]
    assert float(np.abs(np.asarray(head[0]) - np.asarray(head[1])).max()) > 1e-3
