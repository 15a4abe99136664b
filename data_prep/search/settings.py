"""From the sections of a search's config to the objects they describe."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_prep.search.policy import SamplerPolicy
from data_prep.search.rounds import Plan
from data_prep.search.tree import Rules
from data_prep.search.values import StepScorer, Valuation
from vlaa_jax.ahead import Program
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, hf
from vlaa_jax.models.qwen2_5_vl.config import read_config
from vlaa_jax.models.qwen2_5_vl.encoder import open_encoder
from vlaa_jax.processing.buckets import choose_buckets
from vlaa_jax.processing.conversation import own_prompt
from vlaa_jax.processing.encode import EncodedPrompt, Encoder
from vlaa_jax.processing.index import Index, build_index, usable
from vlaa_jax.processing.records import VERIFIERS, Record
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rewards import check_gold
from vlaa_jax.rollout.draw import Sampling
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.programs import continued_programs
from vlaa_jax.rollout.random_bits import SEARCH
from vlaa_jax.rollout.sampler import sampling_weights
from vlaa_jax.sharding import evenly, make_mesh, place_parameter


def check(config: ConfigDict) -> None:
    """Raises `InputError` for a number or a name that a search cannot have; names the field."""
    least = {
        "seed": 0,
        "data.limit": 0,
        "search.simulations": 1,
        "search.leaves": 1,
        "search.rollouts": 1,
        "search.depth": 0,
        "search.width": 0,
        "search.exploration": 0,
        "value.smoothing": 0,
        "rollout.questions": 1,
        "rollout.new_tokens": 1,
        "export.least_visits": 1,
        "export.records_per_shard": 1,
    }
    flat = {
        f"{section}.{name}": value
        for section, fields in config.items()
        if isinstance(fields, ConfigDict)
        for name, value in fields.items()
    } | {"seed": config.seed}
    for field, bound in least.items():
        if flat[field] < bound:
            raise InputError(f"config.{field} is {flat[field]}: expected {bound} or more")
    if config.search.simulations % config.search.leaves:
        raise InputError(
            f"config.search.simulations is {config.search.simulations}: expected a multiple of the "
            f"{config.search.leaves} of config.search.leaves"
        )
    for field, known in (("search.prior", ("visits", "uniform")), ("search.duplicates", ("normalised", "exact"))):
        if flat[field] not in known:
            raise InputError(f"config.{field} is {flat[field]!r}: expected {' or '.join(known)}")
    if not config.rollout.process_buckets:
        raise InputError(
            "config.rollout.process_buckets is empty: expected tokens of partial solutions, as '(64, 256)'"
        )
    for field in ("value.judge_weight", "export.heldout"):
        if not 0 <= flat[field] <= 1:
            raise InputError(f"config.{field} is {flat[field]}: expected a share from 0 to 1")
    if config.value.judge_weight and not config.value.judge:
        raise InputError("config.value.judge is not set: a weight of its scores above 0 needs a judge, as process:DIR")
    if unknown := sorted(set(config.rewards.enabled) - set(VERIFIERS)):
        raise InputError(f"config.rewards.enabled names {unknown[0]!r}: expected any of {', '.join(VERIFIERS)}")


def plan(config: ConfigDict) -> Plan:
    """How much is searched."""
    section = config.search
    names = [field.name for field in dataclasses.fields(Rules)]
    rules = Rules(**{name: section[name] for name in names})
    return Plan(section.simulations // section.leaves, section.leaves, rules)


def valuation(config: ConfigDict) -> Valuation:
    return Valuation(config.value.smoothing, config.value.judge_weight)


def checkpoint(config: ConfigDict) -> pathlib.Path:
    """The local folder of the policy.

    Raises:
      InputError: there is none.
    """
    directory = hf.local_folder(config.model.checkpoint)
    if not directory.is_dir():
        raise InputError(
            f"config.model.checkpoint: {config.model.checkpoint} does not exist: expected a Hugging Face directory"
        )
    return directory


def encoder(config: ConfigDict) -> Encoder:
    """The policy's tokenizer, images and windows, under the config's prompt, else that of its training, else ours.

    Raises:
      InputError: a file of the policy is missing or damaged.
    """
    directory, section = checkpoint(config), config.prompt
    return open_encoder(
        directory,
        own_prompt(
            directory,
            system=section.system,
            instructions={name: text for name, text in section.instructions.items() if text},
        ),
        min_pixels=config.data.min_pixels or None,
        max_pixels=config.data.max_pixels or None,
    )


def open_questions(config: ConfigDict, encoder: Encoder) -> tuple[RecordSource, Index]:
    """The shard set and its index, in which records that this search does not use are marked.

    Raises:
      InputError: unusable records while `config.data.skip_bad` is off, or none left.
    """
    section = config.rollout
    source = RecordSource(config.data.questions)
    index = build_index(source, encoder, check_gold)
    if index.report() and not config.data.skip_bad:
        raise InputError(f"config.data.questions: {index.report()}; --config.data.skip_bad=true goes on without them")
    enabled = [VERIFIERS.index(name) for name in config.rewards.enabled]
    index = usable(index, np.isin(index.verifier, enabled), "its verifier is not in config.rewards.enabled")
    for name, sizes, given, most in (
        ("prompt", index.prompt, section.prompt_buckets, section.longest_prompt),
        ("windows", index.windows, section.window_buckets, section.most_windows),
    ):
        index = usable(index, sizes <= (max(given) if given else most), f"{name} above the largest bucket")
    if not len(index.good):
        raise InputError(f"config.data.questions: no usable record ({index.report()})")
    if index.report():
        print(f"config.data.questions: {index.report()}", flush=True)
    return source, index


def chunks(config: ConfigDict, index: Index) -> list[list[int]]:
    """Places of the questions that are searched together: drawn by the seed, then of like size side by side."""
    good, limit = index.good, config.data.limit
    if limit and limit < len(good):
        good = np.random.default_rng(config.seed).choice(good, limit, replace=False)
    order = sorted(good.tolist(), key=lambda place: (index.windows[place], index.prompt[place], place))
    size = evenly(config.rollout.questions)
    return [order[at : at + size] for at in range(0, len(order), size)]


def mesh(config: ConfigDict, devices: Sequence[jax.Device]) -> Mesh:
    """The chips of the search."""
    sizes = read_config(checkpoint(config))
    return make_mesh(devices, **config.mesh, key_value_heads=sizes.text.key_value_heads)


def buckets(config: ConfigDict, index: Index) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of prompt tokens and of windows: the config's, or chosen from the usable records where it has none."""
    section = config.rollout

    def choose(given: Sequence[int], sizes: np.ndarray, multiple: int) -> tuple[int, ...]:
        # Questions of like size are searched together.
        return tuple(given) or choose_buckets(sizes[index.good], section.most_buckets, drawn=1, multiple=multiple)

    return choose(section.prompt_buckets, index.prompt, 32), choose(section.window_buckets, index.windows, 4)


