"""A policy of two narrow layers and a few digit scenes: what the tests of rollout and training run on."""

import dataclasses
import functools
import json
import pathlib
import runpy
from types import SimpleNamespace

import jax
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from data_prep.digit_scenes import builder
from data_prep.digit_scenes.tokenizer import build_tokenizer
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, TextConfig, VisionConfig, hf
from vlaa_jax.processing.conversation import completion_text
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.processing.positions import mrope_positions
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import RecordSource, write_records
from vlaa_jax.processing.steps import join_steps, split_steps
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.processing.vision_plan import WindowGeometry, plan


def _config_file(name: str) -> SimpleNamespace:
    """A config file by its path, as the launcher reads it: the folder is no package."""
    path = pathlib.Path(__file__).parents[1] / "configs" / f"{name}.py"
    return SimpleNamespace(**runpy.run_path(str(path)))


grpo_mixed, sft, prm = _config_file("grpo_mixed"), _config_file("sft"), _config_file("prm")
search = _config_file("search")

# Widths that occur nowhere else, so that a shape tells which tower an array belongs to.
SIZES = ModelConfig(
    text=TextConfig(
        vocabulary=640, width=32, layers=2, query_heads=2, key_value_heads=1, mlp_width=48, mrope_section=(2, 3, 3)
    ),
    vision=VisionConfig(
        depth=2, width=24, heads=2, mlp_width=40, output_width=32, full_attention_layers=(1,), window=56
    ),
    image_token=7,
    video_token=8,
    vision_start_token=5,
    vision_end_token=6,
)


@functools.cache
def model(seed: int = 0) -> Qwen2_5_VL:
    """Random weights."""
    return jax.jit(lambda: Qwen2_5_VL(SIZES, nnx.Rngs(seed)))()


def prompt(
    generator: np.random.Generator, parts: list[int | tuple[int, int, int]], sizes: ModelConfig = SIZES
) -> EncodedPrompt:
    """A prompt of random text (a number of tokens) and random images (a grid of patches), in this order."""
    tokens, grids = [], []
    for part in parts:
        if isinstance(part, int):
            tokens += generator.integers(10, sizes.text.vocabulary, part).tolist()
        else:
            grids.append(part)
            tokens += [sizes.image_token] * (int(np.prod(part)) // sizes.vision.merge**2)
    tokens = np.asarray(tokens, np.int32)
    is_image = tokens == sizes.image_token
    patches = generator.standard_normal((sum(int(np.prod(grid)) for grid in grids), sizes.vision.patch_values))
    vision, slots = plan(patches.astype(np.float32), grids, WindowGeometry(2, sizes.vision.window_units))
    index = np.full(len(tokens), -1, np.int32)
    index[is_image] = slots
    return EncodedPrompt(tokens, mrope_positions(is_image, grids, merge=2), index, vision, ())


def write_policy(directory: pathlib.Path) -> None:
    """A checkpoint folder: digit-scenes tokenizer, random weights."""
    parts = directory.with_name("parts")
    build_tokenizer(parts, records=60)
    (parts / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 56 * 56, "max_pixels": 84 * 84})
    )
    tokenizer = Tokenizer(parts)
    special = lambda name: tokenizer.encode(f"<|{name}|>")[0]  # noqa: E731
    sizes = dataclasses.replace(
        SIZES,
        image_token=special("image_pad"),
        video_token=special("video_pad"),
        vision_start_token=special("vision_start"),
        vision_end_token=special("vision_end"),
    )
    (parts / "config.json").write_text(json.dumps(sizes.to_hf()))
    (parts / "generation_config.json").write_text(json.dumps({"eos_token_id": [special("im_end")]}))
    random = jax.jit(lambda: Qwen2_5_VL(sizes, nnx.Rngs(0)))()
    hf.save(random, directory, dataclasses.replace(hf.new_layout(random, np.float32), source=epath.Path(parts)))


