import importlib.util
import sys
from types import SimpleNamespace

import pytest
from tiny_checkpoint import write_checkpoint
from tiny_runs import ROOT, write_run, write_shards


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """`checkpoint`, `shards` and `run`; to be read only."""
    root = tmp_path_factory.mktemp("tiny")
    checkpoint = write_checkpoint(root / "start", tied=False, seed=3)
    return SimpleNamespace(
        checkpoint=checkpoint,
        shards=write_shards(root / "shards"),
        run=write_run(root / "run", checkpoint, freeze_vision=True),
    )


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """Runs `main` of a launch file in this process: `launch("ask", "--seed=1")`."""
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vlaa_jax.training.settings.enable_compilation_cache", lambda directory: None)

    def run(name: str, *arguments: str):
        spec = importlib.util.spec_from_file_location(f"launch_{name}", ROOT / "launch" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"launch/{name}.py", *map(str, arguments)])
        return module.main()

    return run
