"""SFT and GRPO train from the shards of a build."""

import builds
import loopback
import pytest
import source_fixtures
import tiny

from data_prep.build.build import build
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
    """A tiny `policy` beside the `shards` of a build."""
    folder = tmp_path_factory.mktemp("training")
    tiny.write_policy(folder / "policy")
    folders = source_fixtures.write_all(folder / "sources")
    with loopback.Endpoint() as endpoint:
        build(builds.config(folders, endpoint.base_url), str(folder), options=builds.SINGLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAA_JAX_CACHE", str(folder / "programs"))
        yield folder


def config(task, folder, **changes):
    split = {"sft": "sft", "grpo": "rl"}[task]
    return tiny.config(task, folder, data__train=f"{folder}/shards:{split}", **changes)


def test_a_step_of_sft(folder):
    task = SFTTask(config("sft", folder, **SFT))
    task.begin()
    report = task.step(1, Clock(), lambda: None)
    assert 0 < report.metrics["loss"] < 20


def test_a_step_of_grpo(folder):
    task = GRPOTask(config("grpo", folder, **GRPO))
    task.begin()
    report = task.step(1, Clock(), lambda: None)
    assert report.samples and 0 <= report.metrics["reward"] <= 1