def write_scenes(directory: pathlib.Path) -> None:
    """Splits `sft` (with traces) and `rl`, 26 records of 13 kinds each."""
    splits = {name: dataclasses.replace(builder.SPLITS[name], records=26) for name in ("sft", "rl")}
    builder.build(directory, splits=splits, progress=False)


def write_processes(directory: pathlib.Path, scenes: pathlib.Path) -> None:
    """Splits `train` and `heldout`: prefixes of the traces of ten scenes, and of a wrong way that leaves each."""
    questions = [record for record in RecordSource(f"{scenes}:sft") if record.trace.startswith("Step 1")][:10]
    records = [process for record in questions for process in _processes(record)]
    held_out = {record.id for record in questions[7:]}
    splits = {
        "train": [record for record in records if record.id.rpartition("/")[0] not in held_out],
        "heldout": [record for record in records if record.id.rpartition("/")[0] in held_out],
    }
    write_records(directory, splits, kind=ProcessRecord, name="tiny_processes", version="1.0.0")


def _processes(record: Record) -> list[ProcessRecord]:
    """Right steps are worth 1, those from a wrong one on 0, and its parent three quarters."""
    right = split_steps(completion_text(record.trace, record.answer))
    turn = len(right) // 2
    wrong = [*right[:turn], f"Step {turn + 1}: nothing", *right[turn + 1 :]]
    values = [0.75 if depth == turn - 1 else 1.0 for depth in range(len(right))]
    nodes = [(right[: depth + 1], value) for depth, value in enumerate(values)]
    nodes += [(wrong[: depth + 1], 0.0) for depth in range(turn, len(wrong))]
    return [
        ProcessRecord(f"{record.id}/{i}", record.images, record.question, join_steps(steps), value)
        for i, (steps, value) in enumerate(nodes)
    ]


# Steps of a second: four prompts, two completions each, two updates of two micro-batches.
GRPO = {
    "steps": 6,
    "data.evaluation": "",
    "rollout.prompts": 4,
    "rollout.batch": 4,
    "rollout.group_size": 2,
    "rollout.new_tokens": 6,
    "rollout.prompt_buckets": (400,),
    "rollout.window_buckets": (8,),
    "updates.completions": 4,
    "updates.micro_batch": 1,
    "updates.row_buckets": (448,),
    "model.remat": "none",
    "optimizer.learning_rate": 1e-2,
    "objective.kl_target": 1e-3,
    "rewards.math_workers": 1,
    "checkpoint.every": 2,
}
SFT = {
    "steps": 4,
    "data.evaluation": "",
    "updates.examples": 10,
    "updates.rows": 4,
    "updates.row_tokens": 800,
    "updates.row_windows": 16,
    "updates.row_targets": 400,
    "rollout.prompt_buckets": (400,),
    "rollout.window_buckets": (8,),
    "checkpoint.every": 2,
}
PRM = {
    "steps": 6,
    "updates.questions": 3,
    "updates.rows": 4,
    "updates.row_solutions": 4,
    "updates.longest_row": 384,
    "updates.longest_prompt": 128,
    "updates.longest_solution": 144,
    "updates.most_windows": 8,
    "updates.row_buckets": (384,),
    "updates.window_buckets": (8,),
    "objective.loss": "mse",
    "optimizer.learning_rate": 3e-3,
    "evaluation.every": 2,
    "evaluation.questions": 2,
    "evaluation.truth": "",
    "checkpoint.every": 2,
}


def config(task: str, folder: pathlib.Path, **changes) -> ConfigDict:
    """The tiny run of a task in a folder that holds `policy`, `scenes` and `processes`; dots in names as `__`."""
    base, values, data = {
        "grpo": (grpo_mixed, GRPO, "scenes:rl"),
        "sft": (sft, SFT, "scenes:sft"),
        "prm": (prm, PRM, "processes:train"),
    }[task]
    out = ConfigDict(base.get_config("demo"))
    values = {
        **values,
        "model.checkpoint": str(folder / "policy"),
        "data.train": str(folder / data),
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    with out.unlocked():
        out.update_from_flattened_dict(values)
    return out
