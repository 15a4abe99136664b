"""The loop on a task of one number: resume, stop, steps that are not finite, a finished run."""

import io
import json
import os
import pathlib
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vlaa_jax.errors import InputError
from vlaa_jax.training.loop import Interrupted, train
from vlaa_jax.training.run_folder import RunFolder, without_volatile
from vlaa_jax.training.run_report import Findings
from vlaa_jax.training.state import create_state
from vlaa_jax.training.task import StepReport

COMMAND = "python launch/tpu_train.py --config=configs/grpo_mixed.py"


class NothingHeldOut:
    """An evaluation that a test may replace parts of."""

    def programs(self):
        return []

    def due(self, number):
        return False

    def subset(self, check_stop):
        raise AssertionError("never due")

    def full(self, name, step, check_stop):
        return {}

    def done(self, name, step):
        return True

    def quality(self, metrics):
        return metrics["evaluation/reward"]

    def tables(self):
        return []

    def findings(self):
        return Findings()


class Counting:
    """Each step adds the step's number to a weight and 1 to a JSON number."""

    picture = b""

    def __init__(self, config, *, bad=(), before=None, during=None, fails=None):
        self.config = config
        self.steps = config.steps
        self.numbers, self.waiting = {"draws": 0}, {}
        self.state = create_state(
            {"language": {"w": jnp.float32(0)}, "vision": {}}, optax.adam(1.0), freeze_vision=False
        )
        prompt = SimpleNamespace(sha256=lambda template: "ab" * 32)
        self.encoder = SimpleNamespace(prompt=prompt, tokenizer=SimpleNamespace(chat_template=""))
        self.bad, self.before, self.during, self.fails, self.done = bad, before or {}, during or {}, fails, []

    def begin(self):
        pass

    def programs(self):
        return []

    def held_out(self, directory):
        return NothingHeldOut()

    def step(self, number, clock, check_stop):
        self.before.get(number, lambda: None)()
        check_stop()
        if number == self.fails:
            raise ZeroDivisionError
        with clock.phase("update"):
            weight = self.state.trainable["language"]["w"] + number
        self.state = type(self.state)(
            {"language": {"w": weight}, "vision": {}}, self.state.frozen, self.state.optimizer, self.state.updates + 1
        )
        self.numbers["draws"] += 1
        self.done.append(number)
        self.during.get(number, lambda: None)()
        bad = {"ids": ["a", "b"], "tokens": np.full(3, number)} if number in self.bad else None
        metrics = {"loss": float(weight), "non_finite_updates": int(bad is not None)}
        row = {"id": f"r{number}", "w": float(weight), "verifier": "digit", "gold": "7"}
        row |= {"completion": f"I see {number}", "score": 0.25}
        return StepReport(metrics, [row], {"update": 3}, bad, {row["id"]: self.picture} if self.picture else {})


def make_config(**changes) -> ConfigDict:
    config = ConfigDict(
        {
            "task": "fake",
            "seed": 0,
            "steps": 6,
            "data": {"evaluation": ""},
            "evaluation": {"every": 2},
            "checkpoint": {"every": 2, "keep": 2},
        }
    )
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def run(workdir, *, command=COMMAND, bad=(), before=None, during=None, fails=None, **changes):
    task = Counting(make_config(**changes), bad=bad, before=before, during=during, fails=fails)
    path = train(task, workdir, recorded=task.config, command=command)
    return task, path


def lines(workdir):
    folder = RunFolder(workdir)
    return [without_volatile(row) for row in folder.metrics()], list(folder.samples())


def files(directory: pathlib.Path) -> dict:
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.quick
def test_a_run_leaves_a_line_a_step_and_a_report(tmp_path):
    task, report = run(tmp_path / "run")
    metrics, samples = lines(tmp_path / "run")
    assert task.done == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in metrics] == list(range(7))
    assert [row["loss"] for row in metrics[1:]] == [1, 3, 6, 10, 15, 21]
    assert [row["id"] for row in samples] == [f"r{i}" for i in range(1, 7)]
    assert report == tmp_path / "run" / "report.html" and report.exists()
    (first,) = [row for row in RunFolder(tmp_path / "run").metrics() if row["step"] == 1]
    assert {"seconds/step", "seconds/other", "seconds/update", "tokens_per_second/update"} <= set(first)


