"""The figures of the README about pods, by compiling the published sizes: about an hour.

python -m pytest -m slow -s tests/planning/test_figures.py
"""

import functools
import sys

import pytest
import tiny
from ml_collections import ConfigDict

from vlaa_jax.evaluation.tables import text_table
from vlaa_jax.models.qwen2_5_vl.config import preset
from vlaa_jax.planning.chips import open_topology, read_topology
from vlaa_jax.planning.plan import Row, plan
from vlaa_jax.planning.tables import heading, table
from vlaa_jax.rollout.schedule import SEGMENT

pytestmark = pytest.mark.slow

GRPO_PARTS = ("rollout", "update")


@functools.cache
def rows(task: str, size: str, topology: str, parts: tuple[str, ...] = GRPO_PARTS, **changes) -> dict[str, Row]:
    """Programs by name; dots in the names of `changes` as `__`."""
    config = ConfigDict({"grpo": tiny.grpo_mixed, "sft": tiny.sft, "prm": tiny.prm}[task].get_config(size))
    with config.unlocked():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    chips = read_topology(topology)
    devices = list(open_topology(chips).devices)
    say = lambda line: print(f"{task} {size} {topology}: {line}", file=sys.stderr, flush=True)  # noqa: E731
    found = list(plan(config, preset(size), chips, devices, say=say, parts=parts))
    print(f"\n{task} {size} on {chips.describe()}, {changes or 'the recipe'}")
    print(heading(config, preset(size)), text_table(table(found, task=task)), sep="\n")
    return {row.program: row for row in found}


@pytest.mark.parametrize(
    ("size", "topology"),
    [("3b", "v5e:4x4"), ("3b", "v6e:2x4"), ("3b", "v5p:2x2x1"), ("7b", "v5p:2x2x2"), ("7b", "v6e:4x4")],
)
@pytest.mark.parametrize("task", ["grpo", "sft", "prm"])
def test_every_program_of_the_recipe_fits(task, size, topology):
    found = rows(task, size, topology)
    assert set(found) >= {"update", "apply"}
    assert [row.advice() for row in found.values() if not row.fits] == []


@pytest.mark.parametrize("topology", ["v5e:4x4", "v6e:2x4", "v5p:2x2x1"])
def test_the_recipe_fits_with_its_tower_trained(topology):
    found = rows("grpo", "3b", topology, model__freeze_vision=False)
    assert [row.advice() for row in found.values() if not row.fits] == []


def test_all_programs_compile_in_six_minutes():
    """On two cores that do nothing else."""
    assert sum(row.compile_seconds for row in rows("grpo", "3b", "v5e:4x4").values()) < 360


@pytest.mark.parametrize(("topology", "remat"), [("v5e:4x4", "attention"), ("v5p:2x2x1", "products")])
def test_the_update_reaches_half_of_the_peak(topology, remat):
    """With what the chip's memory can keep for the backward pass."""
    update = rows("grpo", "3b", topology, GRPO_PARTS, model__remat=remat)["update"]
    assert update.fits
    print(f"{topology}: {update.share_of_peak:.1%} of peak, {update.seconds_summed:.3f} s when nothing overlaps")
    assert update.share_of_peak >= 0.5


def test_a_row_with_a_shared_prompt_takes_less_than_replicated_rows():
    """P = 1,280, C = 512, G = 8, two groups a chip, the image tower in both forms."""
    sizes = {
        "rollout__prompts": 64,
        "rollout__batch": 64,
        "rollout__group_size": 8,
        "rollout__new_tokens": 512,
        "rollout__prompt_buckets": (1280,),
        "rollout__window_buckets": (64,),
        "updates__completions": 512,
        "updates__micro_batch": 8,
        "model__freeze_vision": False,
        "objective__kl_placement": "none",
    }
    shared = rows("grpo", "3b", "v5p:2x2x1", ("update",), **sizes)["update"]
    replicated = rows("grpo", "3b", "v5p:2x2x1", ("update",), **sizes, updates__row_completions=1)["update"]
    flops, memory = shared.flops / replicated.flops, shared.temporary_bytes / replicated.temporary_bytes
    print(f"shared against replicated: {flops:.3f} of the FLOPs, {memory:.3f} of the temporaries")
    assert flops <= 0.42
    assert memory <= 0.5


def test_a_decode_step_reads_weights_and_cache_once():
    """64 completions a chip, replicated weights."""
    decode = rows("grpo", "3b", "v5e:4x4")["decode"]
    text = preset("3b").text
    chip = read_topology("v5e:4x4").chip
    steps, completions, prompt = SEGMENT, 64, 2048
    weights = decode.parts["sampling weights"] - 2 * 668_684_288  # the vision tower does not run
    token = text.layers * 2 * text.key_value_heads * text.head_width * 2
    suffix = completions * 1024 * token
    cache = completions // 4 * prompt * token + suffix
    moved = decode.hbm_traffic_bytes / steps / (weights + cache)
    floor = decode.seconds_overlapped / steps / ((weights + cache) / chip.hbm_bandwidth)
    own = decode.temporary_bytes / cache
    print(
        f"a step moves {moved:.2f} x weights + cache, takes {floor:.2f} x the floor; temporaries {own:.1%} of the cache"
    )
    assert not decode.collectives
    assert not [note for note in decode.notes if "copy" in note]
    assert moved <= 1.15
    assert floor <= 1.35
    assert own <= 0.05


def test_a_chip_of_256_does_what_a_chip_of_16_does():
    few = rows("grpo", "3b", "v5e:4x4", ("update",))["update"]
    many = rows(
        "grpo",
        "3b",
        "v5e:16x16",
        ("update",),
        rollout__prompts=8192,
        rollout__batch=4096,
        updates__completions=4096,
        updates__micro_batch=256,
    )["update"]
    sent = [sum(kind["bytes"] for kind in row.collectives.values()) for row in (few, many)]
    print(f"FLOPs x {many.flops / few.flops:.3f}, temporaries x {many.temporary_bytes / few.temporary_bytes:.3f}")
    print(f"sent x {sent[1] / sent[0]:.4f}: {few.collectives} and {many.collectives}")
    assert many.flops == pytest.approx(few.flops, rel=0.05)
    assert many.temporary_bytes == pytest.approx(few.temporary_bytes, rel=0.05)
    # Longer rings alone would give (255 / 256) / (15 / 16) = 1.0625; XLA makes all-reduces of some narrow gathers.
    assert sent[1] / sent[0] <= 1.13


def test_between_slices_only_gradients_travel():
    update = rows("grpo", "3b", "2xv5e:4x4", ("update",), mesh__slices=2, updates__micro_batch=32)["update"]
    print(update.collectives)
    between = {kind for kind in update.collectives if "between slices" in kind}
    assert between == {"all-reduce between slices"}
    trainable = 3_085_938_688
    # Every chip reduces its sixteenth of the float32 gradient, whole vectors and a few sums.
    assert update.collectives["all-reduce between slices"]["bytes"] <= 1.1 * 2 * 4 * trainable / 16
