"""The build's recipe as the paper has it."""

import runpy

import builds
import pytest

from data_prep.build.steps import ASKING, read_prompt

pytestmark = pytest.mark.quick


@pytest.fixture
def config():
    return runpy.run_path(str(builds.CONFIG))["get_config"]()


def test_the_models_of_the_steps(config):
    models = {step.name: config[step.name].model for step in ASKING}
    assert models == {
        "caption": "gpt-4o-2024-11-20",
        "distil": "deepseek-reasoner",
        "rewrite": "gpt-3.5-turbo",
        "verify": "gpt-3.5-turbo",
    }
    assert all(read_prompt(step, config[step.name].prompt) for step in ASKING)


def test_the_rules(config):
    assert (config.rewrite.drift, config.curation.aha, config.curation.disjoint_by) == (15, "whole", "id")
    assert (config.budget, config.shards.max_image_bytes, config.seed) == (0, 0, 0)


def test_the_quotas_of_table_1(config):
    quotas = config.curation.quotas
    assert sum(quotas[name].sft for name in quotas) == 126_413
    assert sum(quotas[name].rl for name in quotas) == 25_195
    assert quotas.geoqa170k.to_dict() == {"sft": 0, "rl": 6_499}
    assert quotas.vg.to_dict() == {"sft": 38_242, "rl": 2_000}


def test_the_limits_of_table_1(config):
    limits = {name: section.limit for name, section in config.sources.items()}
    # The table's total counts 3,000 of COCO and of VisualGenome each, of which more samples are kept.
    assert sum(limits.values()) == 203_182 - 6_000
    assert {name for name, limit in limits.items() if not limit} == {"geoqa170k", "coco", "vg"}
