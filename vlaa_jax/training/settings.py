"""From the sections of a config to the objects they describe."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.judges.open import Answering
from vlaa_jax.evaluation.judges.open_scorer import open_scorer
from vlaa_jax.models import reward_model
from vlaa_jax.models.layers import REMAT_POLICIES
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, hf
from vlaa_jax.models.qwen2_5_vl.config import read_config
from vlaa_jax.models.qwen2_5_vl.encoder import open_encoder
from vlaa_jax.models.reward_model import RewardModel
from vlaa_jax.objectives.grpo import GRPOObjective
from vlaa_jax.processing.buckets import choose_buckets
from vlaa_jax.processing.conversation import load_prompt
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.index import Index, build_index, usable
from vlaa_jax.processing.records import VERIFIERS
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rewards import BatchScorer, Scorer, check_gold
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.random_bits import TRAINING
from vlaa_jax.sharding import make_mesh, place_parameter
from vlaa_jax.training.batch_sizes import longest_prompt, most_windows
from vlaa_jax.training.grpo import Policy
from vlaa_jax.training.optimizer import adamw, learning_rate_schedule
from vlaa_jax.training.prm import LabelledLoss
from vlaa_jax.training.sft import PackedLoss
from vlaa_jax.training.state import TrainState, create_state
from vlaa_jax.training.updates import LossFunction, Updater


def require(config: ConfigDict, field: str, what: str) -> str:
    """The value of a field that the user must set.

    Raises:
      InputError: it is empty; says what belongs there.
    """
    value = config
    for part in field.split("."):
        value = value[part]
    if not value:
        raise InputError(f"config.{field} is not set: expected {what} (--config.{field}=...)")
    return value


def mesh(config: ConfigDict, devices: Sequence[jax.Device]) -> Mesh:
    """The run's mesh.

    Raises:
      InputError: `config.mesh` does not fit the devices or the policy.
    """
    sizes = read_config(start_checkpoint(config))
    return make_mesh(devices, **config.mesh, key_value_heads=sizes.text.key_value_heads)


def start_checkpoint(config: ConfigDict) -> pathlib.Path:
    """The local folder of the start checkpoint; one in a bucket is fetched into the cache."""
    return hf.local_folder(require(config, "model.checkpoint", "a Hugging Face directory of a Qwen2.5-VL or Qwen2-VL"))


def load_policy(config: ConfigDict) -> tuple[Qwen2_5_VL, Encoder]:
    """The start checkpoint's weights in float32, and its encoder."""
    directory = start_checkpoint(config)
    return hf.load(directory, dtype=np.float32, place=place_parameter), load_encoder(config)


def load_reward_model(config: ConfigDict) -> tuple[RewardModel, Encoder]:
    """The start checkpoint's weights in float32 with its head, or a new one of `config.seed`; and its encoder.

    Raises:
      InputError: its head is of another kind than `config.model.kind`.
    """
    directory, kind = start_checkpoint(config), config.model.kind
    if not (directory / reward_model.HEAD).exists():
        policy, encoder = load_policy(config)
        return reward_model.new_model(policy, seed=config.seed, place=place_parameter), encoder
    model, found = reward_model.load(directory, dtype=np.float32, place=place_parameter)
    if found != kind:
        raise InputError(f"config.model.kind is {kind!r}, but the head in {config.model.checkpoint} is {found!r}")
    return model, load_encoder(config)


def load_encoder(config: ConfigDict) -> Encoder:
    """The start checkpoint's tokenizer, image rule and window geometry under the config's prompt."""
    section = config.prompt
    return open_encoder(
        start_checkpoint(config),
        load_prompt(section.system or None, {name: text for name, text in section.instructions.items() if text}),
        min_pixels=config.data.min_pixels or None,
        max_pixels=config.data.max_pixels or None,
    )


def open_records(config: ConfigDict, field: str, encoder: Encoder) -> tuple[RecordSource, Index]:
    """A shard set and its index, with records that this run does not use marked.

    Args:
      config: the run's.
      field: `train` or `evaluation`.
      encoder: decides sizes.

    Raises:
      InputError: unusable records while `config.data.skip_bad` is off, or none left.
    """
    source = RecordSource(require(config, f"data.{field}", "shards as DIRECTORY:SPLIT"))
    index = build_index(source, encoder, check_gold)
    if index.report() and not config.data.skip_bad:
        raise InputError(f"config.data.{field}: {index.report()}; --config.data.skip_bad=true goes on without them")
    unknown = set(config.rewards.enabled) - set(VERIFIERS)
    if unknown:
        raise InputError(f"config.rewards.enabled names {sorted(unknown)[0]!r}: expected any of {', '.join(VERIFIERS)}")
    enabled = [VERIFIERS.index(name) for name in config.rewards.enabled]
    index = usable(index, np.isin(index.verifier, enabled), "its verifier is not in config.rewards.enabled")
    if config.task != "sft" or field != "train":  # packed rows have bounds of their own
        index = usable(index, index.prompt <= longest_prompt(config), "prompt above the largest bucket")
        index = usable(index, index.windows <= most_windows(config), "windows above the largest bucket")
    if not len(index.good):
        raise InputError(f"config.data.{field}: no usable record ({index.report()})")
    if index.report():
        print(f"config.data.{field}: {index.report()}", flush=True)
    return source, index


