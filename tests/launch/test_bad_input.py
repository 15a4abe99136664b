"""Wrong input to a command: one sentence, exit code 2, no traceback."""

import dataclasses
import os
import subprocess
import sys

import pytest
from tiny_checkpoint import picture, write_checkpoint
from tiny_runs import ROOT, demo_config, write_shards

from vlaa_jax.errors import InputError
from vlaa_jax.processing import shards
from vlaa_jax.processing.records import Record
from vlaa_jax.training import settings

GRPO = "--config=configs/grpo_mixed.py"
SFT = "--config=configs/sft.py"
PRM = "--config=configs/prm.py"


def shell(*arguments, cache="") -> str:
    """The one sentence of a command that refuses."""
    environment = os.environ | {"VLAA_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()  # progress bars and warnings of libraries may come first
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1].removeprefix("error: ")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([f"{GRPO}:3b"], "3b needs --config.model.checkpoint=... (a Hugging Face directory of a Qwen2.5-VL or"),
        ([f"{GRPO}:3b", "--config.model.checkpoint=x"], "3b needs --config.data.train=... (shards as DIRECTORY:SPLIT)"),
        ([f"{GRPO}:9b"], "preset '9b' does not exist: expected one of demo, 3b, 7b, "),
        ([f"{SFT}:13b"], "preset '13b' does not exist: expected "),
        ([PRM], "prm.py needs --config.data.train=... (shards as DIRECTORY:SPLIT)"),
        ([f"{PRM}:13b"], "preset '13b' does not exist: expected one of demo, outcome, 3b, 7b"),
        ([GRPO, "--config.foo=1"], "--config.foo=1: the config has no field 'foo'"),
        ([GRPO, "--config.model.foo=1"], "--config.model.foo=1: the config has no field 'foo'"),
        ([GRPO, "--config.steps=many"], "--config.steps=many: invalid literal for int()"),
        ([GRPO, "--config.optimizer.learning_rate=high"], "learning_rate=high: could not convert string to float"),
        ([GRPO, "--config.rollout.prompt_buckets=a,b"], "expected whole numbers above 0"),
        ([GRPO, "--config.task=ppo"], "config.task is 'ppo': expected one of grpo, sft, prm"),
        (["--config=configs/none.py"], "No such file or directory: 'configs/none.py'"),
        (["--config=pyproject.toml"], "--config: the file cannot be loaded"),
        ([], "--config is missing"),
        (["--confg=x"], "Unknown command line flag 'confg'"),
        ([GRPO, "stray"], "'stray' is no flag"),
        ([GRPO, "--coordinator=localhost:1234"], "--processes is missing: --coordinator, --processes and --process go"),
        ([GRPO, "--coordinator=localhost", "--processes=2", "--process=0"], "expected HOST:PORT of process 0"),
        ([GRPO, "--coordinator=localhost:1", "--processes=2", "--process=x"], "--process is 'x': expected a number"),
        ([GRPO, "--coordinator=localhost:1", "--processes=2", "--process=2"], "--process is 2: expected one of 0 to 1"),
        ([GRPO, "--profile=3"], "--profile is '3': expected STEP,N, two whole numbers above 0, as --profile=10,2"),
        ([GRPO, "--workdir=pyproject.toml"], "pyproject.toml: expected a folder for the run, found a file"),
    ],
)
def test_training_flags(arguments, sentence):
    assert sentence in shell("launch/tpu_train.py", *arguments)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ask.py", "--checkpoint=none", "--image=LICENSE", "--question=?"], "none does not exist"),
        (["ask.py", "--image=none.png", "--question=?"], "--image: none.png does not exist"),
        (["ask.py", "--question=?"], "--image and --question belong together"),
        (["export.py", "--workdir=none", "--out=x"], "none does not exist: expected the folder of a run"),
        (["export.py", "--workdir=none", "--out=tests"], "tests exists already: nothing was written"),
        (["tpu_eval.py", "--workdir=none", "--data=x"], "none does not exist: expected the folder of a run"),
        (["tpu_eval.py", "--checkpoint=x", "--data=x", "--samples=-1"], "--samples is -1: expected 0 or more"),
        (["tpu_eval.py", "--checkpoint=x", "--data=x", "--json=none/x"], "--json: no folder none"),
    ],
)
def test_flags_of_the_other_tools(arguments, sentence):
    name, *rest = arguments
    assert sentence in shell(f"launch/{name}", *rest)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["tpu_train", "tpu_eval", "ask", "export"])
