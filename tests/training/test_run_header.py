import json
import pathlib

import numpy as np
import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.run_header import config_hash

CONFIG = {"seed": 0, "steps": 150, "optimizer": {"learning_rate": 1e-4, "betas": (0.9, 0.999)}, "logging": {"every": 1}}


@pytest.mark.quick
def test_the_hash_is_of_the_values():
    assert config_hash({"seed": 0, "b": {"c": (1, 2.5)}}) == "4739e935"
    assert config_hash({"b": {"c": [1, np.float64(2.5)]}, "seed": np.int32(0)}) == "4739e935"
    assert config_hash({"seed": 1, "b": {"c": (1, 2.5)}}) != "4739e935"


@pytest.mark.quick
@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object])
def test_a_field_that_json_cannot_hold_is_named(value):
    with pytest.raises(InputError, match=r"config.optimizer.betas\[1\] is .*: expected a finite number"):
        config_hash({"optimizer": {"betas": (0.9, value)}})


@pytest.mark.quick
def test_what_the_header_holds(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({**CONFIG, "data": pathlib.Path("shards")}, prompt_sha256="ab" * 32)
    header = folder.header()
    assert header["config"]["optimizer"] == {"learning_rate": 1e-4, "betas": [0.9, 0.999]}
    assert header["config"]["data"] == "shards"
    assert header["config_hash"] == config_hash({**CONFIG, "data": "shards"})
    assert header["prompt_sha256"] == "ab" * 32
    (start,) = header["starts"]
    assert start["packages"]["numpy"] == np.__version__
    assert "jax" in start["packages"]
    assert start["command"].startswith("python ")
    assert start["changed"] == {}
    assert sorted(path.name for path in folder.directory.iterdir()) == ["run.json", "run.lock", "tensorboard"]


@pytest.mark.quick
def test_the_same_run_goes_on_with_what_may_change(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin(CONFIG, prompt_sha256="a")
    folder.close()
    changed = {**CONFIG, "steps": 300, "logging": {"every": 5, "images": 2}}
    RunFolder(tmp_path).begin(changed, prompt_sha256="a", changeable=["steps", "logging"])
    header = folder.header()
    assert header["config"]["steps"] == 150
    assert header["config_hash"] == config_hash(CONFIG)
    assert [start["changed"] for start in header["starts"]] == [
        {},
        {"logging.every": 5, "logging.images": 2, "steps": 300},
    ]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "prompt", "message"),
    [
        (
            {"optimizer": {"learning_rate": 3e-4, "betas": (0.9, 0.95)}},
            "a",
            r"config.optimizer.betas is \[0.9, 0.95\] where this run began with \[0.9, 0.999\]; only steps may change",
        ),
        (
            {"optimizer": {"learning_rate": 1e-4}},
            "a",
            r"config.optimizer.betas is absent where this run began with \[0",
        ),
        (
            {"seed": 1, "steps_more": 1},
            "a",
            "config.seed is 1 where this run began with 0; only steps may change when a run goes on",
        ),
        ({"steps_more": 1}, "a", "config.steps_more is 1 where this run began with absent"),
        ({"logging": {}}, "a", "config.logging is {} where this run began with absent"),
        ({}, "b", "prompt_sha256 is 'b' where this run began with 'a'"),
    ],
)
def test_another_run_is_refused_and_the_first_difference_named(tmp_path, change, prompt, message):
    folder = RunFolder(tmp_path)
    folder.begin(CONFIG, prompt_sha256="a")
    before = folder.header_path.read_bytes()
    with pytest.raises(InputError, match=r"run\.json: " + message):
        folder.begin({**CONFIG, **change}, prompt_sha256=prompt, changeable=["steps"])
    assert folder.header_path.read_bytes() == before


@pytest.mark.quick
@pytest.mark.parametrize("text", ["", "[]", json.dumps({"config": {}})])
def test_a_damaged_header(tmp_path, text):
    folder = RunFolder(tmp_path)
    folder.header_path.write_text(text)
    with pytest.raises(InputError, match=r"run\.json: damaged, not the header of a run"):
        folder.begin(CONFIG, prompt_sha256="a")
