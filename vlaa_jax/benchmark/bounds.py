"""What the machine allows: FLOPs and bytes of the work, and the seconds that they need at measured rates.

FLOPs are those that the model asks for (`planning.model_flops`), not those that a program happens to compute.
"""

import dataclasses

from vlaa_jax.benchmark.presets import Preset
from vlaa_jax.planning.model_flops import causal_pairs, head_flops, text_flops, vision_flops

BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Measured on this machine: FLOP/s of a large product of matrices, and bytes a second."""

    matrix_rate: float
    bandwidth: float

    def seconds(self, flops: float, size: float) -> float:
        """The least time for so many FLOPs and bytes, which a machine does at once."""
        return max(flops / self.matrix_rate, size / self.bandwidth)


def update_flops(preset: Preset, *, shared: bool) -> float:
    """Forward and backward pass of one prompt's group.

    Args:
      preset: sizes.
      shared: the prompt and its picture once, or once for every completion.
    """
    text, prompt, new, group = preset.model.text, preset.prompt, preset.update_tokens, preset.group
    image = vision_flops(preset.model.vision, preset.windows) * (1 if preset.freeze_vision else 3)
    completions = group * causal_pairs(new) + group * new * prompt
    if shared:
        layers = text_flops(text, prompt + group * new, causal_pairs(prompt) + completions)
        # A frozen tower's features come from the rollout.
        image = 0 if preset.freeze_vision else image
    else:
        layers = text_flops(text, group * (prompt + new), group * causal_pairs(prompt) + completions)
        image *= group
    return 3 * (layers + head_flops(text, group * new)) + image


def decode_flops(preset: Preset, prompts: int) -> float:
    """One step of the decode loop, in the middle of the completions."""
    text, rows = preset.model.text, prompts * preset.group
    seen = preset.prompt + (preset.new_tokens + 1) / 2
    return text_flops(text, rows, rows * seen) + head_flops(text, rows)


def decode_bytes(preset: Preset, prompts: int) -> float:
    """Read by one step of the decode loop: weights of layers and head once, prompts' caches once, those of completions.

    Those are half full in the middle.
    """
    text, rows = preset.model.text, prompts * preset.group
    weights = text_flops(text, 1, 0) / 2 + text.vocabulary * text.width
    token = 2 * text.layers * text.key_value_heads * text.head_width
    cached = prompts * preset.prompt + rows * preset.new_tokens / 2
    return BYTES[preset.dtype] * (weights + token * cached)
