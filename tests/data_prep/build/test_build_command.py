"""The command: help, flags, and kills at any moment."""

import dataclasses
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
from outcomes import SINGLE, config, contents

from data_prep.__main__ import main
from data_prep.build.build import build
from vlaa_jax.errors import InputError

CONFIG = f"--config={builds.CONFIG}"


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=builds.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments: str) -> tuple[int, str, str]:
    with start(*arguments) as process:
        out, error = process.communicate(timeout=600)
        return process.returncode, out, error


def test_help():
    code, text, _ = run("-m", "data_prep", "build", "--help")
    assert code == 0
    for words in (
        "1 collect",
        "6 curate",
        "--config.budget=200",
        "--runner=FlinkRunner",
        "--runner=DataflowRunner",
        "--out=gs://",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config=none.py"], "No such file or directory: 'none.py'"),
        ([CONFIG, "--config.rewrite.drft=3"], "--config.rewrite.drft=3: the config has no field 'drft'"),
        ([CONFIG, "--confg.seed=3"], "Unknown command line flag 'confg.seed'"),
        ([CONFIG, "--steps=7"], "--steps: '7' is no step, expected numbers from 1 to 6"),
        ([CONFIG, "stray"], "'stray' is no flag: expected --config=..., --config.FIELD=... or --out=..."),
        ([CONFIG], "no source has a folder: expected --config.sources.NAME.folder=..., NAME one of clevr_math"),
    ],
)
def test_wrong_flags(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.setattr(sys, "argv", ["data_prep", "build", f"--out={tmp_path / 'out'}", *arguments])
    with pytest.raises(InputError) as caught:
        main()
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_options_of_beam_follow_a_dash(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "data_prep.build.build.build", lambda config, out, **more: given.append((config.seed, out, more)) or ""
    )
    arguments = [CONFIG, "--config.seed=3", "--steps=2,1", "--runner=FlinkRunner", "--", "--flink_master=host:1"]
    monkeypatch.setattr(sys, "argv", ["data_prep", "build", "--out=x", *arguments])
    main()
    assert given == [(3, "x", {"steps": [1, 2], "options": ["--runner=FlinkRunner", "--flink_master=host:1"]})]


def test_flags_that_a_command_without_a_config_does_not_know(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data_prep", "check", "--data=x", "--config.seed=3"])
    with pytest.raises(SystemExit):
        main()
    assert "unrecognized arguments: --config.seed=3" in capsys.readouterr().err


def killed_build(
    tmp_path, *, kills: int, seconds: float, seed: int, sources: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> None:
    """Kills a build `kills` times at random points, lets it end, and compares it with one that was left alone."""
    folders = source_fixtures.write_all(tmp_path / "sources")
    folders = {name: folder for name, folder in folders.items() if not sources or name in sources}
    draw = random.Random(seed)

    def slow(request, number):
        return dataclasses.replace(loopback.answer(request, number), seconds=0.02)

    with loopback.Endpoint(slow) as endpoint:
        changes = {f"{step}__concurrency": 2 for step in builds.MODELS} | {"files": 3, "shards__records_per_shard": 8}
        arguments = [*builds.command(folders, endpoint.base_url, tmp_path / "out", **changes), "--", *options]
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
        made = config(folders, "http://127.0.0.1:9/v1", cache=str(tmp_path / "out" / "cache"), **changes)
        build(made, str(tmp_path / "alone"), options=SINGLE)
    assert contents(tmp_path / "alone") == contents(tmp_path / "out")


def test_a_killed_build_goes_on(tmp_path):
    killed_build(tmp_path, kills=1, seconds=6, seed=0, sources=("vizwiz", "geoqa170k"), options=SINGLE)


@pytest.mark.slow
def test_the_demo(tmp_path):
    code, out, error = run("tests/build_demo.py", f"--out={tmp_path / 'out'}")
    assert code == 0, error
    assert "python -m data_prep build" in out and "Questions after each step" in out
    assert contents(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_build_killed_again_and_again_gives_the_same_bytes(tmp_path, seed):
    killed_build(tmp_path, kills=8, seconds=15, seed=seed)
