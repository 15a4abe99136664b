"""A run's model as a Hugging Face directory: a policy that transformers loads, or a reward model with its head."""

import dataclasses
import json
import pathlib
import secrets
import shutil
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.models import reward_model
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.processing.conversation import OWN_NOTE, OWN_SYSTEM
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.training import settings
from vlaa_jax.training.checkpoint import Checkpoints
from vlaa_jax.training.model_card import model_card
from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.state import combine, partition


def trained_model(folder: RunFolder, config: ConfigDict, step: int | None = None) -> tuple[Qwen2_5_VL, int]:
    """The policy or reward model of a run's checkpoint, float32. Reads only: the run may still be in progress.

    Args:
      folder: of the run.
      config: its config with names resolved to paths.
      step: which checkpoint; None takes the newest.

    Raises:
      InputError: the run has no such checkpoint, or its start checkpoint is another model now.
    """
    if not folder.checkpoints.exists():
        raise InputError(f"{folder.address} holds no checkpoint yet")
    checkpoints = Checkpoints(folder.checkpoints, keep=config.checkpoint.keep)
    found = sorted(int(path.name) for path in folder.checkpoints.iterdir() if path.name.isdigit())
    step = checkpoints.latest if step is None else step
    if step is None:
        raise InputError(f"{folder.address} holds no checkpoint yet")
    if step not in found:
        raise InputError(f"{folder.address} has no checkpoint of step {step}: it holds {', '.join(map(str, found))}")
    model, _ = (settings.load_reward_model if config.task == "prm" else settings.load_policy)(config)
    trainable, frozen = partition(model, freeze_vision=config.model.freeze_vision)
    try:
        trained = checkpoints.restore_weights(trainable, step)
    except (ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{folder.checkpoints / str(step)} does not fit the start checkpoint {config.model.checkpoint} ({reason})"
        ) from None
    checkpoints.close()
    return combine(trained, frozen), step


def export(folder: RunFolder, config: ConfigDict, out: pathlib.Path, step: int | None = None) -> int:
    """Writes the directory; nothing appears under its name before it is whole.

    Args:
      folder: of the run.
      config: its config with names resolved to paths.
      out: must not exist yet.
      step: which checkpoint; None takes the newest.

    Returns:
      The step exported.

    Raises:
      InputError: `out` exists, or as `trained_model`.
    """
    if out.exists():
        raise InputError(f"{out} exists already: nothing was written")
    model, step = trained_model(folder, config, step)
    encoder = settings.load_encoder(config)
    start = settings.start_checkpoint(config)
    layout = dataclasses.replace(hf.read_layout(start), source=epath.Path(start))
    staging = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        note: dict[str, Any] = {
            "prompt_sha256": folder.header()["prompt_sha256"],
            "instructions": dict(encoder.prompt.instructions),
        }
        if isinstance(model, RewardModel):
            reward_model.save(model, config.model.kind, staging, layout)
        else:
            hf.save(model, staging, layout)
            _write_generation_config(staging, encoder, config)
            note["rollout"] = {name: config.rollout[name] for name in ("temperature", "top_k", "top_p", "new_tokens")}
        _write_pixel_limits(staging, encoder.images)
        (staging / OWN_SYSTEM).write_text(encoder.prompt.system + "\n", encoding="utf-8")
        _write_json(staging / OWN_NOTE, note)
        (staging / "README.md").write_text(model_card(folder, config, encoder, out.name, step), encoding="utf-8")
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return step


def _write_pixel_limits(folder: pathlib.Path, images: ImageProcessor) -> None:
    """The training limits, under the names of older and of newer transformers."""
    own, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    known = dict(_PREPROCESSOR)
    if own.exists():
        known |= json.loads(own.read_text())
    processor = json.loads(whole.read_text()) if whole.exists() else {}
    # Where a whole processor was saved, transformers reads this part of it first.
    known |= processor.get("image_processor", {})
    known |= {"min_pixels": images.min_pixels, "max_pixels": images.max_pixels}
    known["size"] = {"shortest_edge": images.min_pixels, "longest_edge": images.max_pixels}
    _write_json(own, known)
    if "image_processor" in processor:
        _write_json(whole, processor | {"image_processor": known})


def _write_generation_config(folder: pathlib.Path, encoder: Encoder, config: ConfigDict) -> None:
    """The distribution that was trained; a base model's repetition penalty would make it another policy."""
    path = folder / "generation_config.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    kept = {name: known[name] for name in ("bos_token_id", "pad_token_id") if name in known}
    rollout = {
        "eos_token_id": list(encoder.tokenizer.end_tokens),
        "do_sample": True,
        "temperature": config.rollout.temperature,
        "top_k": config.rollout.top_k,
        "top_p": config.rollout.top_p,
        "max_new_tokens": config.rollout.new_tokens,
    }
    _write_json(path, kept | rollout)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
