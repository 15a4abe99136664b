"""From a judge's name on a command line to the judge."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax.numpy as jnp

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.judge import Judge
from vlaa_jax.evaluation.judges.likelihood import LikelihoodJudge
from vlaa_jax.evaluation.judges.model_judge import AT_ONCE
from vlaa_jax.evaluation.judges.reward import RewardJudge
from vlaa_jax.evaluation.judges.rubric import Ask, RubricJudge
from vlaa_jax.evaluation.judges.spec import CLASS, LIKELIHOOD, RUBRIC, Spec, read_spec
from vlaa_jax.models import reward_model
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf
from vlaa_jax.models.qwen2_5_vl.encoder import open_encoder
from vlaa_jax.named_class import make_named
from vlaa_jax.processing.conversation import own_prompt
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.sharding import place_parameter

Answering = Callable[[str], Ask]
"""From the MODEL of a rubric judge to what answers its prompts."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy whose likelihood may judge.

    Attributes:
      model: weights in the training layout.
      encoder: its tokenizer, image rule and conversation.
      dtype: of the computation.
    """

    model: Qwen2_5_VL
    encoder: Encoder
    dtype: jnp.dtype


def check_judge(text: str, *, policy: bool, folder: Callable[[str], str] = str) -> None:
    """Refuses at once what `open_judge` would refuse after hours of sampling; reads no weights.

    Args:
      text: one of `spec.SPECS`.
      policy: whether there is one that `likelihood` alone means.
      folder: as in `open_judge`.

    Raises:
      InputError: as `open_judge`.
    """
    spec = read_spec(text)
    if spec.kind == RUBRIC:
        return
    if spec.kind == CLASS:
        make_named(spec.place, "judge")
        return
    if not spec.place:
        if not policy:
            raise InputError(f"judge {text!r}: no policy is evaluated here; name its folder, {LIKELIHOOD}:DIR")
        return
    local = _local(text, spec, folder)
    if spec.kind in reward_model.KINDS and (kind := reward_model.read_kind(local)) != spec.kind:
        raise InputError(f"judge {text!r}: {spec.place} was trained as {kind} model; name it {kind}:{spec.place}")


def open_judge(
    text: str,
    *,
    policy: Policy | None = None,
    answering: Answering | None = None,
    folder: Callable[[str], str] = str,
    rows: int = AT_ONCE,
    logits: bool = False,
    seed: int = 0,
) -> Judge:
    """Opens a judge, its weights laid out over the mesh as for training.

    Args:
      text: one of `spec.SPECS`. `process` and `outcome` must have been trained as such; `untrained` is a head of random
        weights on a policy, the control of the trained ones.
      policy: the one that `likelihood` alone means.
      answering: from the MODEL of a rubric judge to what answers its prompts.
      folder: resolves a DIR (`demo` is no folder).
      rows: B of its programs.
      logits: heads give logits in place of their sigmoids.
      seed: of an untrained head.

    Raises:
      InputError: no such judge, or nothing there that can be opened.
    """
    check_judge(text, policy=policy is not None, folder=folder)
    spec = read_spec(text)
    if spec.kind == RUBRIC:
        if answering is None:
            raise InputError(f"judge {text!r}: nothing here answers the prompts of a rubric judge")
        return RubricJudge(answering(spec.place), name=text)
    if spec.kind == CLASS:
        return make_named(spec.place, "judge")
    local = _local(text, spec, folder) if spec.place else None
    if spec.kind == LIKELIHOOD:
        own = open_policy(local) if local else policy
        return LikelihoodJudge(own.model, own.encoder, name=text, dtype=own.dtype, rows=rows)
    if spec.kind == "untrained":
        start = hf.load(local, dtype=None, place=place_parameter)
        model, kind = reward_model.new_model(start, seed=seed, place=place_parameter), "process"
    else:
        model, kind = reward_model.load(local, dtype=None, place=place_parameter)
    return RewardJudge(model, kind, open_directory(local), name=text, rows=rows, logits=logits)


def open_policy(directory: pathlib.Path) -> Policy:
    """A Hugging Face directory, in the dtype in which its weights are stored."""
    model = hf.load(directory, dtype=None, place=place_parameter)
    return Policy(model, open_directory(directory), model.language.embedding[...].dtype)


def open_directory(directory: pathlib.Path) -> Encoder:
    """How a directory's model sees a question: in the conversation that it was trained with, else in ours.

    Raises:
      InputError: a file is missing or cannot be read.
    """
    return open_encoder(directory, own_prompt(directory))


def _local(text: str, spec: Spec, folder: Callable[[str], str]) -> pathlib.Path:
    local = hf.local_folder(folder(spec.place))
    if not local.is_dir():
        raise InputError(f"judge {text!r}: {spec.place} does not exist: expected a Hugging Face directory")
    return local
