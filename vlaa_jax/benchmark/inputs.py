"""What both sides read: a Hugging Face directory with random weights, records, and the preset."""

import dataclasses
import io
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from vlaa_jax.benchmark.presets import Lengths, Preset
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, hf
from vlaa_jax.objectives.shared_prompt import longest_row
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource, write_records
from vlaa_jax.training import settings

POLICY, RECORDS, RUN = "policy", "records", "run.json"
COMPLETIONS = "completions.npy"  # `[G, C]` ordinary tokens that both sides score and learn from
DRAWN = {False: "drawn-in-segments.npy", True: "drawn-in-one-loop.npy"}  # `[B * G, C]` of uneven lengths, 0 after ends
_SYSTEM = "Look."
_QUESTION = "Answer with a single integer."  # the instruction of its verifier, which is then not added
_RECORDS = 64
# How far a feature that is constant over all tokens keeps the special tokens from being drawn.
_APART = 5.0


def write_inputs(folder: pathlib.Path, preset: Preset, recipe: ConfigDict, tokenizer: pathlib.Path) -> None:
    """Writes all inputs into an empty folder.

    Args:
      folder: of this measurement.
      preset: the workload.
      recipe: GRPO's config, of which the preset sets the sizes.
      tokenizer: Hugging Face directory whose tokenizer, template and image rule are taken.

    Raises:
      InputError: the prompt has no room for the chat template, or the picture is not of whole windows' tokens.
    """
    parts = folder / "parts"
    parts.mkdir()
    for file in tokenizer.iterdir():
        if file.is_file() and file.name not in ("config.json", "model.safetensors", "vlaa_jax.json"):
            shutil.copy(file, parts)
    # The picture keeps its size.
    processor = json.loads((parts / "preprocessor_config.json").read_text())
    pixels = {"shortest_edge": preset.image**2, "longest_edge": preset.image**2}
    processor |= {"min_pixels": preset.image**2, "max_pixels": preset.image**2, "size": pixels}
    (parts / "preprocessor_config.json").write_text(json.dumps(processor))
    sizes = _with_token_ids(preset.model, parts)
    _write_policy(folder / POLICY, sizes, preset, parts)

    completions = np.random.default_rng(1).integers(0, sizes.text.vocabulary, (preset.group, preset.update_tokens))
    completions[np.isin(completions, list(_special_tokens(parts).values()))] = 0
    np.save(folder / COMPLETIONS, completions.astype(np.int32))
    (folder / "system.txt").write_text(_SYSTEM)
    config = _run_config(folder, preset, recipe)
    (folder / RUN).write_text(
        json.dumps({"preset": dataclasses.asdict(preset) | {"model": None}, "config": config.to_dict()})
    )
    write_records(folder / RECORDS, {"train": _records(preset, config)}, name="benchmark", version="1.0.0")


def read_inputs(folder: pathlib.Path) -> tuple[Preset, ConfigDict, list[Record]]:
    """The preset with the policy's token ids, the run's config and the records."""
    stored = json.loads((folder / RUN).read_text())
    sizes = hf.read_config(folder / POLICY)
    preset = Preset(**(stored["preset"] | {"model": sizes, "lengths": Lengths(**stored["preset"]["lengths"])}))
    return preset, ConfigDict(stored["config"]), list(RecordSource(f"{folder / RECORDS}:train"))


def _run_config(folder: pathlib.Path, preset: Preset, recipe: ConfigDict) -> ConfigDict:
    """GRPO as TRL's defaults have it: DAPO's loss without a KL penalty, one update a step, clipping at 1."""
    config = recipe.copy_and_resolve_references()
    completions = preset.step_prompts * preset.group
    values = {
        "steps": 1000,
        "model.checkpoint": str(folder / POLICY),
        "model.dtype": preset.dtype,
        "model.freeze_vision": preset.freeze_vision,
        "model.remat": "layer",
        "data.train": f"{folder / RECORDS}:train",
        "data.evaluation": "",
        "prompt.system": str(folder / "system.txt"),
        "rollout.prompts": preset.step_prompts,
        "rollout.batch": preset.step_prompts,
        "rollout.group_size": preset.group,
        "rollout.temperature": 1.0,
        "rollout.new_tokens": preset.new_tokens,
        "rollout.prompt_buckets": (preset.prompt,),
        "rollout.window_buckets": (preset.windows,),
        "updates.completions": completions,
        "updates.micro_batch": 1,
        "updates.row_buckets": (longest_row(preset.prompt, preset.group, preset.new_tokens),),
        "objective.aggregation": "token_mean",
        "objective.kl_placement": "none",
        "objective.advantage_epsilon": 1e-4,
        "objective.chunk": preset.chunk,
        "optimizer.learning_rate": 1e-6,
        "optimizer.floor": 0.0,
        "optimizer.clip_norm": 1.0,
    }
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return config


def _with_token_ids(sizes: ModelConfig, tokenizer: pathlib.Path) -> ModelConfig:
    ids = _special_tokens(tokenizer)
    return dataclasses.replace(
        sizes,
        image_token=ids["<|image_pad|>"],
        video_token=ids["<|video_pad|>"],
        vision_start_token=ids["<|vision_start|>"],
        vision_end_token=ids["<|vision_end|>"],
    )


def _special_tokens(tokenizer: pathlib.Path) -> dict[str, int]:
    added = json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def _write_policy(directory: pathlib.Path, sizes: ModelConfig, preset: Preset, parts: pathlib.Path) -> None:
    """Random weights of which special tokens are never drawn.

    So every completion has all its tokens on both sides, without a filter of logits on either, and no drawn placeholder
    claims an image. The first feature is the same for all tokens and kept from the layers; those rows have it negative.
    """
    special = jnp.asarray(list(_special_tokens(parts).values()))

    @jax.jit
    def create() -> Qwen2_5_VL:
        model = Qwen2_5_VL(sizes, nnx.Rngs(0))
        text = model.language
        first = jnp.full((sizes.text.vocabulary,), _APART).at[special].set(-_APART)
        text.embedding[...] = text.embedding[...].at[:, 0].set(first)
        for written in (text.layers.output, text.layers.down):
            written[...] = written[...].at[..., 0].set(0.0)
        return model

    model = create()
    (parts / "config.json").write_text(json.dumps(sizes.to_hf(preset.dtype)))
    layout = hf.new_layout(model, jnp.dtype(preset.dtype))
    hf.save(model, directory, dataclasses.replace(layout, source=epath.Path(parts)))


def _records(preset: Preset, config: ConfigDict) -> list[Record]:
    """Questions about noise, all of the preset's length in tokens: a digit is one token."""
    random = np.random.default_rng(0)
    encoder = settings.load_encoder(config)

    def record(number: int, digits: int) -> Record:
        pixels = random.integers(0, 256, (preset.image, preset.image, 3), np.uint8)
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, "PNG", compress_level=1)
        text = "".join(map(str, random.integers(0, 10, digits)))
        return Record(f"r{number}", (picture.getvalue(),), f"{_QUESTION} {text}", "7", "digit")

    shortest, _ = encoder.sizes(record(0, 1))
    digits = preset.prompt - shortest + 1
    if digits < 1:
        raise InputError(f"a prompt of {preset.prompt} tokens has no room for the chat template: {shortest} are needed")
    records = [record(number, digits) for number in range(_RECORDS)]
    length, windows = encoder.sizes(records[0])
    if (length, windows) != (preset.prompt, preset.windows):
        raise InputError(
            f"a prompt has {length} tokens and {windows} windows, expected {preset.prompt} and {preset.windows}"
        )
    return records
