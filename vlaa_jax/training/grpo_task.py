"""GRPO: rollout -> verify -> advantages -> updates."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.accumulation import summarise
from vlaa_jax.objectives.advantages import advantages
from vlaa_jax.objectives.grpo import loss_denominator, truncated_importance_weights, truncation_mask
from vlaa_jax.objectives.kl import update_kl_coefficient
from vlaa_jax.processing.batches import bucket, buckets_in_use
from vlaa_jax.processing.records import VERIFIERS
from vlaa_jax.rewards import load_scorer, require_scorer
from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rollout.decode import Completions
from vlaa_jax.rollout.generate import Generator, Rollout
from vlaa_jax.rollout.random_bits import TRAINING
from vlaa_jax.sharding import fetch_all, move, own_rows, place_rows, row_shards
from vlaa_jax.training import settings
from vlaa_jax.training.answers import answer_metrics, sample_rows, scores
from vlaa_jax.training.batch_sizes import grpo_sizes
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.experience import Collector, Sampled
from vlaa_jax.training.grpo import (
    Groups,
    Scored,
    group_log_probabilities,
    group_loss,
    put_tokens,
    reference_weights,
    take_groups,
)
from vlaa_jax.training.task import StepReport

# Seeds of the step's own permutations must differ from those of the data's epochs.
_GROUP_ORDER, _SHUFFLED_REWARDS = 1, 2


class GRPOTask:
    """Group relative policy optimisation with the mixed reward (VLAA-Thinking, section 4)."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self._counts = grpo_sizes(config, row_shards())
        self._objective, self._policy = settings.objective(config), settings.policy(config)
        model, self.encoder = settings.load_policy(config)
        self.sizes = model.config
        self.source, self.index = settings.open_records(config, "train", self.encoder)
        self.scorer = load_scorer(config.rewards.scorer) if config.rewards.scorer else None
        verifiers = {name for name in config.rewards.enabled if self._occurs(name)}
        require_scorer(verifiers, self.scorer)
        self.pool = MathPool(config.rewards.math_workers)
        self.steps = config.steps
        self.numbers: dict[str, Any] = {"draws": 0, "kl_coefficient": config.objective.kl_coefficient}
        self.waiting: dict[str, jax.Array] = {}
        self.updates_per_step = self._counts.updates * config.updates.epochs
        # Without a penalty nothing reads the reference: it is not kept and its pass is not run.
        self._reference = None
        if self._objective.kl_placement != "none":
            # The state's buffers are donated to every update, so the reference needs its own: of matrices what every
            # pass of it would make of them first, in half the memory.
            reference = reference_weights(model, dtype=config.model.dtype, freeze_vision=config.model.freeze_vision)
            host = settings.on_host(config, "model.reference_memory")
            self._reference = move(reference, "pinned_host") if host else reference
        loss = functools.partial(group_loss, policy=self._policy, objective=self._objective)
        updates = config.steps * self.updates_per_step
        self.state, self._updater, self._schedule = settings.start_training(config, model, loss, updates)
        self._generator = Generator(
            sampling=settings.sampling(config, self.encoder.tokenizer.end_tokens, self.sizes),
            group=config.rollout.group_size,
            new_tokens=config.rollout.new_tokens,
            prompt_buckets=tuple(config.rollout.prompt_buckets),
            window_buckets=tuple(config.rollout.window_buckets),
            seed=config.seed,
            stream=TRAINING,
            batch=self._counts.batch,
            frozen_vision=config.model.freeze_vision,
        )
        self.programs = self._count_programs()

    @property
    def model(self) -> Qwen2_5_VL:
        return self.state.model

    def begin(self) -> None:
        self._collector = Collector(
            self.config, self._generator, self.source, self.index, self.encoder, scorer=self.scorer, pool=self.pool
        )
        self._ahead: Sampled | None = None
        if self.waiting:
            completions = Completions(**self.waiting)
            self._ahead = self._collector.sampled_before(self.model, self.numbers["draws"], completions)

    def step(self, number: int, clock: Clock, check_stop: Callable[[], None]) -> StepReport:
        config = self.config
        ahead = None
        if config.rollout.ahead:
            experience, ahead = self._collector.collect_ahead(
                self.model, self.numbers["draws"], self._ahead, clock, check_stop, last=number == self.steps
            )
        else:
            experience = self._collector.collect(self.model, self.numbers["draws"], clock, check_stop)
        rollout, judged = experience.rollout, experience.judged
        with clock.phase("score"):
            check_stop()
            rewards = scores(judged)
            places = [self._collector.data.place(group.draw) for group in judged]
            prompt_lengths, lengths = self.index.prompt[places], np.stack([group.lengths for group in judged])
            learnt = rewards
            if config.rewards.shuffled:
                generator = np.random.default_rng([config.seed, _SHUFFLED_REWARDS, number])
                learnt = generator.permutation(rewards.ravel()).reshape(rewards.shape)
            groups, scored = self._score(rollout, learnt, prompt_lengths, lengths, clock)
        outcome = self._update(number, groups, scored, prompt_lengths, lengths, clock)

        with clock.phase("summarise"):
            self.numbers["draws"] += len(experience.all)
            self._ahead, self.waiting = ahead, {} if ahead is None else dict(vars(ahead.rollout.completions))
            metrics = answer_metrics(experience.all) | outcome["metrics"]
            if config.rollout.oversample > 1:
                metrics["rollout/prompts"] = len(experience.all)
                metrics["rollout/kept_share"] = experience.kept_share
            if experience.row_steps.ran:
                metrics["rollout/wasted_row_steps"] = experience.row_steps.wasted
            metrics["epoch"] = self.numbers["draws"] / len(self._collector.data)
            self._control_kl(metrics, rewards.size)
            samples = sample_rows(judged, fetch_all(scored.advantages))
            sampled = sum(int(group.lengths.sum()) for group in experience.all)
            counts = {"update": outcome["tokens"]}
            if not config.rollout.ahead:  # else nobody waits for it
                counts["rollout"] = sampled
            bad = None
            if outcome["bad_updates"]:
                tokens = fetch_all(rollout.completions.tokens)
                bad = {"tokens": tokens, "lengths": lengths, "rewards": rewards, "ids": [group.id for group in judged]}
            shown = [self.source[place] for place in places[: config.log.samples]]
            pictures = {record.id: record.images[0] for record in shown if record.images}
            return StepReport(metrics, samples, counts, bad, pictures)

    def _count_programs(self) -> int:
        """A bound from the records' sizes: which buckets a step needs is known when it is drawn."""
        rollout, good = self.config.rollout, self.index.good
        prompts = buckets_in_use(self.index.prompt[good], rollout.prompt_buckets, "a prompt's length")
        windows = buckets_in_use(self.index.windows[good], rollout.window_buckets, "a prompt's window count")
        completions = {min(size, rollout.new_tokens) for size in self.config.updates.completion_buckets}
        passes = 1 + (self._reference is not None) + self.config.rollout.ahead
        return len(prompts) * len(windows) * (1 + passes * len(completions))

    def _occurs(self, verifier: str) -> bool:
        place = VERIFIERS.index(verifier)
        return bool((self.index.verifier[self.index.good] == place).any())

    def _score(
        self, rollout: Rollout, rewards: np.ndarray, prompts: np.ndarray, lengths: np.ndarray, clock: Clock
    ) -> tuple[Groups, Scored]:
        """Everything the updates of this step read.

        Sampled one step ahead, completions come from older weights mu. Then old is the policy before this step's first
        update, and the importance weight leads from mu to it, so that the loss of a token is

            -w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),  r = pi / old,  w = min(old / mu, importance_cap)

        (the decoupled objective of arXiv 2505.24298 with a truncated weight): the clip bounds how far this step moves
        the policy, not how far the last one did.
        """
        section, completions = self.config.objective, rollout.completions
        groups = Groups(rollout.rows, rollout.features, completions.tokens, completions.lengths)
        mask = jnp.arange(completions.tokens.shape[-1]) < completions.lengths[..., None]
        old = completions.log_probability
        if self.config.rollout.ahead:
            old = self._present_log_probabilities(groups, prompts, lengths, clock)
        importance = None
        if section.importance_cap:
            importance = truncated_importance_weights(
                old, completions.sampled_log_probability, mask, cap=section.importance_cap
            )
        if section.mask_truncated:
            mask = truncation_mask(mask, ~completions.ended)
        scored = Scored(
            old=old,
            reference=None,
            advantages=advantages(
                place_rows(rewards[own_rows(len(rewards))]),
                baseline=section.advantage_baseline,
                scale=section.advantage_scale,
                epsilon=section.advantage_epsilon,
            ),
            mask=mask,
            importance=importance,
        )
        return groups, scored

    def _present_log_probabilities(
        self, groups: Groups, prompts: np.ndarray, lengths: np.ndarray, clock: Clock
    ) -> jax.Array:
        """`[B, G, C]` of the policy before this step's updates."""
        out = zeros = jnp.zeros_like(groups.tokens, jnp.float32)
        nothing = Scored(zeros, None, zeros[..., 0], zeros, None)
        for places in self._micro_batches(np.arange(len(lengths)), lengths):
            part, _ = self._take(groups, nothing, places, prompts, lengths)
            clock.program(_named("old log-probabilities", part))
            values = group_log_probabilities(self.model, part, policy=self._policy)
            out = put_tokens(out, values, jnp.asarray(places))
        return out

    def _refer(self, reference: Qwen2_5_VL, part: Groups, scored: Scored, clock: Clock) -> Scored:
        """Adds the reference's log-probabilities of a micro-batch."""
        clock.program(_named("reference", part))
        return dataclasses.replace(scored, reference=group_log_probabilities(reference, part, policy=self._policy))

    def _micro_batches(self, chosen: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Groups of an update in micro-batches; sorted by length, so that few share a large bucket with small ones."""
        size = self.config.updates.micro_batch
        ordered = chosen[np.argsort(lengths[chosen].max(axis=1), kind="stable")]
        return [ordered[at : at + size] for at in range(0, len(ordered), size)]

    def _take(
        self, groups: Groups, scored: Scored, chosen: np.ndarray, prompts: np.ndarray, lengths: np.ndarray
    ) -> tuple[Groups, Scored]:
        """Groups cut to the smallest buckets that hold their prompts (`[B]` tokens) and completions."""
        prompt_length = bucket(int(prompts[chosen].max()), self.config.rollout.prompt_buckets, "a prompt's length")
        longest = int(lengths[chosen].max())
        length = bucket(longest, self.config.updates.completion_buckets, "a completion's length")
        return take_groups(
            groups,
            scored,
            jnp.asarray(chosen),
            prompt_length=prompt_length,
            completion_length=min(length, groups.tokens.shape[-1]),
            parts=self._counts.parts,
        )

    def _update(
        self,
        number: int,
        groups: Groups,
        scored: Scored,
        prompts: np.ndarray,
        lengths: np.ndarray,
        clock: Clock,
    ) -> dict[str, Any]:
        """All updates of the step; groups are dealt out by the step's seed and never split over updates."""
        section = self.config.updates
        kl_coefficient = jnp.float32(self.numbers["kl_coefficient"])
        per_update = self._counts.groups
        gathered: dict[str, list[float]] = collections.defaultdict(list)
        tokens = bad = 0
        for epoch in range(section.epochs):
            generator = np.random.default_rng([self.config.seed, _GROUP_ORDER, number, epoch])
            order = generator.permutation(len(groups.tokens))
            for at in range(0, len(order), per_update):
                chosen = order[at : at + per_update]
                with clock.phase("deal"):
                    parts = [
                        self._take(groups, scored, places, prompts, lengths)
                        for places in self._micro_batches(chosen, lengths)
                    ]
                if self._reference is not None:
                    with clock.phase("reference"):
                        reference = move(self._reference, "device")  # nothing moves where it is there already
                        parts = [(part, self._refer(reference, part, of, clock)) for part, of in parts]
                        jax.block_until_ready(parts)
                        del reference
                with clock.phase("update"):
                    denominator = loss_denominator(scored.mask[jnp.asarray(chosen)], self._objective)
                    total = None
                    for part, part_scored in parts:
                        clock.program(_named("update", part))
                        batch = (part, part_scored, kl_coefficient)
                        total = (
                            self._updater.first(self.state, batch)
                            if total is None
                            else self._updater.add(self.state, total, batch)
                        )
                        tokens += part.prompts.tokens.size + part.tokens.size
                    rate = float(self._schedule(int(self.state.updates)))
                    self.state, outcome, sums = self._updater.apply(self.state, total, jnp.maximum(denominator, 1.0))
                    finite = bool(outcome.finite)
                    bad += not finite
                    if finite:
                        for name, value in summarise(sums).items():
                            gathered[f"update/{name}"].append(value)
                        gathered["loss"].append(float(outcome.loss))
                        gathered["gradient_norm"].append(float(outcome.gradient_norm))
                        gathered["learning_rate"].append(rate)
        metrics = {name: float(np.mean(values)) for name, values in gathered.items()}
        # At the first update policy and sampler are one: the ratio there measures their numerical difference.
        if gathered["update/ratio"]:
            metrics["first_update/ratio"] = gathered["update/ratio"][0]
            metrics["first_update/ratio_max"] = gathered["update/ratio_max"][0]
        metrics["updates"] = int(self.state.updates)
        metrics["non_finite_updates"] = bad
        return {"metrics": metrics, "tokens": tokens, "bad_updates": bad}

    def _control_kl(self, metrics: dict[str, float], completions: int) -> None:
        """One step of the adaptive controller (`objectives.kl`)."""
        if self._reference is None:
            return
        section = self.config.objective
        metrics["kl_coefficient"] = self.numbers["kl_coefficient"]
        if "update/kl_at_rollout" in metrics:
            metrics["kl"] = metrics["update/kl_at_rollout"]
            self.numbers["kl_coefficient"] = update_kl_coefficient(
                self.numbers["kl_coefficient"],
                metrics["kl"],
                section.kl_target or None,
                section.kl_horizon,
                completions,
            )


def _named(what: str, groups: Groups) -> str:
    """A program and its sizes, for `Clock.program`."""
    images = groups.prompts.vision.frames.shape[1] if groups.features is None else groups.features.shape[1]
    unit = "windows" if groups.features is None else "image tokens"
    return f"{what} of {groups.prompts.tokens.shape[1]} + {groups.tokens.shape[-1]} tokens, {images} {unit}"
