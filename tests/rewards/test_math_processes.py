"""Limits, purity and life of the math workers, with real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from vlaa_jax.rewards.math import submit
from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rewards.math_text import read
from vlaa_jax.rewards.messages import receive, send

ROOT = pathlib.Path(__file__).parents[2]
HOSTILE = {
    "tower": "9^{9^{9^{9}}}",
    "calculator tower": "9**9**9**9",
    "power of a power": "10^(10^10)",
    "huge power": "2^{1000000000}",
    "sum": r"\sum_{k=1}^{1000000000} k",
    "product": r"\prod_{k=1}^{100000} k",
    "factorial": "99999999!",
    "expansion": "(a+b+c+d)^{200}",
    "2000 parentheses": "(" * 1000 + "1" + ")" * 1000,
    "300 parentheses": "(" * 300 + "1" + ")" * 300,
    "fractions": r"\frac{" * 150 + "1" + "}{2}" * 150,
    "boxes": r"\boxed{" * 200 + "1" + "}" * 200,
    "spaces": r"5" + r"\," * 1000 + "5",
}
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def pool():
    pool = MathPool(1, cpu_seconds=1)
    yield pool
    pool.close()


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_input_is_bounded(pool, answer):
    verdict, seconds = submit(answer, "a+b" if "a" in answer else "4", pool)()
    assert verdict.score == 0
    assert seconds < 20  # one second of processor time, on however busy a machine


def test_hostile_input_takes_no_time_of_this_process():
    start = time.process_time()
    for answer in HOSTILE.values():
        read(answer * 1000)
        read(answer)
    assert time.process_time() - start < 1


def test_time_out_is_counted_and_logged(pool, caplog):
    verdict, seconds = submit("8^{9^{9^{9}}}", "4", pool)()
    assert (verdict.rule, verdict.score, verdict.valid) == ("timeout", 0, False)
    assert 0.5 < seconds < 20
    assert "8^{9^{9^{9}}}" in caplog.text and "timeout" in caplog.text


def test_memory_is_bounded():
    small = MathPool(1, cpu_seconds=20, memory_bytes=150 << 20)
    verdict, _ = submit("2^{30000000000}", "4", small)()
    small.close()
    assert verdict.score == 0
    assert verdict.rule != "timeout"


def test_a_worker_that_hangs_is_killed_and_replaced(pool):
    hasty = MathPool(1, cpu_seconds=60, wall_seconds=1)
    assert hasty.submit(["1"], ["1"]).result()[0] == "equal"
    (before,) = hasty.pids()
    assert hasty.submit(["4"], ["9^{9^{9^{9}}}"]).result()[0] == "timeout"
    assert hasty.submit(["2"], ["2"]).result()[0] == "equal"
    (after,) = hasty.pids()
    assert before != after
    assert not _alive(before)
    hasty.close()
    assert not _alive(after)


def test_a_worker_killed_from_outside_costs_no_verdict():
    victim = MathPool(1)
    assert victim.submit(["1"], ["1"]).result()[0] == "equal"
    os.kill(victim.pids()[0], signal.SIGKILL)
    assert victim.submit(["2"], ["2"]).result()[0] == "equal"
    victim.close()


def test_verdicts_do_not_depend_on_what_was_asked_before():
    """In order, in reverse, and alone on a fresh worker, without the pool's memory of verdicts."""
    tasks = [
        (["(x+1)^2"], ["x^2+2x+1"]),
        (["4"], ["9^{9^{9^{9}}}"]),
        ([r"\sin^2 x + \cos^2 x"], ["1"]),
        (["a+b"], ["(a+b+c+d)^{200}"]),
        ([r"\frac{1}{3}"], ["0.333333"]),
        (["x"], ["y"]),
        (["3"], ["3, 4"]),
        (["1"], ["x"]),
        (["(x+1)^2"], ["x^2+2x+1"]),
    ]
    with _worker() as worker:
        in_order = [_ask(worker, *task) for task in tasks]
    with _worker() as worker:
        in_reverse = [_ask(worker, *task) for task in reversed(tasks)][::-1]
    assert in_order == in_reverse
    assert in_order[0] == "equal" and in_order[1] == "timeout" and in_order[6] == "hedge"
    with _worker() as worker:
        assert _ask(worker, *tasks[8]) == in_order[8]


