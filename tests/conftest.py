import importlib.util
import os
import tempfile
import uuid

import pytest
from gcs_emulator import Bucket, Emulator
from xla_flags import UNOPTIMISED

# With libtpu installed JAX would look for a TPU; the tests compile for one, and run on the CPU.
if importlib.util.find_spec("libtpu"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


os.environ.setdefault("XLA_FLAGS", UNOPTIMISED)

# Every program is compiled once for all workers and all processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="vlaa_jax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="session")
def emulator():
    """One for all tests: clients read its address once in a process."""
    with Emulator() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(emulator):
    """An empty bucket on a good network."""
    emulator.interfere = lambda method, name: None
    yield Bucket(emulator, f"bucket-{uuid.uuid4().hex[:8]}")
    emulator.interfere = lambda method, name: None