def test_tensorboard_shows_a_completion_with_its_picture(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(buffer, "PNG")
    monkeypatch.setattr(Counting, "picture", buffer.getvalue())
    run(tmp_path / "run", steps=2)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert [event.step for event in events.Images("picture/0")] == [1, 2]
    text = events.Tensors("completion/0")[1].tensor_proto.string_val[0].decode()
    assert "r2 (digit, gold 7)" in text and "I see 2" in text and "reward 0.250" in text
    shown = Image.open(io.BytesIO(events.Images("picture/0")[0].encoded_image_string)).convert("RGB")
    assert shown.getpixel((15, 10)) == (255, 0, 0)


@pytest.mark.quick
def test_a_run_that_broke_off_goes_on_from_its_last_checkpoint(tmp_path):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", fails=6)
    task, _ = run(tmp_path / "run")
    assert task.done == [5, 6]
    assert task.numbers == whole.numbers
    assert float(task.state.trainable["language"]["w"]) == 21
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


@pytest.mark.quick
def test_a_finished_run_changes_nothing_and_says_so(tmp_path, capsys):
    _, report = run(tmp_path / "run")
    before = files(tmp_path / "run")
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("6 steps follow; the time left")
    task, again = run(tmp_path / "run")
    assert (task.done, again) == ([], report)
    assert files(tmp_path / "run") == before
    assert capsys.readouterr().out == (
        f"This run is finished (6 steps); nothing was changed.\n\nStep 6\nloss\n----\n  21\n\n"
        f"for a new run: {COMMAND} --config.seed=1\n"
    ).replace("loss\n----\n  21", capsys_table(tmp_path / "run"))
    run(tmp_path / "run", command=f"{COMMAND} --workdir=runs/x")
    assert f"--config.seed=1 --workdir={tmp_path / 'run'}-seed1\n" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"config\.seed is 1 where this run began with 0"):
        run(tmp_path / "run", seed=1)
    assert files(tmp_path / "run") == before


def capsys_table(workdir) -> str:
    """The seconds of a step differ from run to run; the loss does not."""
    seconds = f"{RunFolder(workdir).metrics()[-1]['seconds/step']:.4g}"
    width = max(len(seconds), len("seconds/step"))
    return f"loss  seconds/step\n----  {'-' * width}\n  21  {seconds.rjust(width)}"


@pytest.mark.quick
def test_a_finished_run_without_its_report_gets_one(tmp_path):
    _, report = run(tmp_path / "run")
    report.unlink()
    task, again = run(tmp_path / "run")
    assert task.done == [] and again.exists()


@pytest.mark.quick
def test_steps_may_be_added_but_not_taken_away(tmp_path):
    run(tmp_path / "run")
    task, report = run(tmp_path / "run", steps=8, checkpoint__every=5)
    assert task.done == [7, 8] and report.exists()
    metrics, _ = lines(tmp_path / "run")
    assert [row["step"] for row in metrics] == list(range(9))
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [start["changed"] for start in starts] == [{}, {"checkpoint.every": 5, "steps": 8}]
    with pytest.raises(InputError, match=r"config\.steps is 6, but .* has done 8: expected that or more"):
        run(tmp_path / "run")


@pytest.mark.quick
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_the_step_and_saves(tmp_path, number):
    before = signal.getsignal(number)
    said = "stopped after step 3, which is saved; go on with: python launch/tpu_train"
    with pytest.raises(Interrupted, match=said) as stop:
        run(tmp_path / "run", during={3: lambda: os.kill(os.getpid(), number)}, checkpoint__every=5)
    assert stop.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 0}[number]
    assert signal.getsignal(number) == before
    assert (tmp_path / "run" / "checkpoints" / "3").exists()
    assert [row["step"] for row in lines(tmp_path / "run")[0]] == [0, 1, 2, 3]
    task, _ = run(tmp_path / "run", checkpoint__every=5)
    assert task.done == [4, 5, 6]


