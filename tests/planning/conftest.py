import jax
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module", autouse=True)
def compiled_anew():
    """Programs for chips that are not here cannot be read back from the cache of all tests."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether there is one is asked once
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the tiny policy."""
    directory = tmp_path_factory.mktemp("planned")
    tiny.write_policy(directory / "policy")
    return directory
