"""Plans of a tiny run: which programs there are, what is alive, what fits, and what is said when it does not."""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
import pytest
import tiny
from ml_collections import ConfigDict

from data_prep.search import settings as search_settings
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.models.qwen2_5_vl.config import preset
from vlaa_jax.planning import plan as planning
from vlaa_jax.planning.chips import open_topology, read_topology
from vlaa_jax.planning.plan import Row, plan, plan_search
from vlaa_jax.planning.programs import TooLarge
from vlaa_jax.planning.tables import heading, table
from vlaa_jax.training.lifetimes import PROGRAMS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="extra `plan` is not installed")

ROOT = pathlib.Path(__file__).parents[2]
TINY = {name: value for name, value in tiny.GRPO.items() if name != "data.evaluation"}
# Four prompts in rows of one completion each: a micro-batch of two groups fills four chips.
SIZES = {"updates.micro_batch": 2, "updates.row_completions": 1, "rollout.prompt_buckets": (128,)}
UNJUDGED = tuple(name for name in PROGRAMS if not name.startswith("judge_"))
WEIGHTS = sum(leaf.size for leaf in jax.tree.leaves(tiny.model()))


def tiny_config(**changes) -> ConfigDict:
    config = ConfigDict(tiny.grpo_mixed.get_config("demo"))
    with config.unlocked():
        config.update_from_flattened_dict(TINY | SIZES | {name.replace("__", "."): v for name, v in changes.items()})
    return config


@functools.cache
def rows(parts: tuple[str, ...] = ("rollout", "judges", "update"), **changes) -> dict[str, Row]:
    chips = read_topology("v5e:2x2")
    devices = list(open_topology(chips).devices)
    return {row.program: row for row in plan(tiny_config(**changes), tiny.SIZES, chips, devices, parts=parts)}


def test_a_step_has_these_programs_and_all_of_its_arrays():
    found = rows()
    assert tuple(found) == UNJUDGED
    assert [row.runs for row in found.values()] == [1, 2, 1, 1, 1, 2, 2, 2, 2]
    for row in found.values():
        assert row.fits and row.flops >= 0 and row.seconds_summed >= row.seconds_overlapped > 0
        assert row.hbm_bytes == sum(row.parts.values())
    # Float32 weights and two moments of what is trained, split over four chips; vectors are whole.
    update = found["update"].parts
    vision = sum(leaf.size for leaf in jax.tree.leaves(tiny.model().vision))
    assert WEIGHTS <= update["weights"] <= 1.2 * WEIGHTS
    assert 2 * (WEIGHTS - vision) <= update["moments"] <= 1.2 * 2 * (WEIGHTS - vision)
    # 4 prompts on 4 chips, 2 layers of keys and values of one head of 16, 128 tokens, float32; valid, state, position;
    # two completions of 6 tokens.
    assert found["decode"].parts["caches"] == 2 * 2 * 16 * (128 + 2 * 6) * 4 + 128 + 32 * 4 + 4
    assert "gradient" not in found["decode"].parts and "caches" not in update


def test_replicated_weights_decode_without_a_collective():
    found = rows()
    assert found["decode"].collectives == {}
    assert set(found["reshard_layer"].collectives) == {"all-gather"}
    assert not any("loop" in note for note in found["decode"].notes)


def test_moments_and_reference_on_the_host_leave_the_chip():
    here, there = rows(), rows(optimizer__memory="pinned_host", model__reference_memory="pinned_host")
    assert there["update"].parts["moments"] < 0.1 * here["update"].parts["moments"]
    assert "reference" not in there["decode"].parts and "reference" in here["decode"].parts
    assert there["log_probabilities"].parts["reference"] == here["log_probabilities"].parts["reference"]


def test_a_trained_tower_keeps_patches_and_no_features():
    found = rows(model__freeze_vision=False)
    assert "patches" in found["update"].parts and "features" not in found["update"].parts
    assert found["update"].flops > rows()["update"].flops


