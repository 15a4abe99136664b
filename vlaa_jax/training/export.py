"""A run's policy as a Hugging Face directory that transformers loads."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf
from vlaa_jax.training import settings
from vlaa_jax.training.checkpoint import Checkpoints
from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.state import combine, partition

_CARD = """---
base_model: {base}
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}

{task} of `{base}` with vlaa_jax, step {step}. The licence of the base model holds for these weights too.

- config hash `{config_hash}`, conversation `{prompt}`
- image limits {min_pixels} to {max_pixels} pixels, as in training
- last held-out reward: {reward}

```python
{code}
```
"""

_CODE = """import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
tokenizer, processor = AutoTokenizer.from_pretrained(directory), Qwen2VLImageProcessorPil.from_pretrained(directory)
images = processor(Image.open(picture).convert("RGB"), return_tensors="pt")
user = [{"type": "image"}, {"type": "text", "text": question}]
chat = [{"role": "system", "content": open(f"{directory}/system_prompt.txt").read().strip()}, {"role": "user", "content": user}]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
text = text.replace("<|image_pad|>", "<|image_pad|>" * int(images["image_grid_thw"].prod() // 4))
inputs = tokenizer(text, return_tensors="pt") | images
kinds = (inputs["input_ids"] == model.config.image_token_id).int()
out = model.generate(**inputs, mm_token_type_ids=kinds, do_sample=False, max_new_tokens=256)
print(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def trained_policy(folder: RunFolder, config: ConfigDict, step: int | None = None) -> tuple[Qwen2_5_VL, int]:
    """The policy of a run's checkpoint, float32.

    Args:
      folder: of the run.
      config: its config with names resolved to paths.
      step: which checkpoint; None takes the newest.

    Raises:
      InputError: the run has no such checkpoint.
    """
    if not folder.checkpoints.exists():
        raise InputError(f"{folder.directory} holds no checkpoint yet")
    checkpoints = Checkpoints(folder.checkpoints, keep=config.checkpoint.keep)
    step = checkpoints.latest if step is None else step
    if step is None:
        raise InputError(f"{folder.directory} holds no checkpoint yet")
    model, _ = settings.load_policy(config)
    trainable, frozen = partition(model, freeze_vision=config.model.freeze_vision)
    return combine(checkpoints.restore_weights(trainable, step), frozen), step


def export(folder: RunFolder, config: ConfigDict, out: pathlib.Path, step: int | None = None) -> int:
    """Writes the directory; nothing appears under its name before it is whole.

    Args:
      folder: of the run.
      config: its config with names resolved to paths.
      out: must not exist yet.
      step: which checkpoint; None takes the newest.

    Returns:
      The step exported.
    """
    if out.exists():
        raise InputError(f"{out} exists already: nothing was written")
    model, step = trained_policy(folder, config, step)
    encoder = settings.load_encoder(config)
    layout = hf.read_layout(config.model.checkpoint)
    staging = out.with_name(f"{out.name}.partial")
    hf.save(model, staging, dataclasses.replace(layout, source=epath.Path(config.model.checkpoint)))
    preprocessor = staging / "preprocessor_config.json"
    known = json.loads(preprocessor.read_text()) if preprocessor.exists() else dict(_PREPROCESSOR)
    limits = {"min_pixels": encoder.images.min_pixels, "max_pixels": encoder.images.max_pixels}
    known |= limits | {"size": {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}}
    preprocessor.write_text(json.dumps(known, indent=2) + "\n")
    (staging / "system_prompt.txt").write_text(encoder.prompt.system + "\n")
    header = folder.header()
    rewards = [row["evaluation/reward"] for row in folder.metrics() if "evaluation/reward" in row]
    (staging / "README.md").write_text(
        _CARD.format(
            base=pathlib.Path(config.model.checkpoint).name,
            name=out.name,
            task=config.task.upper(),
            step=step,
            config_hash=header["config_hash"],
            prompt=header["prompt_sha256"][:16],
            reward=f"{rewards[-1]:.3f}" if rewards else "not measured",
            code=_CODE,
            **limits,
        )
    )
    staging.rename(out)
    return step


_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
