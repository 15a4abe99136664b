import importlib.util
import os
import uuid

import pytest
from gcs_emulator import Bucket, Emulator
from xla_flags import UNOPTIMISED

# With libtpu installed JAX would look for a TPU; the tests compile for one, and run on the CPU.
if importlib.util.find_spec("libtpu"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


os.environ.setdefault("XLA_FLAGS", UNOPTIMISED)


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
