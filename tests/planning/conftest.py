import pytest
import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the tiny policy."""
    directory = tmp_path_factory.mktemp("planned")
    tiny.write_policy(directory / "policy")
    return directory