def test_help_shows_the_usage(name):
    command = [sys.executable, f"launch/{name}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"python launch/{name}.py --" in done.stdout
    assert "Traceback" not in done.stderr


def training(tiny, tmp_path, *arguments) -> str:
    fields = {"model.checkpoint": tiny.checkpoint, "data.train": f"{tiny.shards}:test", "data.evaluation": ""}
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    workdir = [] if any(argument.startswith("--workdir") for argument in arguments) else [f"--workdir={tmp_path}/run"]
    return shell("launch/tpu_train.py", SFT, *given, *workdir, *arguments, cache=tmp_path / "cache")


def truncated(tmp_path) -> str:
    directory = write_shards(tmp_path / "short")
    (shard,) = directory.glob("*.array_record*")
    shard.write_bytes(shard.read_bytes()[:-100])
    return f"{directory}:test"


def test_shards_that_are_missing_or_truncated(tiny, tmp_path):
    assert "manifest.json: no such file" in training(tiny, tmp_path, f"--config.data.train={tmp_path}/none:test")
    assert "bytes where manifest.json says" in training(tiny, tmp_path, f"--config.data.train={truncated(tmp_path)}")
    assert not (tmp_path / "run").exists(), "a refused run leaves no folder"


def test_a_record_that_cannot_be_used_is_named(tiny, tmp_path):
    shards = write_shards(tmp_path / "bad", Record("broken", (b"no picture",), "What?", "1", "digit"))
    sentence = training(tiny, tmp_path, f"--config.data.train={shards}:test")
    assert "1 of 6 records cannot be used (broken: undecodable image" in sentence
    assert sentence.endswith("--config.data.skip_bad=true goes on without them")


def test_bad_records_are_skipped_and_counted_when_asked(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "check_record", lambda record: None)
    odd = Record("odd", (picture(),), "What?", "1", "riddle")
    data = write_shards(tmp_path / "bad", odd, dataclasses.replace(odd, id="broken", images=(b"",), verifier="digit"))
    config = demo_config("sft")
    with config.unlocked():
        config.model.checkpoint, config.data.train = str(tiny.checkpoint), f"{data}:test"
        config.rollout.prompt_buckets = (4096,)
    encoder = settings.load_encoder(config)
    with pytest.raises(InputError, match=r"2 of 7 records cannot be used .*odd: verifier 'riddle' is none of digit"):
        settings.open_records(config, "train", encoder)
    with config.unlocked():
        config.data.skip_bad = True
    _, index = settings.open_records(config, "train", encoder)
    assert index.ids[index.good].tolist() == ["r0", "r1", "r2", "r3", "r4"]
    assert "config.data.train: 2 of 7 records cannot be used (odd: " in capsys.readouterr().out


def test_a_checkpoint_of_another_architecture(tiny, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    sentence = training(tiny, tmp_path, f"--config.model.checkpoint={tmp_path}/other")
    assert sentence.endswith("model_type is 'llama', expected 'qwen2_5_vl' or 'qwen2_vl'")


def test_the_folder_of_another_run(tiny, tmp_path):
    before = sorted(path.name for path in tiny.run.folder.directory.rglob("*"))
    sentence = training(tiny, tmp_path, f"--workdir={tiny.run.folder.directory}", "--config.seed=5")
    assert "where this run began with" in sentence
    assert "start a new run in another folder" in sentence
    assert sorted(path.name for path in tiny.run.folder.directory.rglob("*")) == before


def test_evaluation_and_questions(tiny, tmp_path, launch):
    checkpoint = f"--checkpoint={tiny.checkpoint}"
    for arguments, sentence in [
        (["--checkpoint=none", f"--data={tiny.shards}:test"], "none does not exist: expected a Hugging Face directory"),
        ([checkpoint, "--data=none:test"], "none/manifest.json: no such file"),
        ([checkpoint, f"--data={tiny.shards}:dev"], "has no split 'dev'; it has test"),
        ([checkpoint, f"--data={truncated(tmp_path)}"], "bytes where manifest.json says"),
        ([checkpoint, "--data=demo:none"], "the demo has no split 'none'"),
        ([checkpoint, f"--data={tiny.shards}:test", "--scorer=none:S"], "cannot import none"),
        ([f"--workdir={tmp_path}", f"--data={tiny.shards}:test"], "is not the folder of a run: it has no run.json"),
    ]:
        with pytest.raises(InputError) as caught:
            launch("tpu_eval", *arguments)
        assert sentence in str(caught.value)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"--image: .*text\.png: undecodable image"):
        launch("ask", checkpoint, f"--image={tmp_path / 'text.png'}", "--question=What?")


def test_exports_without_a_checkpoint_or_onto_something(tiny, tmp_path, launch):
    run = f"--workdir={tiny.run.folder.directory}"
    with pytest.raises(InputError, match="has no checkpoint of step 9: it holds 1"):
        launch("export", run, f"--out={tmp_path / 'policy'}", "--step=9")
    write_checkpoint(tmp_path / "mine", tied=False, seed=3)
    with pytest.raises(InputError, match="mine exists already: nothing was written"):
        launch("export", run, f"--out={tmp_path / 'mine'}")
