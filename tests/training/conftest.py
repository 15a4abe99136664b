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
