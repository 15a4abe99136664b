"""Many processes are one run: the same bits as one process with as many devices, whatever ends them in between."""

import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from processes import flags, lines, run, started

# Two groups of two in rows of one completion: a row of a micro-batch for each of four devices.
GRPO = {"steps": 40, "updates__micro_batch": 2, "updates__row_completions": 1, "checkpoint__every": 10}
SFT = {"steps": 40, "checkpoint__every": 20}
PRM = SFT | {"objective__loss": "pairwise", "optimizer__learning_rate": 1e-3}


def told(processes) -> str:
    return "\n\n".join(f"exit {process.popen.returncode}\n{process.said()}" for process in processes)


def succeeded(processes) -> None:
    assert {process.popen.returncode for process in processes} == {0}, told(processes)


def last_saved(workdir) -> int:
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def wait_for_step(workdir, step: int, processes) -> None:
    deadline = time.monotonic() + 200
    while not (workdir / "metrics.jsonl").exists() or lines(workdir)[0][-1]["step"] < step:
        assert time.monotonic() < deadline and processes[0].popen.poll() is None, told(processes)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """GRPO of 40 steps in one process with two devices: its lines."""
    workdir = folder / "one-process"
    succeeded(run(1, workdir, flags(folder, "grpo", **GRPO), devices=2))
    metrics, samples = lines(workdir)
    assert [row["step"] for row in metrics] == list(range(41)) and len(samples) == 40 * 8
    assert len({row["loss"] for row in metrics[1:]}) == 40  # there is something to compare
    return metrics, samples


@pytest.fixture(scope="module")
def stopped(folder):
    """The same in two processes, stopped by a SIGTERM to the second: their folder and the step."""
    workdir = folder / "two-processes"
    with started(2, workdir, flags(folder, "grpo", **GRPO)) as processes:
        wait_for_step(workdir, 3, processes)
        os.kill(processes[1].popen.pid, signal.SIGTERM)
        began = time.monotonic()
        codes = [process.end(began + 60) for process in processes]
    assert codes == [0, 0], told(processes)
    said = re.findall(r"stopped after step (\d+), which is saved; go on with: python ", told(processes))
    assert len(said) == 1  # by the first process alone
    step = int(said[0])
    assert step < 40 and last_saved(workdir) == step and lines(workdir)[0][-1]["step"] == step
    return workdir, step


def test_a_checkpoint_of_two_processes_goes_on_in_one_and_in_four(folder, stopped, undisturbed):
    workdir, step = stopped
    expected = [(row["step"], row["id"], row["draw"]) for row in undisturbed[1] if row["step"] <= step + 3]
    for count in (1, 4):
        copy = folder / f"on-{count}"
        shutil.copytree(workdir, copy)
        processes = run(count, copy, flags(folder, "grpo", **GRPO | {"steps": step + 3}))
        succeeded(processes)
        assert f"resumed {copy} at step {step}" in processes[0].said()
        assert [(row["step"], row["id"], row["draw"]) for row in lines(copy)[1]] == expected


def test_two_processes_stopped_killed_and_resumed_give_the_bits_of_two_devices(folder, stopped, undisturbed):
    workdir, _ = stopped
    arguments = flags(folder, "grpo", **GRPO)
    killed = {1: {"RESUMABLE_END": "before an update:3:SIGKILL"}}
    with started(2, workdir, arguments, environments=killed) as processes:
        assert processes[1].end(time.monotonic() + 240) == -signal.SIGKILL, told(processes)
        # It died without a word; the other one notices.
        assert processes[0].end(time.monotonic() + 90) not in (0, 2, 130), told(processes)
    succeeded(run(2, workdir, arguments))
    assert lines(workdir) == undisturbed