@pytest.mark.quick
def test_a_step_that_is_left_before_its_updates_is_done_again(tmp_path):
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with pytest.raises(Interrupted, match="stopped before the first step was done; go on with: "):
        run(tmp_path / "run", before={1: stop}, checkpoint__every=5)
    with pytest.raises(Interrupted, match="stopped after step 3, which is saved; go on with: "):
        run(tmp_path / "run", before={4: stop}, checkpoint__every=5)
    assert (tmp_path / "run" / "checkpoints" / "3").exists()
    task, _ = run(tmp_path / "run", checkpoint__every=5)
    assert task.done == [4, 5, 6]
    run(tmp_path / "undisturbed")
    assert lines(tmp_path / "run") == lines(tmp_path / "undisturbed")


@pytest.mark.quick
def test_an_evaluation_that_is_left_is_made_up_for(tmp_path, monkeypatch):
    """Its step is done and saved, without its line."""
    asked = []

    def subset(self, check_stop):
        if asked:
            asked.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        check_stop()
        return {"evaluation/reward": 0.5}

    monkeypatch.setattr(NothingHeldOut, "due", lambda self, number: number % 2 == 0)
    monkeypatch.setattr(NothingHeldOut, "subset", subset)
    run(tmp_path / "undisturbed")
    asked.append(True)
    with pytest.raises(Interrupted, match="stopped after step 2, which is saved; go on with: "):
        run(tmp_path / "run")
    assert [row["step"] for row in lines(tmp_path / "run")[0]] == [0, 1]
    task, _ = run(tmp_path / "run")
    assert task.done == [3, 4, 5, 6] and "unwritten" not in task.numbers
    assert lines(tmp_path / "run") == lines(tmp_path / "undisturbed")


@pytest.mark.quick
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", during={3: twice})


@pytest.mark.quick
def test_a_signal_during_the_last_step_lets_the_run_end(tmp_path):
    task, report = run(tmp_path / "run", during={6: lambda: os.kill(os.getpid(), signal.SIGINT)})
    assert task.done == [1, 2, 3, 4, 5, 6] and report.exists()


@pytest.mark.quick
def test_the_batch_of_a_step_that_is_not_finite_is_kept(tmp_path):
    run(tmp_path / "run", bad=(2, 3, 5))
    metrics, _ = lines(tmp_path / "run")
    assert [row["non_finite_updates"] for row in metrics[1:]] == [0, 1, 1, 0, 1, 0]
    assert sorted(path.name for path in (tmp_path / "run").glob("non-finite*")) == [
        f"non-finite-step-{step}.npz" for step in (2, 3, 5)
    ]
    with np.load(tmp_path / "run" / "non-finite-step-3.npz") as batch:
        assert batch["ids"].tolist() == ["a", "b"] and batch["tokens"].tolist() == [3, 3, 3]


@pytest.mark.quick
def test_three_in_a_row_stop_the_run(tmp_path):
    sentence = (
        r"steps 2 to 4 had no finite loss or gradient and were not applied; their batches are in .*run: start a new"
    )
    with pytest.raises(InputError, match=sentence):
        run(tmp_path / "run", bad=(2, 3, 4))
    assert [row["step"] for row in lines(tmp_path / "run")[0]] == [0, 1, 2, 3, 4]


@pytest.mark.quick
def test_a_resume_does_not_forget_how_many_there_were(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", bad=(2, 3, 4), during={3: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(InputError, match="steps 2 to 4"):
        run(tmp_path / "run", bad=(2, 3, 4))


@pytest.mark.quick
def test_another_config_in_the_same_folder_is_refused(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", fails=4)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"config\.seed is 3 where this run began with 0"):
        run(tmp_path / "run", seed=3)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.quick
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    write = os.write

    def full(descriptor, data):
        if b'"step": 4' in data:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        InputError, match=r"run: No space left on device; what was saved before is untouched\. Make room"
    ):
        run(tmp_path / "run")
    monkeypatch.undo()
    task, _ = run(tmp_path / "run")
    assert task.done == [3, 4, 5, 6]
    run(tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
