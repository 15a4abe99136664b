"""What is measured: sizes of the policy, of its prompts and of the work, by name."""

import dataclasses
from typing import Literal

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig, preset

PARTS = ("sampling", "lengths", "update", "step")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Completions of geometric lengths.

    Attributes:
      prompts: B.
      mean: of the lengths in tokens, before they are cut.
      cap: C.
    """

    prompts: int
    mean: int
    cap: int


@dataclasses.dataclass(frozen=True)
class Preset:
    """A workload.

    Attributes:
      model: sizes of the policy; its weights are random. Token ids are those of its tokenizer once it is written.
      device: where both sides run; `any` takes what is there.
      dtype: of the computation. Ours keeps float32 master weights; those of transformers are in this dtype.
      image: side in pixels of a prompt's picture.
      text: other tokens of a prompt.
      group: G.
      new_tokens: C of sampling and of the step; every completion has all of them.
      update_tokens: C of the update.
      sampling_prompts: B of the sampling part, one measurement each.
      step_prompts: B of the whole step.
      lengths: of the part on uneven completions.
      freeze_vision: whether the update leaves the tower out.
      remat: whether transformers computes layers again in the backward pass of the update; ours does by default, since
        on a CPU it costs no time: less memory has to be faulted in.
      chunk: tokens whose logits exist at once in our update.
      matrix: side of the square matrices whose product gives the matrix rate.
      buffer: bytes that are read to measure the memory bandwidth.
      tolerance: largest difference between log-probabilities of the two sides, in nats.
      parts: measured by default.
    """

    model: ModelConfig
    device: Literal["cpu", "gpu", "any"]
    dtype: Literal["float32", "bfloat16"]
    image: int
    text: int
    group: int
    new_tokens: int
    update_tokens: int
    sampling_prompts: tuple[int, ...]
    step_prompts: int
    lengths: Lengths
    freeze_vision: bool
    remat: bool
    chunk: int
    matrix: int
    buffer: int
    tolerance: float
    parts: tuple[str, ...] = PARTS

    @property
    def image_tokens(self) -> int:
        vision = self.model.vision
        return (self.image // (vision.patch * vision.merge)) ** 2

    @property
    def windows(self) -> int:
        """W of a prompt."""
        across = -(-self.image // self.model.vision.window)
        return across * across

    @property
    def prompt(self) -> int:
        """P."""
        return self.image_tokens + self.text


def _narrow(vocabulary: int) -> ModelConfig:
    text = TextConfig(vocabulary, 64, 2, 4, 2, 96, (2, 3, 3))
    return ModelConfig(text, VisionConfig(2, 32, 2, 48, 64, (1,)))


_TINY = Preset(
    model=_narrow(640),
    device="any",
    dtype="float32",
    image=112,
    text=45,
    group=2,
    new_tokens=4,
    update_tokens=4,
    sampling_prompts=(2,),
    step_prompts=2,
    lengths=Lengths(prompts=16, mean=16, cap=96),
    freeze_vision=False,
    remat=False,
    chunk=1024,
    matrix=128,
    buffer=2**20,
    tolerance=1e-3,
)

PRESETS = {
    "cpu": Preset(
        model=ModelConfig(
            TextConfig(151936, 512, 8, 8, 2, 1376, (8, 12, 12)),
            VisionConfig(8, 256, 4, 512, 512, (7,)),
        ),
        device="cpu",
        dtype="float32",
        image=448,
        text=65,
        group=8,
        new_tokens=128,
        update_tokens=128,
        sampling_prompts=(4,),
        step_prompts=4,
        lengths=Lengths(prompts=16, mean=64, cap=512),
        freeze_vision=False,
        remat=False,
        chunk=1024,
        matrix=3072,
        buffer=2**29,
        tolerance=1e-3,
    ),
    "gpu": Preset(
        model=preset("3b"),
        device="gpu",
        dtype="bfloat16",
        image=448,
        text=65,
        group=8,
        new_tokens=128,
        update_tokens=512,  # below, the optimizer's share is large
        sampling_prompts=(8, 32),
        step_prompts=8,
        lengths=Lengths(prompts=32, mean=128, cap=1024),
        freeze_vision=True,
        remat=True,
        chunk=1024,
        matrix=8192,
        buffer=2**32,
        tolerance=0.3,
        parts=("sampling", "update"),
    ),
    "tiny": _TINY,
    # The form of `gpu`, to be run where there is none.
    "gpu-tiny": dataclasses.replace(
        _TINY,
        dtype="bfloat16",
        sampling_prompts=(1, 2),
        freeze_vision=True,
        remat=True,
        tolerance=0.3,
        parts=("sampling", "update"),
    ),
}


def find(name: str, new_tokens: int = 0) -> Preset:
    """A preset by name, with another number of new tokens where one is given.

    Raises:
      InputError: there is none of this name, or fewer than two new tokens.
    """
    if name not in PRESETS:
        raise InputError(f"--preset is {name!r}: expected one of {', '.join(PRESETS)}")
    if new_tokens and new_tokens < 2:
        raise InputError(f"--new-tokens is {new_tokens}: expected 2 or more, since the first comes from the prompt")
    found = PRESETS[name]
    return dataclasses.replace(found, new_tokens=new_tokens, update_tokens=new_tokens) if new_tokens else found


def find_parts(text: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Parts from a comma-separated list, in the order of `PARTS`.

    Raises:
      InputError: a part that does not exist.
    """
    named = text.split(",") if text else default
    for name in named:
        if name not in PARTS:
            raise InputError(f"--parts names {name!r}: expected any of {', '.join(PARTS)}")
    return tuple(name for name in PARTS if name in named)
