"""The command, in a process of its own: help, wrong flags, and kills at any moment."""

import os
import random
import signal
import subprocess
import sys
import time

import builds
import loopback
import pytest
import source_fixtures
from builds import SINGLE

from data_prep.build.build import build


def start(*arguments: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "data_prep", *map(str, arguments)]
    return subprocess.Popen(line, cwd=builds.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str) -> tuple[int, str, str]:
    with start(*arguments) as process:
        out, error = process.communicate(timeout=600)
        return process.returncode, out, error


def test_help():
    code, text, _ = run("build", "--help")
    assert code == 0
    for words in ("1 collect", "6 curate", "--config.budget=200", "--runner=FlinkRunner"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config=none.py"], "No such file or directory: 'none.py'"),
        (
            [f"--config={builds.CONFIG}", "--config.rewrite.drft=3"],
            "--config.rewrite.drft=3: the config has no field 'drft'",
        ),
        ([f"--config={builds.CONFIG}", "--confg.seed=3"], "Unknown command line flag 'confg.seed'"),
        ([f"--config={builds.CONFIG}", "--steps=7"], "--steps: '7' is no step, expected numbers from 1 to 6"),
        (
            [f"--config={builds.CONFIG}"],
            "no source has a folder: expected --config.sources.NAME.folder=..., NAME one of",
        ),
    ],
)
def test_wrong_flags(tmp_path, arguments, sentence):
    code, out, error = run("build", f"--out={tmp_path / 'out'}", *arguments)
    assert (code, out) == (2, "") and error.startswith("error: ") and sentence in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def killed_build(tmp_path, *, kills: int, seconds: float, seed: int, sources: tuple[str, ...] | None = None):
    """Kills a build `kills` times at random points, lets it end, and compares it with one that was left alone."""
    folders = source_fixtures.write_all(tmp_path / "sources")
    folders = {name: folder for name, folder in folders.items() if sources is None or name in sources}
    draw = random.Random(seed)

    def slow(request, number):
        return loopback.dataclasses.replace(loopback.answer(request, number), seconds=0.02)

    with loopback.Endpoint(slow) as endpoint:
        changes = {f"{step}__concurrency": 2 for step in builds.MODELS}
        arguments = builds.command(folders, endpoint.base_url, tmp_path / "out", **changes)
        for _ in range(kills):
            process = start(*arguments)
            time.sleep(draw.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        code, out, error = run(*arguments)
        assert code == 0, error
        assert f"{tmp_path}/out/shards" in out
        stored = sum(len(files) for _, _, files in os.walk(tmp_path / "out" / "cache"))
        assert endpoint.requests <= stored + kills * 2
        config = builds.config(folders, "http://127.0.0.1:9/v1", cache=str(tmp_path / "out" / "cache"), **changes)
        build(config, str(tmp_path / "alone"), options=SINGLE)
    assert builds.contents(tmp_path / "alone") == builds.contents(tmp_path / "out")


def test_a_killed_build_goes_on(tmp_path):
    killed_build(tmp_path, kills=1, seconds=6, seed=0, sources=("vizwiz", "geoqa170k"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_build_killed_again_and_again_gives_the_same_bytes(tmp_path, seed):
    killed_build(tmp_path, kills=8, seconds=15, seed=seed)
