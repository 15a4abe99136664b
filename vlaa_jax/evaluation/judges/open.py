"""From a judge's name on a command line to the judge."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.judge import Judge
from vlaa_jax.evaluation.judges.likelihood import LikelihoodJudge
from vlaa_jax.evaluation.judges.reward import RewardJudge
from vlaa_jax.evaluation.judges.rubric import Ask, RubricJudge
from vlaa_jax.models import reward_model
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL, hf
from vlaa_jax.models.qwen2_5_vl.encoder import open_encoder
from vlaa_jax.processing.conversation import load_prompt
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.sharding import place_parameter

SPECS = "process:DIR, outcome:DIR, untrained:DIR, likelihood, likelihood:DIR or rubric:MODEL"
_SYSTEM = "system_prompt.txt"  # beside the weights of an export: the message of its training


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


def check_spec(spec: str) -> None:
    """For a command line. Raises `InputError` unless `spec` is one of `SPECS`."""
    kind, colon, rest = spec.partition(":")
    good = kind in ("process", "outcome", "untrained", "rubric", "likelihood") and (bool(rest) or spec == "likelihood")
    if not good:
        raise InputError(f"judge {spec!r}: expected {SPECS}")


def open_judge(
    spec: str,
    *,
    policy: Policy | None = None,
    answering: Callable[[str], Ask] | None = None,
    folder: Callable[[str], str] = str,
    rows: int = 8,
    logits: bool = False,
    seed: int = 0,
) -> Judge:
    """Opens a judge.

    Args:
      spec: one of `SPECS`. `process` and `outcome` must have been trained as such; `untrained` is a head of random
        weights on a policy, the control of the trained ones.
      policy: the one that `likelihood` alone means.
      answering: from the MODEL of a rubric judge to what answers its prompts.
      folder: resolves a DIR (`demo` is no folder).
      rows: B of its programs.
      logits: heads give logits in place of their sigmoid.
      seed: of an untrained head.

    Raises:
      InputError: no such judge, or nothing there that can be opened.
    """
    check_spec(spec)
    kind, _, place = spec.partition(":")
    if kind == "rubric":
        if answering is None:
            raise InputError(f"judge {spec!r}: nothing here answers the prompts of a rubric judge")
        return RubricJudge(answering(place), name=spec)
    if kind == "likelihood":
        own = policy if not place else _open_policy(folder(place))
        if own is None:
            raise InputError("judge 'likelihood': no policy is evaluated here; name its folder, likelihood:DIR")
        return LikelihoodJudge(own.model, own.encoder, name=spec, dtype=own.dtype, rows=rows)
    directory = folder(place)
    if kind == "untrained":
        model = reward_model.new_model(_open_policy(directory).model, seed=seed, place=place_parameter)
        trained = "process"
    else:
        model, trained = reward_model.load(hf.local_folder(directory), dtype=None, place=place_parameter)
        if trained != kind:
            raise InputError(f"judge {spec!r}: {place} was trained as {trained} model, name it {trained}:{place}")
    return RewardJudge(model, trained, open_directory(directory), name=spec, rows=rows, logits=logits)


def open_directory(directory: str) -> Encoder:
    """How a directory's model sees a question: with the system message that it was trained with, else with ours."""
    local = hf.local_folder(directory)
    system = local / _SYSTEM
    return open_encoder(local, load_prompt(str(system) if system.exists() else None))


def _open_policy(directory: str) -> Policy:
    model = hf.load(hf.local_folder(directory), dtype=None, place=place_parameter)
    return Policy(model, open_directory(directory), model.language.embedding[...].dtype)
