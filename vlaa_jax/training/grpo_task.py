"""GRPO: rollout -> verify -> advantages -> updates."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vlaa_jax import distributed
from vlaa_jax.ahead import Program
from vlaa_jax.evaluation.judges.open import Answering
from vlaa_jax.evaluation.judges.open_scorer import settle_beta
from vlaa_jax.evaluation.judges.scorer import JudgeScorer
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.advantages import advantages
from vlaa_jax.objectives.grpo import loss_denominator, truncated_importance_weights, truncation_mask
from vlaa_jax.objectives.kl import update_kl_coefficient
from vlaa_jax.objectives.shared_prompt import SharedRows, row_bucket
from vlaa_jax.processing.batches import buckets_in_use
from vlaa_jax.processing.index import places_of
from vlaa_jax.rewards import require_scorer
from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rollout.decode import Completions
from vlaa_jax.rollout.generate import Rollout
from vlaa_jax.sharding import fetch_all, move, own_rows, place_rows, row_shards
from vlaa_jax.training import settings
from vlaa_jax.training.answers import answer_metrics, sample_rows, scores
from vlaa_jax.training.batch_sizes import grpo_sizes, row_buckets
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.experience import Collector, Experience, Sampled
from vlaa_jax.training.grpo import (
    Groups,
    Scored,
    group_log_probabilities,
    group_loss,
    put_tokens,
    reference_weights,
    take_groups,
)
from vlaa_jax.training.grpo_programs import grpo_programs
from vlaa_jax.training.held_out import HeldOutAnswers
from vlaa_jax.training.process_rewards import ProcessRewards, process_metrics
from vlaa_jax.training.task import StepReport

# Seeds of the step's own permutations must differ from those of the data's epochs.
_GROUP_ORDER, _SHUFFLED_REWARDS = 1, 2
_BUCKETS = ("prompt_buckets", "window_buckets", "row_buckets")  # among the numbers that a checkpoint keeps


class GRPOTask:
    """Group relative policy optimisation with the mixed reward (VLAA-Thinking, section 4)."""

    def __init__(self, config: ConfigDict, *, answering: Answering | None = None):
        """Loads policy, records and judges.

        Args:
          config: of the run.
          answering: from the MODEL of a rubric judge to what answers its prompts.

        Raises:
          InputError: a field, a record or a file is not as it must be.
        """
        self.config = config
        self._counts = grpo_sizes(config, row_shards())
        self._objective, self._policy = settings.objective(config), settings.policy(config)
        model, self.encoder = settings.load_policy(config)
        self.sizes = model.config
        self.source, self.index = settings.open_records(config, "train", self.encoder)
        self.scorer = settings.scorer(config, answering)
        self._process = ProcessRewards(config, answering) if config.rewards.process else None
        verifiers = {name for name in config.rewards.enabled if self._occurs(name)}
        require_scorer(verifiers, self.scorer)
        self.pool = MathPool(config.rewards.math_workers)
        self.steps = config.steps
        buckets = settings.rollout_buckets(config, self.index, drawn=config.rollout.prompts)
        rows = row_buckets(config, self.index.prompt[self.index.good])
        self.numbers: dict[str, Any] = {
            "draws": 0,
            "kl_coefficient": config.objective.kl_coefficient,
            # They follow from data and config; kept so that a run goes on with those it began with.
            **dict(zip(_BUCKETS, map(list, (*buckets, rows)), strict=True)),
        }
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

    def held_out(self, directory: pathlib.Path) -> HeldOutAnswers:
        return HeldOutAnswers(self, directory)

    @property
    def model(self) -> Qwen2_5_VL:
        return self.state.model

    def begin(self) -> None:
        config = self.config
        if distributed.is_first():
            chosen = (f"{name.replace('_', ' ')} {', '.join(map(str, self.numbers[name]))}" for name in _BUCKETS)
            print("; ".join(chosen), flush=True)
        self._begin_scorer()
        sampling = settings.sampling(config, self.encoder.tokenizer.end_tokens, self.sizes)
        buckets = self.numbers["prompt_buckets"], self.numbers["window_buckets"]
        self._generator = settings.generator(config, sampling, self._counts.batch, buckets)
        self._collector = Collector(
            config, self._generator, self.source, self.index, self.encoder, scorer=self.scorer, pool=self.pool
        )
        self._ahead: Sampled | None = None
        if self.waiting:
            completions = Completions(**self.waiting)
            self._ahead = self._collector.sampled_before(self.model, self.numbers["draws"], completions)

    def _begin_scorer(self) -> None:
        """A judge gets what its scores hang on beside its weights; a run that goes on has it from its checkpoint."""
        if not isinstance(self.scorer, JudgeScorer):
            return
        self.scorer.references = self.numbers.setdefault("scorer_references", {})
        if "scorer_beta" in self.numbers:
            self.scorer.beta = self.numbers["scorer_beta"]
        elif self._occurs("open_ended"):
            settle_beta(self.scorer, self.source, places_of(self.index, "open_ended"), seed=self.config.seed)
            self.numbers["scorer_beta"] = self.scorer.beta

    def step(self, number: int, clock: Clock, check_stop: Callable[[], None]) -> StepReport:
        config = self.config
        if isinstance(self.scorer, JudgeScorer):
            # A step that is stopped must leave nothing: done again, it scores the same references in the same batches.
            self.scorer.references = dict(self.scorer.references)
        ahead = None
        if config.rollout.ahead:
            experience, ahead = self._collector.collect_ahead(
                self.model, self.numbers["draws"], self._ahead, clock, check_stop, last=number == self.steps
            )
        else:
            experience = self._collector.collect(self.model, self.numbers["draws"], clock, check_stop)
        rollout, judged = experience.rollout, experience.judged
        if self._process is not None:
            with clock.phase("judge"):
                judged = self._process.score(judged, self._collector.records(judged))
        with clock.phase("score"):
            check_stop()
            rewards = scores(judged)
            places = [self._collector.data.place(group.draw) for group in judged]
            prompt_lengths, lengths = self.index.prompt[places], np.stack([group.lengths for group in judged])
            learnt = rewards
            if config.rewards.shuffled:
                generator = np.random.default_rng([config.seed, _SHUFFLED_REWARDS, number])
                learnt = generator.permutation(rewards.ravel()).reshape(rewards.shape)
            of_steps = None if self._process is None else self._process.advantages(judged)
            groups, scored = self._score(rollout, learnt, prompt_lengths, lengths, of_steps)
        outcome = self._update(number, groups, scored, prompt_lengths, lengths, clock)

        with clock.phase("summarise"):
            self.numbers["draws"] += len(experience.all)
            self._ahead, self.waiting = ahead, {} if ahead is None else dict(vars(ahead.rollout.completions))
            metrics = answer_metrics(experience.all) | outcome["metrics"]
            if config.rollout.oversample > 1:
                metrics["rollout/prompts"] = len(experience.all)
                metrics["rollout/kept_share"] = experience.kept_share
            if isinstance(self.scorer, JudgeScorer):
                self.numbers["scorer_references"] = self.scorer.references
                unread = sum(trace.rule == "unread" for group in experience.all for trace in group.traces)
                metrics |= {"scorer_beta": self.scorer.beta, "scorer_unread": unread}
            if self._process is not None:
                metrics |= process_metrics(judged)
            if experience.row_steps.ran:
                metrics["rollout/wasted_row_steps"] = experience.row_steps.wasted
            metrics |= self._padding(experience)
            metrics["epoch"] = self.numbers["draws"] / len(self._collector.data)
            self._control_kl(metrics, rewards.size)
            samples = sample_rows(judged, fetch_all(scored.advantages))
            sampled = sum(int(group.lengths.sum()) for group in experience.all)
            counts = {"update": outcome["tokens"]}
            if not config.rollout.ahead:  # else the phase has only what judging left of it
                counts["rollout"] = sampled
            bad = None
            if outcome["bad_updates"]:
                tokens = fetch_all(rollout.completions.tokens)
                bad = {"tokens": tokens, "lengths": lengths, "rewards": rewards, "ids": [group.id for group in judged]}
            shown = [self.source[place] for place in places[: config.log.samples]]
            pictures = {record.id: record.images[0] for record in shown if record.images}
            return StepReport(metrics, samples, counts, bad, pictures)

    def _padding(self, experience: Experience) -> dict[str, float]:
        """Shares of the rollout's shape that no prompt fills."""
        places = [self._collector.data.place(group.draw) for group in experience.all]
        length, windows = experience.shape
        return {
            "rollout/padding_share": 1 - float(self.index.prompt[places].mean()) / length,
            "rollout/window_padding_share": 1 - float(self.index.windows[places].mean()) / windows,
        }

    def programs(self) -> list[Program]:
        sizes = (self.index.prompt, self.index.windows)
        used = {
            name: buckets_in_use(of[self.index.good], self.numbers[name], name)
            for name, of in zip(_BUCKETS[:2], sizes, strict=True)
        }
        return grpo_programs(
            self.config,
            self._counts,
            dataclasses.replace(self._generator, **used),
            self.numbers["row_buckets"],
            self.encoder.no_prompt,
            self.state,
            self._reference,
            self._updater,
        )

    def _occurs(self, verifier: str) -> bool:
        return len(places_of(self.index, verifier)) > 0

    def _score(
        self,
        rollout: Rollout,
        rewards: np.ndarray,
        prompts: np.ndarray,
        lengths: np.ndarray,
        of_steps: jax.Array | None = None,
    ) -> tuple[Groups, Scored]:
        """Everything the updates of this step read; advantages of steps `[B, G, C]` add to those of completions.

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
        of_completions = advantages(
            place_rows(rewards[own_rows(len(rewards))]),
            baseline=section.advantage_baseline,
            scale=section.advantage_scale,
            epsilon=section.advantage_epsilon,
        )
        scored = Scored(
            old=old,
            reference=None,
            advantages=of_completions if of_steps is None else of_completions[..., None] + of_steps,
            mask=truncation_mask(mask, ~completions.ended) if section.mask_truncated else mask,
            importance=old if section.importance_cap else None,
        )
        if self.config.rollout.ahead:
            old = self._present_log_probabilities(groups, scored, prompts, lengths)
            scored = dataclasses.replace(scored, old=old)
        if section.importance_cap:
            importance = truncated_importance_weights(
                old, completions.sampled_log_probability, mask, cap=section.importance_cap
            )
            scored = dataclasses.replace(scored, importance=importance)
        return groups, scored

    def _present_log_probabilities(
        self, groups: Groups, scored: Scored, prompts: np.ndarray, lengths: np.ndarray
    ) -> jax.Array:
        """`[B, G, C]` of the policy before this step's updates; of `scored` only the shapes count."""
        out = scored.old
        for places in micro_batches(np.arange(len(lengths)), prompts, lengths, self.config.updates.micro_batch):
            part, _ = self._take(groups, scored, places, prompts, lengths)
            values = group_log_probabilities(self.model, part, policy=self._policy)
            out = put_tokens(out, values, jnp.asarray(places))
        return out

    def _refer(self, reference: Qwen2_5_VL, part: SharedRows, scored: Scored) -> Scored:
        """Adds the reference's log-probabilities of a micro-batch."""
        return dataclasses.replace(scored, reference=group_log_probabilities(reference, part, policy=self._policy))

    def _take(
        self, groups: Groups, scored: Scored, chosen: np.ndarray, prompts: np.ndarray, lengths: np.ndarray
    ) -> tuple[SharedRows, Scored]:
        """Groups in rows of the smallest bucket that holds their prompts (`[B]` tokens) and completions."""
        parts = self._counts.parts
        rows = lengths[chosen].reshape(len(chosen) * parts, -1)
        length = row_bucket(np.repeat(prompts[chosen], parts), rows, self.numbers["row_buckets"])
        return take_groups(groups, scored, jnp.asarray(chosen), length=length, parts=parts)

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
                        for places in micro_batches(chosen, prompts, lengths, section.micro_batch)
                    ]
                if self._reference is not None:
                    with clock.phase("reference"):
                        reference = move(self._reference, "device")  # nothing moves where it is there already
                        parts = [(part, self._refer(reference, part, of)) for part, of in parts]
                        jax.block_until_ready(parts)
                        del reference
                with clock.phase("update"):
                    rate = float(self._schedule(int(self.state.updates)))
                    batches = [(part, of_part, kl_coefficient) for part, of_part in parts]
                    count = lambda batch: loss_denominator(batch[1].mask, self._objective)  # noqa: E731
                    self.state, found = self._updater.run(self.state, batches, count)
                    tokens += sum(part.rows.tokens.size for part, _ in parts)
                    bad += not found
                    for name, value in found.items():
                        gathered[name].append(value)
                    if found:
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


def micro_batches(chosen: np.ndarray, prompts: np.ndarray, lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Groups of an update in micro-batches of `size`, sorted by tokens: few share a long row with short ones.

    Args:
      chosen: places of the groups.
      prompts: `[B]` tokens.
      lengths: `[B, G]` tokens.
      size: groups of a micro-batch.
    """
    ordered = chosen[np.argsort(prompts[chosen] + lengths[chosen].sum(axis=1), kind="stable")]
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]
