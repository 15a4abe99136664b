import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.rewards import Trace
from vlaa_jax.training.run_folder import RunFolder, trace_fields, without_volatile

TRACE = Trace(valid=True, normal_form="4", rule="equal", score=1.0, extracted="4", seconds=0.25)


def write_steps(folder: RunFolder, steps: range, seconds: float = 1.0) -> None:
    """What a run would write: numbers that depend on the step alone, and a time that does not."""
    for step in steps:
        folder.write_metrics(step, {"reward": math.sin(step), "updates": step * 2, "seconds/step": seconds})
        folder.write_samples(
            step, [{"id": f"r{step}-{row}", "completion": "<think>é\n\u2028" * row} for row in range(3)]
        )


@pytest.mark.quick
def test_lines_as_they_stand_in_the_files(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_metrics(
        3, {"reward": 0.1, "kl": 1e-07, "aha/wait": 2, "updates": np.int32(8), "loss": np.float32(0.1)}
    )
    folder.write_metrics(4, {"reward": jnp.float32(0.5), "tokens": jnp.int32(7)})
    assert folder.metrics_path.read_text() == (
        '{"step": 3, "aha/wait": 2, "kl": 1e-07, "loss": 0.10000000149011612, "reward": 0.1, "updates": 8}\n'
        '{"step": 4, "reward": 0.5, "tokens": 7}\n'
    )
    folder.write_samples(3, [{"id": "a", "sample": 0, "completion": "é\n\udc80", **trace_fields(TRACE)}])
    assert folder.samples_path.read_text() == (
        '{"step": 3, "id": "a", "sample": 0, "completion": "é\\n\\udc80", "valid": true, "normal_form": "4", '
        '"rule": "equal", "score": 1.0, "box_space_suspect": false, "extracted": "4", "seconds/reward": 0.25}\n'
    )
    assert next(iter(folder.samples()))["completion"] == "é\n\udc80"


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=50)
def test_a_float_comes_back_to_the_last_bit(tmp_path_factory, value):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.write_metrics(0, {"value": value})
    (row,) = folder.metrics()
    assert (row["value"], math.copysign(1, row["value"])) == (value, math.copysign(1, value))


@pytest.mark.quick
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), jnp.inf])
def test_nothing_is_written_of_a_step_with_a_number_that_is_not_finite(tmp_path, value):
    folder = RunFolder(tmp_path)
    folder.write_metrics(1, {"loss": 1.0})
    with pytest.raises(FloatingPointError, match=r"step 2: the metric 'loss' is -?(nan|inf)"):
        folder.write_metrics(2, {"entropy": 1.0, "loss": value})
    with pytest.raises(FloatingPointError, match="step 2: a row holds a number that is not finite"):
        folder.write_samples(2, [{"id": "a"}, {"advantage": value}])
    assert folder.metrics() == [{"step": 1, "loss": 1.0}]
    assert list(folder.samples()) == []
    folder.write_metrics(2, {"loss": 2.0})  # the step is still free


@pytest.mark.quick
def test_a_step_has_one_line_and_steps_rise(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_metrics(5, {})
    with pytest.raises(ValueError, match="step 5 has a line already"):
        folder.write_metrics(5, {})
    with pytest.raises(ValueError, match="step 4 after step 5"):
        folder.write_metrics(4, {})
    folder.write_samples(5, [{"id": "a"}])
    folder.write_samples(5, [{"id": "b"}])
    with pytest.raises(ValueError, match="step 4 after step 5"):
        folder.write_samples(4, [{"id": "c"}])
    # A second start must say where it goes on.
    with pytest.raises(ValueError, match="call cut_after before writing"):
        RunFolder(tmp_path).write_metrics(6, {})


@given(data=st.data(), restored=st.integers(-1, 5))
@settings(max_examples=60, deadline=None)
def test_killed_at_any_byte_and_resumed_the_files_equal_those_of_an_undisturbed_run(tmp_path_factory, data, restored):
    whole = RunFolder(tmp_path_factory.mktemp("whole"))
    write_steps(whole, range(6))
    killed = RunFolder(tmp_path_factory.mktemp("killed"))
    for path, other in [(whole.metrics_path, killed.metrics_path), (whole.samples_path, killed.samples_path)]:
        until_checkpoint = sum(
            len(line) + 1 for line in path.read_bytes().split(b"\n")[:-1] if json.loads(line)["step"] <= restored
        )
        other.write_bytes(path.read_bytes()[: data.draw(st.integers(until_checkpoint, path.stat().st_size))])

    resumed = RunFolder(killed.directory)
    resumed.cut_after(restored)
    assert [row["step"] for row in resumed.metrics()] == list(range(restored + 1))
    write_steps(resumed, range(restored + 1, 6), seconds=9.0)

    assert resumed.samples_path.read_bytes() == whole.samples_path.read_bytes()
    assert [without_volatile(row) for row in resumed.metrics()] == [without_volatile(row) for row in whole.metrics()]
    assert [row["seconds/step"] for row in resumed.metrics()] == [1.0] * (restored + 1) + [9.0] * (5 - restored)


@pytest.mark.quick
def test_a_torn_line_is_not_read(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_metrics(1, {"loss": 1.0})
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert folder.metrics() == [{"step": 1, "loss": 1.0}]


@pytest.mark.quick
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_cut(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics_path.write_bytes(b'{"step": 1}\n[]\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2: damaged, expected a JSON object with a step"):
        folder.cut_after(3)
    assert folder.metrics_path.read_bytes() == b'{"step": 1}\n[]\n{"step": 3}\n'


@pytest.mark.quick
def test_volatile_keys():
    row = {"step": 1, "seconds/step": 1.0, "tokens_per_second/rollout": 2.0, "memory/peak": 3, "programs_compiled": 4}
    assert without_volatile({**row, "reward": 0.5, "second": 1}) == {"step": 1, "reward": 0.5, "second": 1}


@pytest.mark.quick
def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="run: expected a folder for the run, found a file"):
        RunFolder(tmp_path / "run")


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.begin({"steps": 1}, prompt_sha256="ab")
    first.begin({"steps": 1}, prompt_sha256="ab")  # its own
    with pytest.raises(InputError, match="another process is training in this folder"):
        second.begin({"steps": 1}, prompt_sha256="ab")
    first.close()
    second.begin({"steps": 1}, prompt_sha256="ab")
