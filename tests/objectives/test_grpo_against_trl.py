"""Loss, gradient, metrics, advantages and importance weights against TRL 1.16's own `GRPOTrainer`.

The trainer is made without `__init__` and given the attributes that the functions under test read; its forward pass
returns log-probabilities that the test chose. No model and no tokenizer takes part.
"""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.objectives.accumulation import summarise
from vlaa_jax.objectives.advantages import advantages as group_advantages
from vlaa_jax.objectives.grpo import (
    GRPOObjective,
    grpo_loss,
    loss_denominator,
    truncated_importance_weights,
    truncation_mask,
)

B, G, C = 3, 4, 7
MAX_COMPLETION = 9
PAD, END = 0, 1


@pytest.fixture(scope="module")
def trainer_class():
    import torch
    import trl  # imported here, not above: it takes seconds, which runs that deselect this file should not pay
    from trl.trainer.grpo_trainer import GRPOTrainer

    assert trl.__version__ == "1.16.0", "the formulas compared here changed between TRL releases"
    torch.set_num_threads(1)
    return GRPOTrainer


def stub_accelerator():
    return types.SimpleNamespace(
        num_processes=1,
        process_index=0,
        sync_gradients=True,
        device="cpu",
        gather=lambda tensor: tensor,
        gather_for_metrics=lambda tensor: tensor,
        reduce=lambda tensor, reduction: tensor,
    )


def make_trainer(trainer_class, forward, micro_batches=1, **attributes):
    trainer = object.__new__(trainer_class)
    trainer.args = types.SimpleNamespace(
        delta=None,
        use_bias_correction_kl=attributes.pop("use_bias_correction_kl", False),
        steps_per_generation=micro_batches,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=B * G,
        gradient_checkpointing_kwargs=None,
    )
    defaults = {
        "model": types.SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "accelerator": stub_accelerator(),
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "max_completion_length": MAX_COMPLETION,
        "current_gradient_accumulation_steps": micro_batches,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "_metrics": {"train": collections.defaultdict(list), "eval": collections.defaultdict(list)},
        "_get_per_token_logps_and_entropies": forward,
    }
    for name, value in (defaults | attributes).items():
        setattr(trainer, name, value)
    return trainer


def random_rollout(seed):
    """`[B * G, C]` of policy, old, reference and sampler; rewards `[B, G]`; lengths and truncated `[B * G]`."""
    random = np.random.default_rng(seed)
    log_probabilities, old, reference, sampler = -1.5 + 0.3 * random.normal(size=(4, B * G, C)).astype(np.float32)
    rewards = random.choice([0.0, 0.25, 0.7, 1.0], size=(B, G)).astype(np.float32)
    rewards[0] = 0.7  # a group that agrees
    lengths = random.integers(1, C + 1, size=B * G)
    return log_probabilities, old, reference, sampler, rewards, lengths, random.random(B * G) < 0.25


def trl_loss(trainer_class, batch, micro_batches=1, **attributes):
    """TRL's loss and gradient, added up over micro-batches as accumulation does, and the last one's metrics."""
    import torch

    log_probabilities, old, reference, advantages, mask, weights = batch
    leaf = torch.tensor(log_probabilities, requires_grad=True)
    total = 0.0
    for rows in np.array_split(np.arange(len(mask)), micro_batches):

        def forward(*_, rows=rows, **__):
            return leaf[rows], torch.zeros(len(rows), C), None

        trainer = make_trainer(trainer_class, forward, micro_batches, **attributes)
        ids = torch.zeros((len(rows), 2), dtype=torch.long)
        inputs = {
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": torch.zeros((len(rows), C), dtype=torch.long),
            "completion_mask": torch.tensor(mask[rows].astype(np.int64)),
            "advantages": torch.tensor(advantages[rows]),
            "num_items_in_batch": torch.tensor(mask.sum()),
            "old_per_token_logps": torch.tensor(old[rows]),
            "ref_per_token_logps": torch.tensor(reference[rows]),
        }
        if weights is not None:
            inputs["importance_sampling_ratio"] = torch.tensor(weights[rows])
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        total += loss.item()
    return total, leaf.grad.numpy(), {name: values[0] for name, values in trainer._metrics["train"].items()}


def our_loss(batch, objective, kl_coefficient=0.0):
    log_probabilities, old, reference, advantages, mask, weights = (
        None if array is None else jnp.asarray(array) for array in batch
    )

    def loss(log_probabilities):
        loss_sum, metrics = grpo_loss(
            log_probabilities,
            old,
            reference,
            advantages,
            mask,
            objective=objective,
            kl_coefficient=kl_coefficient,
            importance_weights=weights,
        )
        return loss_sum / loss_denominator(mask, objective), metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(log_probabilities)
    return float(value), np.asarray(gradient), summarise(metrics)


# (TRL attributes, our fields)
CASES = {
    "grpo": ({"loss_type": "grpo"}, {}),
    "grpo, wider above": ({"loss_type": "grpo", "epsilon_high": 0.28}, {"clip_high": 0.28}),
    "dapo": ({"loss_type": "dapo"}, {"aggregation": "token_mean"}),
    "bnpo": ({"loss_type": "bnpo"}, {"aggregation": "token_mean"}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"aggregation": "constant_length", "constant_length": MAX_COMPLETION}),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.3},
        {"policy_loss": "cispo", "ratio_cap": 1.3, "aggregation": "token_mean"},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.06},
        {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.06},
    ),
    "sequence ratio, dapo": (
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
        {"ratio": "sequence", "aggregation": "token_mean"},
    ),
}
MODIFIERS = {
    "plain": ({}, {"kl_placement": "none"}),
    "kl": ({"beta": 0.3}, {}),
    "kl times ratio": ({"beta": 0.3, "use_bias_correction_kl": True}, {"kl_ratio_weighted": True}),
    "kl, importance weights": ({"beta": 0.3, "use_vllm": True}, {}),
}