def test_judges_are_planned_between_completions_and_update(folder):
    """A head on float32 weights that waits on the host, and one of the size of a preset."""
    changes = {"rewards__scorer": f"untrained:{folder / 'policy'}", "rewards__process": "process:demo"}
    found = rows(("judges",), **changes)
    assert list(found) == ["judge_answers", "judge_steps"]
    answers, steps = found["judge_answers"], found["judge_steps"]
    for row in (answers, steps):
        assert row.fits and row.runs == 1 and row.hbm_bytes == sum(row.parts.values())
        assert {"weights", "moments", "completions"} <= row.parts.keys() and "gradient" not in row.parts
        assert 0 < row.share_of_peak < 1
    # The weights are split over four chips, vectors and the head are whole.
    assert WEIGHTS <= answers.parts["answer judge"] <= 1.2 * WEIGHTS
    assert "step judge" not in answers.parts and "answer judge" not in steps.parts
    demo = sum(leaf.size for leaf in jax.tree.leaves(hf.abstract_model(preset("demo"))))
    assert 2 / 4 * demo <= steps.parts["step judge"] <= 1.2 * 2 / 4 * demo  # bfloat16
    # Two of eight questions a chip: prompts of 128 with 8 windows; two solutions of 6 tokens, 32 of room, and 32 steps.
    text = 2 * (6 * 128 + 2 * (32 + 1 + 32)) * 4
    patches = 2 * 8 * (16 * (tiny.SIZES.vision.patch_values * 4 + 1 + 2 * 4) + 4)
    assert answers.parts["judged answers"] == text + patches
    there = rows(("judges",), rewards__scorer_memory="device", **changes)
    assert there["judge_answers"].parts["step judge"] == steps.parts["step judge"]


def test_a_judge_that_is_no_model_on_the_chips_is_named():
    config = tiny_config(rewards__scorer="rubric:internlm", rewards__process="process:demo")
    assert "not planned: config.rewards.scorer=rubric:internlm" in heading(config, tiny.SIZES).splitlines()
    assert "not planned" not in heading(tiny_config(rewards__scorer=""), tiny.SIZES)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("process:none", "judge 'process:none': none is no directory, and model preset 'none' does not exist"),
        ("process:{folder}/policy", "is no reward model"),
        ("likelihood", "name its folder, likelihood:DIR"),
    ],
)
def test_a_judge_that_cannot_be_planned_is_refused(folder, judge, message):
    with pytest.raises(InputError, match=message):
        rows(("judges",), rewards__scorer=judge.format(folder=folder))


def test_a_reward_model_is_planned_with_its_scoring():
    chips = read_topology("v5e:2x2")
    config = ConfigDict(tiny.prm.get_config("demo"))
    with config.unlocked():
        config.update_from_flattened_dict(tiny.PRM)
    found = {row.program: row for row in plan(config, tiny.SIZES, chips, list(open_topology(chips).devices))}
    assert list(found) == ["update", "apply", "score"]
    assert [row.runs for row in found.values()] == [1, 1, 0]
    update, score = found["update"], found["score"]
    assert all(row.fits and row.hbm_bytes == sum(row.parts.values()) for row in found.values())
    # Tokens, lengths and ends of 4 solutions of 144 tokens and 32 steps; values and weights, of one of 4 rows a chip.
    behind = 4 * (144 + 1 + 32) * 4
    assert update.parts["micro-batches"] - score.parts["score"] == 2 * 4 * 32 * 4
    assert behind < score.parts["score"] and "gradient" not in score.parts
    # Weights and two moments of what is trained, with the head; scoring is a forward pass alone.
    assert WEIGHTS <= update.parts["weights"] <= 1.2 * WEIGHTS
    assert score.parts["weights"] == update.parts["weights"] and 0 < score.flops < 0.6 * update.flops
    assert "4 rows of 384 tokens and 8 windows" in heading(config, tiny.SIZES)
    assert "a micro-batch and its update takes" in table(list(found.values()), task="prm").note


def test_a_search_keeps_its_questions_and_no_weights_twice():
    chips = read_topology("v5e:2x2")
    config = ConfigDict(tiny.search.get_config("demo"))
    changes = {"rollout.questions": 6, "rollout.new_tokens": 8, "rollout.process_buckets": (16, 32)}
    changes |= {"search.simulations": 4, "search.leaves": 2, "search.rollouts": 2}
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    generator = search_settings.generator(config, (tiny.SIZES.image_token,), tiny.SIZES, ((64, 128), (8,)))
    planned = plan_search(config, generator, tiny.SIZES, chips, list(open_topology(chips).devices))
    found = {row.program: row for row in planned}
    # 6 questions are raised to 8 on 4 chips; 2 rounds of 16 leaves, 4 on a chip, of which one is run at a time.
    assert {name: row.runs for name, row in found.items()} == {
        "reshard": 1,
        "reshard_layer": 2,
        "vision": 1,
        "keep": 1,
        "prefill": 8,
        "decode": 2,
    }
    assert all(row.fits and row.hbm_bytes == sum(row.parts.values()) for row in found.values())
    assert "weights" in found["reshard"].parts and "weights" not in found["decode"].parts
    # Keys and values of 2 questions, 2 layers, one head of 16, 128 tokens, float32; valid, state, position.
    assert found["decode"].parts["kept questions"] == 2 * (2 * 2 * 16 * 128 * 4 + 128 + 32 * 4 + 4) + 4 * (
        4 + 4 * 32 + 4
    )
    assert found["decode"].collectives == {}
    assert "6 questions of 256 tokens" in heading(config, tiny.SIZES)
    assert "together on the chips takes" in table(list(found.values()), task="search").note