def generator(
    config: ConfigDict, end_tokens: tuple[int, ...], sizes: ModelConfig, buckets: tuple[Sequence[int], Sequence[int]]
) -> Generator:
    """Samples the rollouts.

    Args:
      config: of the search.
      end_tokens: of the policy.
      sizes: of the policy.
      buckets: of prompt tokens and of windows.
    """
    section = config.rollout
    return Generator(
        sampling=Sampling(
            temperature=section.temperature,
            top_k=section.top_k,
            top_p=section.top_p,
            end_tokens=end_tokens,
            banned_tokens=(sizes.image_token, sizes.video_token),
        ),
        group=config.search.rollouts,
        new_tokens=section.new_tokens,
        prompt_buckets=tuple(buckets[0]),
        window_buckets=tuple(buckets[1]),
        seed=config.seed,
        stream=SEARCH,
        row_ratio=section.row_ratio,
    )


def programs(config: ConfigDict, generator: Generator, model: Qwen2_5_VL, no_prompt: EncodedPrompt) -> list[Program]:
    """All that a search runs on the chips.

    Args:
      config: of the search.
      generator: of its rollouts.
      model: the policy, or its shapes.
      no_prompt: one without a token.
    """
    return continued_programs(
        generator,
        model,
        jnp.dtype(config.model.dtype),
        no_prompt,
        questions=evenly(config.rollout.questions),
        starts=config.search.leaves,
        lengths=config.rollout.process_buckets,
    )


def policy(config: ConfigDict, encoder: Encoder, index: Index) -> SamplerPolicy:
    """The policy of the config, its weights in the layout of the sampler."""
    model = hf.load(checkpoint(config), dtype=None, place=place_parameter)
    return SamplerPolicy(
        generator(config, encoder.tokenizer.end_tokens, model.config, buckets(config, index)),
        sampling_weights(model, jnp.dtype(config.model.dtype)),
        encoder,
        questions=evenly(config.rollout.questions),
        process_buckets=config.rollout.process_buckets,
    )


def step_scorer(config: ConfigDict) -> StepScorer | None:
    """The judge whose scores the values are blended with; None where it has no weight."""
    if not config.value.judge_weight:
        return None
    from vlaa_jax.evaluation.judges.judge import Question
    from vlaa_jax.evaluation.judges.open import open_judge

    judge = open_judge(config.value.judge)

    def score(record: Record, solutions: Sequence[str]) -> Sequence[np.ndarray]:
        return judge([Question(record, tuple(solutions))])[0]

    return score
