"""SFT and GRPO train from the shards of a build."""

import builds
import loopback
import pytest
import source_fixtures
import tiny
from test_build import SINGLE

from data_prep.build.build import build
from vlaa_jax.processing.index import build_index
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rewards import check_gold
from vlaa_jax.training import settings
from vlaa_jax.training.grpo_task import GRPOTask
from vlaa_jax.training.loop import train
from vlaa_jax.training.sft_task import SFTTask

SCORER = "data_prep.digit_scenes.facts:FactScorer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny `policy` beside the `shards` of a build."""
    folder = tmp_path_factory.mktemp("training")
    tiny.write_policy(folder / "policy")
    with loopback.Endpoint() as endpoint:
        build(builds.config(source_fixtures.write_all(folder / "sources"), endpoint.base_url), str(folder), options=SINGLE)
    return folder