def rollout_buckets(config: ConfigDict, index: Index, *, drawn: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Buckets of prompt tokens and of windows: the config's, or chosen from the usable records where it has none.

    They follow from data and config alone, so all processes and a run that goes on have the same.

    Args:
      config: of the run.
      index: of the shard set.
      drawn: random records of a batch; 1 where batches are made of records of like size.
    """
    section, good = config.rollout, index.good

    def choose(given: Sequence[int], sizes: np.ndarray, multiple: int) -> tuple[int, ...]:
        return tuple(given) or choose_buckets(sizes[good], section.most_buckets, drawn=drawn, multiple=multiple)

    return choose(section.prompt_buckets, index.prompt, 32), choose(section.window_buckets, index.windows, 4)


def sampling(config: ConfigDict, end_tokens: tuple[int, ...], sizes: ModelConfig, *, greedy: bool = False) -> Sampling:
    """The rollout's distribution, or greedy."""
    section = config.rollout
    return Sampling(
        temperature=0.0 if greedy else section.temperature,
        top_k=0 if greedy else section.top_k,
        top_p=1.0 if greedy else section.top_p,
        end_tokens=end_tokens,
        banned_tokens=(sizes.image_token, sizes.video_token),
    )


def generator(
    config: ConfigDict, sampling: Sampling, batch: int, buckets: tuple[Sequence[int], Sequence[int]]
) -> Generator:
    """Of the rollouts that a policy learns from.

    Args:
      config: of the run.
      sampling: the distribution.
      batch: prompts that are answered at once.
      buckets: of prompt tokens and of windows.
    """
    return Generator(
        sampling=sampling,
        group=config.rollout.group_size,
        new_tokens=config.rollout.new_tokens,
        prompt_buckets=tuple(buckets[0]),
        window_buckets=tuple(buckets[1]),
        seed=config.seed,
        stream=TRAINING,
        batch=batch,
        frozen_vision=config.model.freeze_vision,
        row_ratio=config.rollout.row_ratio,
    )


def objective(config: ConfigDict) -> GRPOObjective:
    """`config.objective`, the fields of `GRPOObjective`."""
    names = {field.name for field in dataclasses.fields(GRPOObjective)}
    return GRPOObjective(**{name: value for name, value in config.objective.items() if name in names})


def policy(config: ConfigDict) -> Policy:
    """How GRPO takes log-probabilities."""
    return Policy(config.rollout.temperature, config.model.dtype, remat(config), config.objective.chunk)


def packed_loss(config: ConfigDict) -> PackedLoss:
    """SFT's loss."""
    section = config.objective
    return PackedLoss(config.model.dtype, remat(config), section.chunk, section.normalisation)


def labelled_loss(config: ConfigDict) -> LabelledLoss:
    """A reward model's loss."""
    section = config.objective
    return LabelledLoss(config.model.dtype, remat(config), section.loss, section.pair_gap)


def optimizer(config: ConfigDict, updates: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW and its schedule over the run's updates."""
    section = config.optimizer
    schedule = learning_rate_schedule(section.learning_rate, section.floor, section.warmup_share, updates)
    transform = adamw(
        schedule,
        weight_decay=section.weight_decay,
        beta1=section.beta1,
        beta2=section.beta2,
        first_moment_dtype=section.first_moment_dtype,
    )
    return transform, schedule


def on_host(config: ConfigDict, field: str) -> bool:
    """Whether arrays wait in the host's memory: a field that is `device` or `pinned_host`."""
    value = config
    for part in field.split("."):
        value = value[part]
    if value not in ("device", "pinned_host"):
        raise InputError(f"config.{field} is {value!r}: expected 'device' or 'pinned_host'")
    return value == "pinned_host"


def scorer(config: ConfigDict, answering: Answering | None = None) -> Scorer | BatchScorer | None:
    """`config.rewards.scorer`, None where it names none.

    Args:
      config: of the run.
      answering: see `open_judge`.

    Raises:
      InputError: it cannot be opened, or a field beside it has a wrong value.
    """
    section = config.rewards
    if not section.scorer_beta >= 0:
        raise InputError(f"config.rewards.scorer_beta is {section.scorer_beta}: expected a number above 0, or 0")
    if not section.scorer:
        return None
    host = on_host(config, "rewards.scorer_memory")
    return open_scorer(section.scorer, beta=section.scorer_beta, on_host=host, answering=answering)


def start_training(
    config: ConfigDict, model: Qwen2_5_VL, loss: LossFunction, updates: int
) -> tuple[TrainState, Updater, optax.Schedule]:
    """The start of a training: state, programs of its updates and learning rates.

    Args:
      config: of the run.
      model: start weights.
      loss: of a micro-batch.
      updates: of the whole run.
    """
    transform, schedule = optimizer(config, updates)
    host = on_host(config, "optimizer.memory")
    state = create_state(model, transform, freeze_vision=config.model.freeze_vision, moments_on_host=host)
    return state, Updater(loss, transform, clip_norm=config.optimizer.clip_norm, moments_on_host=host), schedule


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    return jnp.dtype(config.model.dtype)


def remat(config: ConfigDict) -> str:
    """What a layer keeps for its backward pass, a key of `REMAT_POLICIES`.

    Raises:
      InputError: `config.model.remat` names none of them.
    """
    name = config.model.remat
    if name not in REMAT_POLICIES:
        raise InputError(f"config.model.remat is {name!r}: expected one of {', '.join(REMAT_POLICIES)}")
    return name


def enable_compilation_cache(directory: pathlib.Path) -> None:
    """Programs compiled once are read from disk in later runs."""
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