def batch_of(seed, weighted, truncated_out=True):
    log_probabilities, old, reference, sampler, rewards, lengths, truncated = random_rollout(seed)
    mask = np.arange(C) < lengths[:, None]
    weights = truncated_importance_weights(old, sampler, mask, cap=1.2) if weighted else None
    if truncated_out:
        mask = np.asarray(truncation_mask(jnp.asarray(mask), jnp.asarray(truncated)))
    advantages = np.asarray(group_advantages(jnp.asarray(rewards))).reshape(-1)
    return log_probabilities, old, reference, advantages, mask, None if weights is None else np.asarray(weights)


@pytest.mark.parametrize("modifier", MODIFIERS)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(trainer_class, case, modifier):
    attributes, fields = CASES[case][0] | MODIFIERS[modifier][0], CASES[case][1] | MODIFIERS[modifier][1]
    for seed in range(5):
        batch = batch_of(seed, weighted="importance weights" in modifier)
        expected, expected_gradient, _ = trl_loss(trainer_class, batch, **attributes)
        value, gradient, _ = our_loss(batch, GRPOObjective(**fields), attributes.get("beta", 0.0))
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max())


@pytest.mark.parametrize("case", [case for case in CASES if case != "bnpo"])  # bnpo depends on the split by definition
def test_accumulated_over_micro_batches(trainer_class, case):
    attributes, fields = CASES[case][0] | {"beta": 0.3}, CASES[case][1]
    batch = batch_of(11, weighted=False)
    expected, expected_gradient, _ = trl_loss(trainer_class, batch, micro_batches=3, **attributes)
    value, gradient, _ = our_loss(batch, GRPOObjective(**fields), 0.3)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max())


@pytest.mark.parametrize("case", ["grpo", "gspo"])
def test_metrics(trainer_class, case):
    batch = batch_of(3, weighted=False, truncated_out=False)  # TRL's rows at sequence level include masked ones
    _, _, expected = trl_loss(trainer_class, batch, beta=0.3, **CASES[case][0])
    _, _, metrics = our_loss(batch, GRPOObjective(**CASES[case][1]), 0.3)
    assert expected["clip_ratio/low_mean"] > 0 and expected["clip_ratio/high_mean"] > 0
    assert metrics["clip_low"] == pytest.approx(expected["clip_ratio/low_mean"], rel=1e-5)
    assert metrics["clip_high"] == pytest.approx(expected["clip_ratio/high_mean"], rel=1e-5)
    assert metrics["kl"] == pytest.approx(expected["kl"], rel=1e-5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_scoring(trainer_class, scale, level):
    """Advantages, truncation mask, token count and importance weights of `_generate_and_score_completions`."""
    import torch

    _, old, _, sampler, rewards, lengths, truncated = random_rollout(5)
    assert truncated.any() and not truncated.all()
    completions = [[7] * int(n) for n in lengths]
    for completion, cut in zip(completions, truncated, strict=True):
        completion[-1] = 7 if cut else END
    width = int(lengths.max())

    def forward(*_, **__):
        return torch.tensor(old[:, :width]), None, None

    log_probabilities = [row[:n].tolist() for row, n in zip(sampler, lengths, strict=True)]
    trainer = make_trainer(
        trainer_class,
        forward,
        scale_rewards=scale,
        use_vllm=True,
        vllm_importance_sampling_mode=f"{level}_truncate",
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_clip_max=1.2,
        mask_truncated_completions=True,
        multi_objective_aggregation="sum_then_normalize",
        num_generations=G,
        num_iterations=1,
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        eos_token_ids=[END],
        _tokenizer=types.SimpleNamespace(pad_token_id=PAD),
        reward_funcs=[None],
        reward_func_names=["reward"],
        reward_weights=torch.ones(1),
        _logs=collections.defaultdict(list) | {"rewards": collections.defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
        processing_class=types.SimpleNamespace(batch_decode=lambda ids, **_: ["" for _ in ids]),
        _generate=lambda prompts: (
            [[5]] * len(prompts),
            completions,
            None,
            [""] * len(prompts),
            log_probabilities,
            {},
            None,
            None,
        ),
        _calculate_rewards=lambda *_: torch.tensor(rewards.reshape(-1, 1)),
    )
    expected = trainer._generate_and_score_completions([{"prompt": "question"}] * (B * G))

    mask = jnp.arange(width) < lengths[:, None]
    counted = truncation_mask(mask, jnp.asarray(truncated))
    ours = group_advantages(jnp.asarray(rewards), scale=scale, epsilon=1e-4).reshape(-1)
    np.testing.assert_allclose(ours, expected["advantages"].numpy(), atol=1e-6)
    np.testing.assert_array_equal(counted, expected["completion_mask"].numpy())
    assert float(loss_denominator(counted, GRPOObjective(aggregation="token_mean"))) == expected["num_items_in_batch"]
    weights = truncated_importance_weights(old[:, :width], sampler[:, :width], counted, cap=1.2, level=level)
    expected_weights = expected["importance_sampling_ratio"].numpy()
    assert (expected_weights == np.float32(1.2)).any() and (expected_weights < 1).any()
    np.testing.assert_allclose(weights, expected_weights.squeeze(), rtol=1e-5)
