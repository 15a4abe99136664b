"""The README.md of an exported directory."""

import pathlib

from ml_collections import ConfigDict

from vlaa_jax.processing.encode import Encoder
from vlaa_jax.training.run_folder import RunFolder

_HEAD = """---
base_model: {base}
{tags}
---
# {name}

{task} of `{base}` with vlaa_jax, step {step}. The licence of the base model holds for these weights too.

- config hash `{config_hash}`, conversation `{prompt}`
- image limits {min_pixels} to {max_pixels} pixels, as in training
- {measured}
"""

_POLICY_TAGS = "library_name: transformers\npipeline_tag: image-text-to-text"
_POLICY = """
```python
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
tokenizer, processor = AutoTokenizer.from_pretrained(directory), Qwen2VLImageProcessorPil.from_pretrained(directory)
images = processor(Image.open(picture).convert("RGB"), return_tensors="pt")
user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
chat = [{"role": "system", "content": open(f"{directory}/system_prompt.txt").read().strip()}, user]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
text = text.replace("<|image_pad|>", "<|image_pad|>" * int(images["image_grid_thw"].prod() // 4))
inputs = tokenizer(text, return_tensors="pt") | images
kinds = (inputs["input_ids"] == model.config.image_token_id).int()
out = model.generate(**inputs, mm_token_type_ids=kinds, do_sample=False)
print(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""

_REWARD_MODEL_TAGS = "tags:\n- reward-model"
_REWARD_MODEL = """
A reward model of the kind `{kind}`: {scored}.

The word head is not used; in its place the last layer's state meets one linear layer, `reward_head.safetensors`, and a
sigmoid. The chat is that of a policy, without an instruction after the question; each step is a text of its own that
ends with a line end.

```python
from vlaa_jax.models import reward_model

model, kind = reward_model.load(directory)
```
"""

_SCORED = {
    "process": "the last token of every step of a solution has a score, that of the solution up to there",
    "outcome": "the last token of a solution has its score",
}


def model_card(folder: RunFolder, config: ConfigDict, encoder: Encoder, name: str, step: int) -> str:
    """Where the weights come from and how they are used.

    Args:
      folder: of the run.
      config: of the run.
      encoder: of the model.
      name: of the directory.
      step: of the run.
    """
    header, is_reward_model = folder.header(), config.task == "prm"
    head = _HEAD.format(
        tags=_REWARD_MODEL_TAGS if is_reward_model else _POLICY_TAGS,
        base=pathlib.Path(config.model.checkpoint).name,
        name=name,
        task=config.task.upper(),
        step=step,
        config_hash=header["config_hash"],
        prompt=header["prompt_sha256"][:16],
        measured=_measured(folder, step, is_reward_model),
        min_pixels=encoder.images.min_pixels,
        max_pixels=encoder.images.max_pixels,
    )
    if is_reward_model:
        return head + _REWARD_MODEL.format(kind=config.model.kind, scored=_SCORED[config.model.kind])
    return head + _POLICY


def _measured(folder: RunFolder, step: int, is_reward_model: bool) -> str:
    """The last held-out measurement up to a step."""
    key, words = "evaluation/reward", "held-out reward (greedy)"
    if is_reward_model:
        key, words = "evaluation/mse", "held-out mean squared error of step scores"
    found = [(row["step"], row[key]) for row in folder.metrics() if key in row and row["step"] <= step]
    return f"{words}: " + (f"{found[-1][1]:.3f} at step {found[-1][0]}" if found else "not measured")
