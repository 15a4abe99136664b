"""A policy that scores solutions: the backbone of Qwen2.5-VL with one number in place of a word.

A *process* model scores the end of every step, an *outcome* model the end of the solution. Both have the same weights;
what they were trained on tells them apart. ViLPRM (ViLBench, section 6.3 of our notes on the paper) is a process model
on Qwen2.5-VL-3B; head and loss are not stated there.
"""

import os
import pathlib
import secrets
import shutil
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from vlaa_jax.errors import InputError
from vlaa_jax.models.layers import weights, zeros
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, hf

HEAD = "reward_head.safetensors"
Kind = Literal["process", "outcome"]
KINDS = ("process", "outcome")


class RewardHead(nnx.Module):
    """`[D]` to a logit."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.weight = weights(rngs, (width,), width)
        self.bias = zeros(())

    def __call__(self, states: jax.Array) -> jax.Array:
        """Logits `[...]` in float32 of states `[..., D]`; their sigmoid is the score."""
        weight, bias = self.weight[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return jnp.sum(states.astype(jnp.float32) * weight, axis=-1) + bias


class RewardModel(Qwen2_5_VL):
    """The backbone, whose word head is not used, and a reward head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.reward_head = RewardHead(config.text.width, rngs)


def with_head(policy: Qwen2_5_VL, head: RewardHead) -> RewardModel:
    """A reward model that shares the arrays of both."""
    model = nnx.eval_shape(lambda: RewardModel(policy.config, nnx.Rngs(0)))
    model.vision, model.language, model.reward_head = policy.vision, policy.language, head
    return model


def without_head(model: RewardModel) -> Qwen2_5_VL:
    """The backbone as a policy; it shares the model's arrays."""
    policy = hf.abstract_model(model.config)
    policy.vision, policy.language = model.vision, model.language
    return policy


def load(
    directory: str | os.PathLike[str],
    *,
    dtype: np.dtype | type | None = np.float32,
    place: Callable[[str, np.ndarray], jax.Array] = lambda path, array: jax.device_put(array),
) -> tuple[RewardModel, Kind]:
    """A Hugging Face directory with a head beside its weights.

    Args:
      directory: local; one without a head is a policy (`new_model`).
      dtype, place: as `hf.load`; the head is float32 always.

    Raises:
      InputError: there is no head or it does not fit the backbone; as `hf.load`.
    """
    kind, tensors = _read_head(directory)
    policy = hf.load(directory, dtype=dtype, place=place)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    expected = {"weight": (policy.config.text.width,), "bias": ()}
    if shapes != expected:
        raise InputError(f"{pathlib.Path(directory) / HEAD}: a head of {shapes}, expected {expected}")
    head = RewardHead(policy.config.text.width, nnx.Rngs(0))
    for name, tensor in tensors.items():
        getattr(head, name)[...] = place(f"reward_head.{name}", tensor.astype(np.float32))
    return with_head(policy, head), kind


def read_kind(directory: str | os.PathLike[str]) -> Kind:
    """What the reward model of a directory was trained on; reads the head alone. Raises `InputError` as `load`."""
    return _read_head(directory)[0]


def _read_head(directory: str | os.PathLike[str]) -> tuple[Kind, dict[str, np.ndarray]]:
    path = pathlib.Path(directory) / HEAD
    if not path.exists():
        raise InputError(f"{directory} is no reward model: expected {HEAD} beside its weights")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            kind = (file.metadata() or {}).get("kind")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if kind not in KINDS:
        raise InputError(f"{path}: kind {kind!r}, expected one of {', '.join(KINDS)}")
    return kind, tensors


def new_model(policy: Qwen2_5_VL, *, seed: int, place: Callable[[str, np.ndarray], jax.Array]) -> RewardModel:
    """A policy with a head of random weights."""
    head = RewardHead(policy.config.text.width, nnx.Rngs(seed))
    for name in ("weight", "bias"):
        parameter = getattr(head, name)
        parameter[...] = place(f"reward_head.{name}", np.asarray(parameter[...]))
    return with_head(policy, head)


def save(model: RewardModel, kind: Kind, directory: pathlib.Path, layout: hf.Layout) -> None:
    """Writes a directory that `load` reads, and whose backbone transformers reads; it is there whole or not at all.

    Args:
      model: whose backbone `layout` fits.
      kind: what it was trained on.
      directory: must not exist yet.
      layout: of the policy that it began as.

    Raises:
      InputError: as `hf.save`.
    """
    if directory.exists():
        raise InputError(f"{directory} exists already: nothing was written")
    staging = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    try:
        hf.save(without_head(model), staging, layout)
        head = {name: np.asarray(getattr(model.reward_head, name)[...], np.float32) for name in ("weight", "bias")}
        safetensors.numpy.save_file(head, staging / HEAD, metadata={"format": "pt", "kind": kind})
        os.chmod(staging / HEAD, os.stat(staging / "config.json").st_mode & 0o777)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
