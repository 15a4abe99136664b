"""SFT and GRPO train the demo's policy from the shards of a build."""

import loopback
import pytest
import source_fixtures
import tiny
from outcomes import SINGLE, config

from data_prep.build.build import build
from data_prep.digit_scenes.demo import SHIPPED_POLICY
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.grpo_task import GRPOTask
from vlaa_jax.training.sft_task import SFTTask

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a build."""
    folder = tmp_path_factory.mktemp("training")
    folders = source_fixtures.write_all(folder / "sources")
    with loopback.Endpoint() as endpoint:
        build(config(folders, endpoint.base_url), str(folder), options=SINGLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAA_JAX_CACHE", str(folder / "programs"))
        yield folder


def run_config(task, folder, split):
    changes = {"model__checkpoint": str(SHIPPED_POLICY), "data__train": f"{folder}/shards:{split}", "steps": 1}
    # Open-ended answers would need a judge.
    return tiny.config(task, folder, **changes, rewards__enabled=("digit", "mcq", "math", "iou"))


def test_a_step_of_sft(folder):
    task = SFTTask(run_config("sft", folder, "sft"))
    task.begin()
    report = task.step(1, Clock(), lambda: None)
    assert 0 < report.metrics["loss"] < 20


def test_a_step_of_grpo(folder):
    task = GRPOTask(run_config("grpo", folder, "rl"))
    task.begin()
    report = task.step(1, Clock(), lambda: None)
    assert report.samples and 0 <= report.metrics["reward"] <= 1