@linux_only
@pytest.mark.parametrize("state", ["idle", "busy", "pipes held open by a sibling"])
def test_a_killed_parent_leaves_no_process(state, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from vlaa_jax.rewards.math_pool import MathPool
            pool = MathPool(2, cpu_seconds=60)
            [future.result() for future in [pool.submit([str(n)], [str(n)]) for n in range(20)]]
            if sys.argv[1] == "busy":
                pool.submit(["4"], ["9^{9^{9^{9}}}"])
                time.sleep(1)
            elif sys.argv[1] != "idle" and os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            print(*pool.pids(), flush=True)
            time.sleep(600)
            """
        )
    )
    parent = subprocess.Popen(
        [sys.executable, script, state], stdout=subprocess.PIPE, env=_environment(), start_new_session=True
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    members = [pid for worker in workers for pid in _session(worker)]
    siblings = [pid for pid in _session(parent.pid) if pid != parent.pid]
    assert len(workers) == 2 and len(members) == 2 + (state == "busy")
    assert len(siblings) == (state not in ("idle", "busy"))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        _wait_until_gone(members)
    finally:
        for pid in siblings:
            os.kill(pid, signal.SIGKILL)


@linux_only
@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_ends_with_its_input_where_the_kernel_does_not_help(busy):
    with _worker(cpu_seconds=60, portable=True) as worker:
        if busy:
            send(worker.stdin.fileno(), {"golds": ["4"], "answers": ["9^{9^{9^{9}}}"]})
            time.sleep(1)
        members = _session(worker.pid)
        assert len(members) == 1 + busy
        worker.stdin.close()
        worker.wait(timeout=20)
        _wait_until_gone(members)


def test_starting_a_worker_runs_no_line_of_the_users_script_and_loads_no_jax(tmp_path):
    script = tmp_path / "math.py"  # not even its name gets in the way
    script.write_text(
        textwrap.dedent(
            """
            print("main runs")
            from vlaa_jax.rewards import score
            print(score("math", "<answer>1/2</answer>", "0.5"))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-P", script], capture_output=True, text=True, env=_environment(), cwd=tmp_path
    )
    assert done.stdout == "main runs\n1.0\n", done.stderr
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, vlaa_jax.rewards.math_worker; print(*sys.modules)"],
        capture_output=True,
        text=True,
        env=_environment(),
    ).stdout.split()
    assert "vlaa_jax.rewards.math_worker" in loaded
    assert not {"jax", "numpy", "PIL", "flax", "tensorflow_datasets", "sympy"} & set(loaded)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


class _worker:
    """A worker process without a pool."""

    def __init__(self, cpu_seconds: int = 1, portable: bool = False):
        start = "import vlaa_jax.rewards.math_worker as worker; "
        start += "worker._die_with = lambda parent: None; " if portable else ""
        self._arguments = ["-c", start + "worker.main()", str(cpu_seconds), str(1 << 30), str(os.getpid())]

    def __enter__(self) -> subprocess.Popen:
        command = [sys.executable, *self._arguments]
        environment = {**_environment(), "PYTHONHASHSEED": "0"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, bufsize=0, env=environment, start_new_session=True
        )
        assert receive(self._process.stdout.fileno()) == {"ready": True}
        return self._process

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _ask(worker: subprocess.Popen, golds: list[str], answers: list[str]) -> str:
    send(worker.stdin.fileno(), {"golds": golds, "answers": answers})
    return receive(worker.stdout.fileno())["verdict"]


def _session(leader: int) -> list[int]:
    """Living processes of the session that `leader` leads."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and _alive(int(entry.name)):
            try:
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = pathlib.Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not any(map(_alive, pids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"still alive: {[pid for pid in pids if _alive(pid)]}")