@pytest.mark.slow
def test_two_processes_in_a_bucket_give_the_bits_of_a_local_run(folder, bucket, undisturbed, tmp_path):
    """Shards, start checkpoint and run folder; stopped by a SIGTERM, twice, each time on machines that know nothing."""
    address = bucket.address("runs/first")
    remote = {"model.checkpoint": bucket.put_folder(folder / "policy", "policy")}
    remote["data.train"] = bucket.put_folder(folder / "scenes", "scenes") + ":rl"
    arguments = [*flags(folder, "grpo", **GRPO, **remote), f"--workdir={address}"]  # the last one counts
    step = 0
    for machines in ("first", "second"):
        caches = {i: {"VLAA_JAX_CACHE": str(tmp_path / f"{machines}-{i}")} for i in range(2)}
        with started(2, tmp_path / machines, arguments, environments=caches) as processes:
            deadline = time.monotonic() + 200
            while bucket.files("runs/first").get("metrics.jsonl", b"").count(b"\n") < step + 4:  # step 0 has a line
                assert time.monotonic() < deadline and processes[0].popen.poll() is None, told(processes)
                time.sleep(0.1)
            os.kill(processes[1].popen.pid, signal.SIGTERM)
            codes = [process.end(time.monotonic() + 60) for process in processes]
        assert codes == [0, 0], told(processes)
        step, before = int(re.search(r"stopped after step (\d+), which is saved", told(processes))[1]), step
        assert step > before and f"checkpoints/{step}/commit_success.txt" in bucket.files("runs/first")
    assert f"resumed {address} at step {before}" in processes[0].said()
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_bytes(bucket.files("runs/first")[name])
    metrics, samples = lines(tmp_path)
    assert metrics == undisturbed[0][: step + 1] and samples == undisturbed[1][: 8 * step]


@pytest.mark.parametrize("place", ["as records are read:1", "as answers are judged:2"])
def test_an_input_error_of_one_process_ends_all(folder, tmp_path, place):
    failing = {1: {"RESUMABLE_END": f"{place}:InputError"}}
    processes = run(2, tmp_path / "run", flags(folder, "grpo", **GRPO), environments=failing)
    assert [process.popen.returncode for process in processes] == [2, 2], told(processes)
    assert told(processes).count("error: made to fail") == 1
    assert "Traceback" not in told(processes)


@pytest.mark.slow
def test_sft_in_two_processes_gives_the_bits_of_two_devices(folder):
    """With held-out answers: 26 in batches of 5, which two devices make 6, the last of them not full."""
    held_out = {"data__evaluation": f"{folder / 'scenes'}:rl", "evaluation__every": 20, "evaluation__records": 7}
    held_out |= {"evaluation__batch": 5, "evaluation__samples": 2, "rollout__new_tokens": 6}
    for name, count in (("sft-one", 1), ("sft-two", 2)):
        succeeded(run(count, folder / name, flags(folder, "sft", **SFT, **held_out), devices=2 // count))
    metrics, _ = lines(folder / "sft-one")
    assert len({row["loss"] for row in metrics[1:]}) == 40
    assert [row["step"] for row in metrics if "evaluation/reward" in row] == [0, 20, 40]
    assert lines(folder / "sft-two")[0] == metrics


@pytest.mark.slow
@pytest.mark.parametrize(("task", "changes"), [("grpo", GRPO), ("sft", SFT), ("prm", PRM)])
def test_four_processes_give_the_bits_of_four_devices(folder, task, changes):
    for count in (1, 4):
        processes = run(
            count, folder / f"{task}-{count}", flags(folder, task, **changes), devices=4 // count, seconds=600
        )
        succeeded(processes)
    assert lines(folder / f"{task}-1") == lines(folder / f"{task}-4")
    assert len({row["loss"] for row in lines(folder / f"{task}-4")[0][1:]}) == 40


def test_two_processes_compute_what_one_device_does(folder):
    """The first rollout and gradient, and twenty steps that learn from the same tokens."""
    source, own = folder / "rollouts", folder / "own-rollouts"
    source.mkdir()
    own.mkdir()
    # Adam divides by the gradient's size, so its steps grow rounding; at this rate 20 of them do not grow it too far.
    arguments = flags(folder, "grpo", **GRPO | {"steps": 20, "optimizer__learning_rate": 1e-3})
    where = {"REPLAY": str(source), "REPLAY_OWN": str(own)}
    for name, count in (("on-one-device", 1), ("replayed", 2)):
        succeeded(run(count, folder / name, arguments, script="training/replay", environment=where))
    with np.load(source / "rollout-1.npz") as one, np.load(own / "rollout-1.npz") as two:
        np.testing.assert_array_equal(two["tokens"], one["tokens"])
        np.testing.assert_allclose(two["log_probability"], one["log_probability"], rtol=0, atol=1e-5)
    with np.load(source / "gradient.npz") as one, np.load(own / "gradient.npz") as two:
        assert one.files == two.files
        for name in one.files:
            largest = np.abs(one[name]).max()
            assert largest > 0 and np.abs(two[name] - one[name]).max() <= 1e-5 * largest, name
    one, two = ([row["loss"] for row in lines(folder / name)[0][1:]] for name in ("on-one-device", "replayed"))
    assert len(set(one)) == 20
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)
