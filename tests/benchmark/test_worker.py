"""A side in a process of its own: jobs, what it refuses, and how it dies."""

import os
import pathlib

import pytest

from vlaa_jax.benchmark.worker import Worker
from vlaa_jax.errors import InputError

SIDE = """
import os, time
from vlaa_jax.benchmark.worker import serve
from vlaa_jax.errors import InputError

class Side:
    def __init__(self, folder):
        self.folder = folder
    def where(self, suffix):
        print("a library's chatter")
        return {"path": str(self.folder / suffix)}
    def work(self, seconds):
        start = time.process_time()
        while time.process_time() - start < seconds:
            pass
        return {"seconds": 7.0}
    def refuse(self):
        raise InputError("no such device")
    def fail(self):
        raise ValueError("a defect")
    def die(self):
        os._exit(3)

serve(Side)
"""


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "some_side.py").write_text(SIDE)
    root = pathlib.Path(__file__).parents[2]
    with Worker("some_side", tmp_path, {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}) as worker:
        yield worker


def test_jobs_one_after_the_other(worker, tmp_path):
    assert worker.ask("where", suffix="a") == {"path": str(tmp_path / "a")}
    run = worker.run("work", seconds=0.3)
    assert run.seconds == 7.0  # what the job says counts, not how long the question took
    assert 0.25 <= run.cpu_seconds < 1.5
    # The process goes on after what it refuses and after a defect.
    with pytest.raises(InputError, match="no such device"):
        worker.ask("refuse")
    with pytest.raises(RuntimeError, match=r"some_side: fail: ValueError\('a defect'\)\n(.|\n)*chatter"):
        worker.ask("fail")
    assert worker.ask("where", suffix="b") == {"path": str(tmp_path / "b")}


def test_a_process_that_dies_is_no_hang(worker):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="die: the process ended"):
            worker.ask("die")