def test_what_does_not_fit_names_its_arrays_and_fields():
    row = dataclasses.replace(
        rows()["decode"], hbm_capacity_bytes=1000, parts={"caches": 700, "sampling weights": 250, "results": 60}
    )
    assert not row.fits
    assert row.advice().startswith("decode does not fit: ")
    assert "largest: caches 0.00, sampling weights 0.00, results 0.00 GiB" in row.advice()
    assert "what helps: config.rollout.batch; config.mesh.tensor" in row.advice()


def test_the_compilers_refusal_is_read():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 31.50G of 15.75G hbm. Exceeded hbm capacity by 15.75G.

  Largest program allocations in hbm:

  1. Size: 16.00G
     Operator: op_name="jit(f)/dot_general"
     Shape: f32[65536,65536]{1,0:T(8,128)}
     Unpadded size: 16.00G
"""
    error = TooLarge("update", {"weights": 5}, message)
    assert error.needed == int(31.5 * 2**30)
    assert error.largest == [(16 * 2**30, "f32[65536,65536]{1,0:T(8,128)}")]


def test_the_search_takes_the_largest_that_fits(monkeypatch):
    """Memory that grows with the batch: 6 prompts' worth on a chip for the rollout, 3 groups' for the update."""

    def measured(config, sizes, topology, devices, *, say=None, parts):
        need = {"rollout": config.rollout.batch / 6, "update": config.updates.micro_batch / 3}[parts[0]]
        yield dataclasses.replace(row, hbm_bytes=int(need * 0.95 * row.hbm_capacity_bytes))

    row = rows()["decode"]
    monkeypatch.setattr(planning, "plan", measured)
    chips = read_topology("v5e:2x2")
    devices = list(open_topology(chips).devices)
    changes = {"rollout__prompts": 32, "rollout__batch": 32, "updates__completions": 16, "updates__row_completions": 1}
    found = planning.search(tiny_config(**changes), tiny.SIZES, chips, devices)
    assert (found.rollout.batch, found.updates.micro_batch) == (4, 2)
    with pytest.raises(InputError, match=r"no config\.updates.micro_batch fits v5e:2x2, 4 chips"):
        planning.search(tiny_config(**changes | {"updates__row_completions": 2}), tiny.SIZES, chips, devices)


def tpu_compile(folder, tmp_path, *flags) -> subprocess.CompletedProcess:
    config = [f"--config.{name}={value}" for name, value in (TINY | SIZES).items()]
    command = [sys.executable, ROOT / "launch" / "tpu_compile.py", f"--config={ROOT}/configs/grpo_mixed.py", *config]
    command += [f"--config.model.checkpoint={folder / 'policy'}", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--topology=v5e:3x3"], 2, "topology v5e:3x3 does not exist: the nearest is v5e:2x4"),
        (["--topology=v5e:2x2", "--config.mesh.tensor=3"], 2, "config.mesh.tensor is 3: expected a divisor of"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=3"], 2, "config.mesh.fsdp is 3: "),
        (["--topology=v5e:2x2", "--config.rollout.batch=3"], 2, "config.rollout.batch is 3: expected prompts that"),
        (["--topology=v5e:2x2", "--json=none/plan.json"], 2, "--json: no folder none"),
        ([], 2, "--topology is missing: expected a slice, e.g. --topology=v5e:4x4"),
        (["--topology=v5e:2x2", "--json=plan.json"], 0, "grpo demo on v5e:2x2, 4 chips of 15.75 GiB"),
    ],
)
def test_the_command(folder, tmp_path, flags, code, message):
    done = tpu_compile(folder, tmp_path, *flags)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    if not code:
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert [row["program"] for row in plan] == list(UNJUDGED)
        assert {"hbm_bytes", "resident_bytes", "hbm_capacity_bytes", "temporary_bytes", "flops"} <= set(plan[0])
        assert {"hbm_traffic_bytes", "collectives", "seconds_overlapped", "seconds_summed"} <= set(plan[0])
        assert {"share_of_peak", "bound_by"} <= set(plan[0])
        assert all(row["fits"] for row in plan)


def test_a_program_that_the_compiler_refuses(folder, tmp_path):
    """Samples of 67 million prompts are more than a chip holds before anything runs."""
    done = tpu_compile(folder, tmp_path, "--topology=v5e:2x2", f"--config.rollout.prompts={2**26}")
    assert done.returncode == 1, done.stderr
    assert re.search(r"^deal does not fit: .*; what helps: config.rollout.prompts", done.stdout, re.MULTILINE)
    assert re.search(r"^deal +\S+ +\S+ +0.00 +0.00 +NO +no room$", done.stdout, re.MULTILINE), "no work is known"
    assert "\nlog_probabilities" not in done.stdout, "what follows it cannot be compiled"
