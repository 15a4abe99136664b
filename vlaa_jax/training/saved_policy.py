"""A finished policy to be evaluated or asked: a Hugging Face directory, or a checkpoint of a run."""

import dataclasses
import os

import jax.numpy as jnp
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf
from vlaa_jax.processing.conversation import OWN_SYSTEM, read_note
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.random_bits import EVALUATION
from vlaa_jax.rollout.sampler import SamplingWeights, sampling_weights
from vlaa_jax.training import settings
from vlaa_jax.training.export import trained_model
from vlaa_jax.training.run_folder import RunFolder

# Where a checkpoint does not say how it was trained.
_ROLLOUT = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "new_tokens": 1024}


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """A policy and how it was asked in training.

    Attributes:
      name: where it lies.
      model: weights.
      encoder: its tokenizer, image rule and conversation.
      dtype: of the computation.
      sampling: distribution of its training rollouts.
      new_tokens: bound on a completion there.
      step: of the run; 0 for a directory.
      prompt_sha256: conversation that it was trained with, '' where unknown.
      scorer: of its run, as `open_scorer` reads it; '' for a directory.
      scorer_beta: that its run settled on; 0 for the scorer's own.
    """

    name: str
    model: Qwen2_5_VL
    encoder: Encoder
    dtype: jnp.dtype
    sampling: Sampling
    new_tokens: int
    step: int = 0
    prompt_sha256: str = ""
    scorer: str = ""
    scorer_beta: float = 0.0

    def warning(self) -> str:
        """One sentence when this is not the conversation of its training, '' when it is or nothing is known."""
        today = self.encoder.prompt.sha256(self.encoder.tokenizer.chat_template)
        if self.prompt_sha256 in ("", today):
            return ""
        return (
            f"{self.name} was trained with the conversation {self.prompt_sha256[:16]} and is asked with "
            f"{today[:16]}: another system prompt, instruction or chat template; rewards may differ for that alone"
        )

    def weights(self) -> SamplingWeights:
        return sampling_weights(self.model, self.dtype)

    def generator(
        self,
        *,
        group: int,
        temperature: float | None,
        new_tokens: int,
        prompt_buckets: tuple[int, ...],
        window_buckets: tuple[int, ...],
        seed: int,
    ) -> Generator:
        """Samples groups of this policy; arguments as in `Generator`.

        Args:
          temperature: 0 is greedy; None that of the training.
          new_tokens: 0 takes the bound of the training.
        """
        sampling = self.sampling
        if temperature == 0:
            sampling = dataclasses.replace(sampling, temperature=0.0, top_k=0, top_p=1.0)
        elif temperature is not None:
            sampling = dataclasses.replace(sampling, temperature=temperature)
        return Generator(
            sampling=sampling,
            group=group,
            new_tokens=new_tokens or self.new_tokens,
            prompt_buckets=prompt_buckets,
            window_buckets=window_buckets,
            seed=seed,
            stream=EVALUATION,
        )


def from_checkpoint(directory: str | os.PathLike[str], *, system: str = "") -> SavedPolicy:
    """Opens a Hugging Face directory in the dtype in which its weights are stored.

    Args:
      directory: an exported one brings its own conversation and rollout bounds.
      system: file with another system message.

    Raises:
      InputError: not a checkpoint of this architecture, or damaged.
    """
    name, directory = os.fspath(directory), hf.local_folder(directory)
    if not directory.is_dir():
        raise InputError(f"{name} does not exist: expected a Hugging Face directory")
    note = read_note(directory)
    own_system = str(directory / OWN_SYSTEM) if (directory / OWN_SYSTEM).exists() else ""
    config = ConfigDict(
        {
            "model": {"checkpoint": str(directory)},
            "data": {"min_pixels": 0, "max_pixels": 0},
            "prompt": {"system": system or own_system, "instructions": note.get("instructions", {})},
            "rollout": _ROLLOUT | note.get("rollout", {}),
        }
    )
    encoder = settings.load_encoder(config)
    model = hf.load(directory, dtype=None)
    return SavedPolicy(
        name=name,
        model=model,
        encoder=encoder,
        dtype=model.language.embedding[...].dtype,
        sampling=settings.sampling(config, encoder.tokenizer.end_tokens, model.config),
        new_tokens=config.rollout.new_tokens,
        prompt_sha256=note.get("prompt_sha256", ""),
    )


def from_run(folder: RunFolder, config: ConfigDict, *, step: int | None = None, system: str = "") -> SavedPolicy:
    """Opens a checkpoint of a run.

    Args:
      folder: of the run.
      config: its config with names resolved to paths.
      step: which checkpoint; None takes the newest.
      system: file with another system message.

    Raises:
      InputError: the run has no such checkpoint, or trained a reward model.
    """
    if config.task == "prm":
        raise InputError(f"{folder.address} trained a reward model, which answers nothing: expected SFT or GRPO")
    if system:
        config = ConfigDict(config)
        config.prompt.system = system
    model, step = trained_model(folder, config, step)
    encoder = settings.load_encoder(config)
    return SavedPolicy(
        name=f"{folder.address}, step {step}",
        model=model,
        encoder=encoder,
        dtype=settings.compute_dtype(config),
        sampling=settings.sampling(config, encoder.tokenizer.end_tokens, model.config),
        new_tokens=config.rollout.new_tokens,
        step=step,
        prompt_sha256=folder.header()["prompt_sha256"],
        scorer=config.rewards.scorer,
        scorer_beta=_scorer_beta(folder, config),
    )


def _scorer_beta(folder: RunFolder, config: ConfigDict) -> float:
    settled = (row["scorer_beta"] for row in folder.metrics() if "scorer_beta" in row)
    return next(settled, config.rewards.get("scorer_beta", 0.0))
