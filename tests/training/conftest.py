import jax
import pytest
import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the tiny policy and its scenes; indices are cached there too."""
    directory = tmp_path_factory.mktemp("tiny")
    tiny.write_policy(directory / "policy")
    tiny.write_scenes(directory / "scenes")
    tiny.write_processes(directory / "processes", directory / "scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAA_JAX_CACHE", str(directory / "cache"))
        yield directory


@pytest.fixture
def programs(folder):
    """Compiled quickly, and once for all runs here, those of other processes too."""
    values = {
        "jax_compilation_cache_dir": str(folder / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield folder / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
