"""The demo's names in a config: resolved in a copy, so that the run folder records what the user typed."""

import pytest
from tiny import grpo_mixed

from data_prep.digit_scenes import demo

pytestmark = pytest.mark.quick


def test_names_are_resolved_in_a_copy(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "shards", lambda split: tmp_path / split)
    config = grpo_mixed.get_config("demo")
    before = config.to_dict()
    resolved = demo.resolve(config)
    assert resolved.data.train == f"{tmp_path / 'rl'}:rl"
    assert resolved.data.evaluation == f"{tmp_path / 'heldout'}:heldout"
    assert resolved.model.checkpoint == str(demo.SHIPPED_POLICY)
    assert config.to_dict() == before
