"""Checkpoints: exact, latest and best kept, earlier ones safe when a save fails."""

import asyncio
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from vlaa_jax.errors import InputError
from vlaa_jax.training.checkpoint import Checkpoints
from vlaa_jax.training.state import create_state

NUMBERS = {"draws": 2**53 - 1, "kl_coefficient": 0.1 + 0.2, "recent_losses": [1 / 3, 1e-300]}


def state(seed: int = 0, width: int = 3):
    weights = jax.random.normal(jax.random.key(seed), (width, 2))
    model = {"language": {"w": weights}, "vision": {"v": jnp.ones(2)}}
    return create_state(model, optax.adam(1e-3), freeze_vision=True)


def steps(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("CRITICAL", logger="absl")


@pytest.mark.quick
def test_everything_comes_back_to_the_last_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    saved = state(1)
    checkpoints.save(7, saved, NUMBERS, None)
    checkpoints.close()
    restored, numbers = Checkpoints(tmp_path, keep=2).restore(state(2))
    assert numbers == NUMBERS
    for old, new in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(old, new)
        assert old.dtype == new.dtype


@pytest.mark.quick
def test_numbers_are_those_of_the_call(tmp_path):
    """The file is written in the background while the next step counts on."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    numbers = {"draws": 1, "recent_losses": [0.5]}
    checkpoints.save(1, state(), numbers, None)
    numbers["draws"] = 2
    numbers["recent_losses"].append(0.25)
    checkpoints.close()
    _, saved = Checkpoints(tmp_path, keep=2).restore(state())
    assert saved == {"draws": 1, "recent_losses": [0.5]}


@pytest.mark.quick
def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert (checkpoints.latest, checkpoints.best) == (None, None)
    for step, reward in [(1, 0.2), (2, 0.5), (3, None), (4, 0.4), (5, None), (6, None)]:
        checkpoints.save(step, state(step), {}, reward)
    checkpoints.wait()
    assert (checkpoints.latest, checkpoints.best) == (6, 2)
    checkpoints.close()
    assert steps(tmp_path) == ["2", "5", "6"]
    again = Checkpoints(tmp_path, keep=2)
    assert (again.latest, again.best) == (6, 2)
    weights = again.restore_weights(state(9).trainable, 2)
    np.testing.assert_array_equal(weights["language"]["w"], state(2).trainable["language"]["w"])


@pytest.mark.quick
def test_without_a_measured_one_the_best_is_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, state(step), {}, None)
    checkpoints.close()
    assert checkpoints.best == 2 and steps(tmp_path) == ["2"]


@pytest.mark.quick
def test_another_architecture_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(width=3), {}, None)
    checkpoints.wait()
    with pytest.raises(InputError, match=r"1: optimizer\.0\.mu\.language\.w is \(3, 2\) there, \(4, 2\) by the config"):
        checkpoints.restore(state(width=4))


def fill_the_disk(directory: str) -> None:
    """Run in a process of its own: no file may grow beyond 20 kB, which is what a full disk does to the writer."""
    checkpoints = Checkpoints(directory, keep=2)
    checkpoints.save(1, state(1), NUMBERS, None)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        checkpoints.save(2, state(2, width=30_000), NUMBERS, None)
        checkpoints.wait()
    except InputError as error:
        print(error)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the size of files")
def test_a_failed_save_is_one_sentence_and_touches_nothing_else(tmp_path):
    code = "import pathlib, sys; from test_checkpoint import fill_the_disk; fill_the_disk(pathlib.Path(sys.argv[1]))"
    directory = tmp_path / "checkpoints"
    here = os.path.dirname(__file__)
    result = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)]), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == f"saving to {directory} failed (File too large); earlier checkpoints are untouched\n"
    assert "Traceback" not in result.stderr
    checkpoints = Checkpoints(directory, keep=2)
    # What Orbax had begun may lie there until it saves that step again; it is no checkpoint.
    assert checkpoints.latest == 1 and [name for name in steps(directory) if name.isdecimal()] == ["1"]
    restored, _ = checkpoints.restore(state(5))
    np.testing.assert_array_equal(restored.trainable["language"]["w"], state(1).trainable["language"]["w"])


def test_an_error_of_the_system_is_one_sentence(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._checkpointer, "save_async", full)
    with pytest.raises(InputError, match=r"saving to .* failed \(No space left on device\); earlier checkpoints are"):
        checkpoints.save(1, state(), {}, None)


def test_other_errors_are_not_swallowed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(), {}, None)
    with pytest.raises(ValueError, match="already exists"):
        checkpoints.save(1, state(), {}, None)


@pytest.fixture
def impatient(monkeypatch):
    """The client tries as often as ever, but does not sleep in between."""
    sleep = asyncio.sleep
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=lambda seconds: sleep(0)))


def test_a_checkpoint_in_a_bucket_comes_back_to_the_last_bit(bucket):
    directory = epath.Path(bucket.address("run")) / "checkpoints"
    with Checkpoints(directory, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), NUMBERS, step / 4)
    opened = Checkpoints(directory, keep=2)
    assert (opened.latest, opened.best, steps(directory)) == (3, 3, ["2", "3"])
    restored, numbers = opened.restore(state())
    assert numbers == NUMBERS
    for old, new in zip(jax.tree.leaves(state(3)), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_half_written_checkpoint_in_a_bucket_is_none_and_is_written_again(bucket):
    directory = epath.Path(bucket.address("run")) / "checkpoints"
    with Checkpoints(directory, keep=2) as checkpoints:
        checkpoints.save(1, state(1), NUMBERS, None)
    for name, data in bucket.files("run/checkpoints/1").items():
        if name != "commit_success.txt":
            bucket.write(f"run/checkpoints/2/{name}", data)
    with Checkpoints(directory, keep=2) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.save(2, state(2), NUMBERS, None)
    restored, _ = Checkpoints(directory, keep=2).restore(state())
    np.testing.assert_array_equal(jax.tree.leaves(restored)[0], jax.tree.leaves(state(2))[0])


def test_an_unreachable_bucket_costs_a_checkpoint_and_not_the_run(bucket, emulator, impatient, capsys):
    address = f"{bucket.address('run')}/checkpoints"
    checkpoints = Checkpoints(epath.Path(address), keep=2)
    checkpoints.save(1, state(1), NUMBERS, None)
    checkpoints.wait()
    emulator.interfere = lambda method, name: 503
    checkpoints.save(2, state(2), NUMBERS, None)
    sentence = f"saving to {address} failed (the server answers 503); earlier checkpoints are untouched"
    assert capsys.readouterr().err == f"warning: {sentence}; the run goes on to its next checkpoint\n"
    with pytest.raises(InputError) as caught:  # a run must not end as if its last state were saved
        checkpoints.wait()
    assert str(caught.value) == sentence
    emulator.interfere = lambda method, name: None
    checkpoints.save(3, state(3), NUMBERS, None)
    checkpoints.close()
    assert Checkpoints(epath.Path(address), keep=2).latest == 3


def test_a_bucket_that_may_not_be_written_is_said_in_a_sentence(bucket, emulator):
    address = f"{bucket.address('run')}/checkpoints"
    checkpoints = Checkpoints(epath.Path(address), keep=2)
    emulator.interfere = lambda method, name: 403 if method != "GET" else None
    with pytest.raises(InputError, match=rf"saving to {address} failed \(access was refused \(403\)\); earlier"):
        checkpoints.save(1, state(1), NUMBERS, None)
        checkpoints.wait()
