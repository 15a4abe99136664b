"""Fields of a config that are checked before the weights are read."""

import pytest
import tiny

from vlaa_jax.errors import InputError
from vlaa_jax.training.grpo_task import GRPOTask
from vlaa_jax.training.prm_task import PRMTask
from vlaa_jax.training.sft_task import SFTTask


@pytest.mark.quick
@pytest.mark.parametrize("task, build", [("grpo", GRPOTask), ("sft", SFTTask), ("prm", PRMTask)])
def test_a_remat_policy_that_does_not_exist(task, build, tmp_path):
    config = tiny.config(task, tmp_path, model__remat="all")  # the folder holds no checkpoint: nothing gets that far
    sentence = "config.model.remat is 'all': expected one of layer, attention, products, none"
    with pytest.raises(InputError, match=f"^{sentence}$"):
        build(config)
