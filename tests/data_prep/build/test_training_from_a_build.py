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

# Longer questions than those of digit scenes; open-ended answers would need a judge.
CHANGES = {
    "rollout__prompt_buckets": (1600,),
    "rollout__window_buckets": (16,),
    "rollout__longest_prompt": 1600,
    "rewards__enabled": ("digit", "mcq", "math", "iou"),
    "steps": 1,
}
SFT = CHANGES | {"updates__row_tokens": 2048, "updates__row_targets": 600, "updates__rows": 2, "updates__examples": 8}
GRPO = CHANGES | {"updates__row_buckets": (1664,)}


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


def run_config(task, folder, **changes):
    split = {"sft": "sft", "grpo": "rl"}[task]
    return tiny.config(
        task, folder, model__checkpoint=str(SHIPPED_POLICY), data__train=f"{folder}/shards:{split}", **changes
    )


def test_a_step_of_sft(folder):
    task = SFTTask(run_config("sft", folder, **SFT))
    task.begin()
    report = task.step(1, Clock(), lambda: None)
    assert 0 < report.metrics["loss"] < 20


def test_a_step_of_grpo(folder):
    task = GRPOTask(run_config("grpo", folder, **GRPO))
    task.begin()
    report = task.step(1, Clock(), lambda: None)
    assert report.samples and 0 <= report.metrics["reward"] <= 1
