"""GRPO: rollout -> verify -> advantages -> updates."""

import collections
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.accumulation import summarise
from vlaa_jax.objectives.advantages import advantages
from vlaa_jax.objectives.grpo import loss_denominator, truncated_importance_weights, truncation_mask
from vlaa_jax.objectives.kl import update_kl_coefficient
from vlaa_jax.processing.batches import bucket, buckets_in_use
from vlaa_jax.processing.prompt_data import Drawn, PromptData
from vlaa_jax.processing.records import VERIFIERS
from vlaa_jax.rewards import Request, Trace, accuracy, load_scorer, require_scorer, score_many
from vlaa_jax.rewards.math_pool import MathPool
from vlaa_jax.rollout.generate import Generator, Rollout
from vlaa_jax.rollout.random_bits import TRAINING
from vlaa_jax.rollout.sampler import sampling_weights
from vlaa_jax.training import settings
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.grpo import Groups, Policy, Scored, group_log_probabilities, group_loss, take_groups
from vlaa_jax.training.run_folder import trace_fields
from vlaa_jax.training.state import create_state
from vlaa_jax.training.task import StepReport
from vlaa_jax.training.updates import Updater

# Phrases whose share VLAA-Thinking counts (section 4.4, figure 7).
AHA_PHRASES = ("alternatively", "double-check", "i should check", "wait")
_FIRST_STEP = re.compile(r"^\s*Step 1:", re.MULTILINE)
# Seeds of the step's own permutations must differ from those of the data's epochs.
_GROUP_ORDER, _SHUFFLED_REWARDS = 1, 2


class GRPOTask:
    """Group relative policy optimisation with the mixed reward (VLAA-Thinking, section 4)."""

    def __init__(self, config: ConfigDict):
        self.config = config
        model, self.encoder = settings.load_policy(config)
        self.sizes = model.config
        self.source, self.index = settings.open_records(config, "train", self.encoder)
        self.scorer = load_scorer(config.rewards.scorer) if config.rewards.scorer else None
        verifiers = {name for name in config.rewards.enabled if self._occurs(name)}
        require_scorer(verifiers, self.scorer)
        self.pool = MathPool(config.rewards.math_workers)
        self.steps = config.steps
        self.numbers: dict[str, Any] = {"draws": 0, "kl_coefficient": config.objective.kl_coefficient}

        updates, rest = divmod(config.rollout.prompts * config.rollout.group_size, config.updates.completions)
        if rest or config.updates.completions % config.rollout.group_size:
            raise InputError(
                f"config.updates.completions is {config.updates.completions}: expected a multiple of the group size "
                f"{config.rollout.group_size} that divides a step's "
                f"{config.rollout.prompts * config.rollout.group_size}"
            )
        if (config.updates.completions // config.rollout.group_size) % config.updates.micro_batch:
            raise InputError(
                f"config.updates.micro_batch is {config.updates.micro_batch}: expected a number of groups that divides "
                f"an update's {config.updates.completions // config.rollout.group_size}"
            )
        if max(config.updates.completion_buckets) < config.rollout.new_tokens:
            raise InputError(
                f"config.updates.completion_buckets is {tuple(config.updates.completion_buckets)}: expected one of at "
                f"least config.rollout.new_tokens ({config.rollout.new_tokens})"
            )
        self.updates_per_step = updates * config.updates.epochs
        transform, self._schedule = settings.optimizer(config, config.steps * self.updates_per_step)
        self.state = create_state(model, transform, freeze_vision=config.model.freeze_vision)
        self._objective = settings.objective(config)
        # Without a penalty nothing reads the reference: it is not kept and its pass is not run.
        self._reference = model if self._objective.kl_placement != "none" else None
        if self._reference is not None:
            # The state's buffers are donated to every update, so the reference needs its own.
            self._reference = jax.tree.map(jnp.copy, model)
        self._policy = Policy(
            config.rollout.temperature, config.model.dtype, config.model.remat, config.objective.chunk
        )
        loss = functools.partial(group_loss, policy=self._policy, objective=self._objective)
        self._updater = Updater(loss, transform)
        self._generator = Generator(
            sampling=settings.sampling(config, self.encoder, self.sizes),
            group=config.rollout.group_size,
            new_tokens=config.rollout.new_tokens,
            prompt_buckets=tuple(config.rollout.prompt_buckets),
            window_buckets=tuple(config.rollout.window_buckets),
            seed=config.seed,
            stream=TRAINING,
        )
        self.programs = self._count_programs()

    @property
    def model(self) -> Qwen2_5_VL:
        return self.state.model

    def begin(self) -> None:
        data = PromptData(self.source, self.index, self.encoder, seed=self.config.seed)
        self._batches = data.batches(self.config.rollout.prompts, self.numbers["draws"])
        self._epoch = len(data)

    def step(self, number: int, clock: Clock) -> StepReport:
        config = self.config
        with clock.phase("data"):
            drawn = next(self._batches)
        prompts = [d.prompt for d in drawn]
        with clock.phase("rollout"):
            length, windows = self._generator.shape(prompts)
            clock.program(f"rollout of {length} + {config.rollout.new_tokens} tokens, {windows} windows")
            weights = sampling_weights(self.model, settings.compute_dtype(config))
            rollout = self._generator(weights, prompts, [d.draw for d in drawn])
            del weights
            tokens, lengths, ended = (
                np.asarray(a)
                for a in (rollout.completions.tokens, rollout.completions.lengths, rollout.completions.ended)
            )
        with clock.phase("decode_text"):
            texts = [
                [self.encoder.tokenizer.decode(row[:n]) for row, n in zip(group, sizes, strict=True)]
                for group, sizes in zip(tokens, lengths, strict=True)
            ]
        with clock.phase("verify"):
            traces = self._verify(drawn, texts)
        rewards = np.asarray([[trace.score for trace in group] for group in traces], np.float32)
        learnt = rewards
        if config.rewards.shuffled:
            generator = np.random.default_rng([config.seed, _SHUFFLED_REWARDS, number])
            learnt = generator.permutation(rewards.ravel()).reshape(rewards.shape)
        groups, scored = self._score(rollout, learnt, clock)
        outcome = self._update(number, groups, scored, lengths, clock)

        self.numbers["draws"] = drawn[-1].draw + 1
        metrics = self._metrics(drawn, texts, traces, rewards, lengths, ended) | outcome["metrics"]
        metrics["epoch"] = self.numbers["draws"] / self._epoch
        self._control_kl(metrics, rewards.size)
        samples = self._sample_rows(drawn, texts, traces, np.asarray(scored.advantages), lengths, ended)
        counts = {"rollout": int(lengths.sum()), "update": outcome["tokens"]}
        bad = None
        if outcome["bad_updates"]:
            bad = {"tokens": tokens, "lengths": lengths, "rewards": rewards, "ids": [d.record.id for d in drawn]}
        pictures = {d.record.id: d.record.images[0] for d in drawn[: config.log.samples] if d.record.images}
        return StepReport(metrics, samples, counts, bad, pictures)

    def _count_programs(self) -> int:
        """A bound from the records' sizes: which buckets a step needs is known when it is drawn."""
        rollout, good = self.config.rollout, self.index.good
        prompts = buckets_in_use(self.index.prompt[good], rollout.prompt_buckets, "a prompt's length")
        windows = buckets_in_use(self.index.windows[good], rollout.window_buckets, "a prompt's window count")
        completions = {min(size, rollout.new_tokens) for size in self.config.updates.completion_buckets}
        passes = 1 if self._reference is None else 2
        return len(prompts) * len(windows) * (1 + passes * len(completions))

    def _occurs(self, verifier: str) -> bool:
        place = VERIFIERS.index(verifier)
        return bool((self.index.verifier[self.index.good] == place).any())

    def _verify(self, drawn: Sequence[Drawn], texts: Sequence[Sequence[str]]) -> list[list[Trace]]:
        requests = [
            Request(d.record.verifier, text, d.record.answer, d.record, d.prompt.resizes)
            for d, group in zip(drawn, texts, strict=True)
            for text in group
        ]
        flat = score_many(requests, strict=self.config.rewards.strict, scorer=self.scorer, pool=self.pool)
        group = self.config.rollout.group_size
        return [flat[at : at + group] for at in range(0, len(flat), group)]

    def _score(self, rollout: Rollout, rewards: np.ndarray, clock: Clock) -> tuple[Groups, Scored]:
        """Everything the updates of this step read."""
        section, completions = self.config.objective, rollout.completions
        frozen = self.config.model.freeze_vision
        groups = Groups(
            rollout.rows, rollout.prefix.features if frozen else None, completions.tokens, completions.lengths
        )
        mask = jnp.arange(completions.tokens.shape[-1]) < completions.lengths[..., None]
        old = completions.log_probability
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
                jnp.asarray(rewards),
                baseline=section.advantage_baseline,
                scale=section.advantage_scale,
                epsilon=section.advantage_epsilon,
            ),
            mask=mask,
            importance=importance,
        )
        if self._reference is None:
            return groups, scored
        with clock.phase("reference"):
            reference = self._by_micro_batch(groups, scored, clock)
        return groups, Scored(scored.old, reference, scored.advantages, scored.mask, scored.importance)

    def _by_micro_batch(self, groups: Groups, scored: Scored, clock: Clock) -> jax.Array:
        """The reference's log-probabilities `[B, G, C]` of all groups."""
        length = groups.tokens.shape[-1]
        out = np.zeros(groups.tokens.shape, np.float32)
        for chosen in self._micro_batches(np.arange(len(groups.tokens)), np.asarray(groups.lengths)):
            part, _, size = self._take(groups, scored, chosen)
            clock.program(_named("reference", part))
            values = group_log_probabilities(self._reference, part, policy=self._policy)
            out[chosen, :, : min(size, length)] = np.asarray(values)
        return jnp.asarray(out)

    def _micro_batches(self, chosen: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Groups of an update in micro-batches; sorted by length, so that few share a large bucket with small ones."""
        size = self.config.updates.micro_batch
        ordered = chosen[np.argsort(lengths[chosen].max(axis=1), kind="stable")]
        return [ordered[at : at + size] for at in range(0, len(ordered), size)]

    def _take(self, groups: Groups, scored: Scored, chosen: np.ndarray) -> tuple[Groups, Scored, int]:
        """Groups cut to the smallest buckets that hold them, and the completion bucket."""
        prompts = int(np.asarray(groups.prompts.segments)[chosen].sum(axis=1).max())
        longest = int(np.asarray(groups.lengths)[chosen].max())
        prompt_length = bucket(prompts, self.config.rollout.prompt_buckets, "a prompt's length")
        length = bucket(longest, self.config.updates.completion_buckets, "a completion's length")
        length = min(length, groups.tokens.shape[-1])
        part = take_groups(groups, scored, jnp.asarray(chosen), prompt_length=prompt_length, completion_length=length)
        return *part, length

    def _update(self, number: int, groups: Groups, scored: Scored, lengths: np.ndarray, clock: Clock) -> dict[str, Any]:
        """All updates of the step; groups are dealt out by the step's seed and never split over updates."""
        section = self.config.updates
        kl_coefficient = jnp.float32(self.numbers["kl_coefficient"])
        per_update = section.completions // self.config.rollout.group_size
        gathered: dict[str, list[float]] = collections.defaultdict(list)
        tokens = bad = 0
        with clock.phase("update"):
            for epoch in range(section.epochs):
                generator = np.random.default_rng([self.config.seed, _GROUP_ORDER, number, epoch])
                order = generator.permutation(len(groups.tokens))
                for at in range(0, len(order), per_update):
                    chosen = order[at : at + per_update]
                    denominator = loss_denominator(scored.mask[jnp.asarray(chosen)], self._objective)
                    total = None
                    for places in self._micro_batches(chosen, lengths):
                        part, part_scored, _ = self._take(groups, scored, places)
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

    def _metrics(
        self,
        drawn: Sequence[Drawn],
        texts: Sequence[Sequence[str]],
        traces: Sequence[Sequence[Trace]],
        rewards: np.ndarray,
        lengths: np.ndarray,
        ended: np.ndarray,
    ) -> dict[str, float]:
        by_kind: dict[str, list[tuple[str, Trace]]] = collections.defaultdict(list)
        for d, group in zip(drawn, traces, strict=True):
            for suffix in ("", f"/{d.record.verifier}"):
                by_kind[suffix] += [(d.record.verifier, trace) for trace in group]
        metrics = {}
        for suffix, judged in by_kind.items():
            valid = [trace.score for _, trace in judged if trace.valid]
            metrics[f"reward{suffix}"] = float(np.mean([trace.score for _, trace in judged]))
            metrics[f"accuracy{suffix}"] = float(np.mean([accuracy(trace, kind) for kind, trace in judged]))
            metrics[f"valid{suffix}"] = len(valid) / len(judged)
            if valid:
                metrics[f"reward_if_valid{suffix}"] = float(np.mean(valid))
        flat = [trace for group in traces for trace in group]
        metrics["reward_deviation"] = float(rewards.std(axis=1).mean())
        metrics["groups_without_signal"] = float((rewards.max(axis=1) == rewards.min(axis=1)).mean())
        metrics["box_space_suspect"] = sum(trace.box_space_suspect for trace in flat)
        metrics["verifier_timeouts"] = sum(trace.rule == "timeout" for trace in flat)
        metrics["length"] = float(lengths.mean())
        metrics["length/min"], metrics["length/max"] = int(lengths.min()), int(lengths.max())
        metrics["truncated"] = float(1 - ended.mean())
        lowered = [text.lower() for group in texts for text in group]
        for phrase in AHA_PHRASES:
            metrics[f"aha/{phrase.replace(' ', '_')}"] = sum(phrase in text for text in lowered)
        metrics["in_steps"] = float(np.mean([bool(_FIRST_STEP.search(t)) for group in texts for t in group]))
        return metrics

    def _sample_rows(
        self,
        drawn: Sequence[Drawn],
        texts: Sequence[Sequence[str]],
        traces: Sequence[Sequence[Trace]],
        advantage: np.ndarray,
        lengths: np.ndarray,
        ended: np.ndarray,
    ) -> list[Mapping[str, Any]]:
        return [
            {
                "id": d.record.id,
                "draw": d.draw,
                "sample": g,
                "verifier": d.record.verifier,
                "gold": d.record.answer,
                "completion": text,
                "length": int(lengths[b, g]),
                "truncated": not bool(ended[b, g]),
                "advantage": float(advantage[b, g]),
                **trace_fields(traces[b][g]),
            }
            for b, d in enumerate(drawn)
            for g, text in enumerate(texts[b])
        ]


def _named(what: str, groups: Groups) -> str:
    """A program and its sizes, for `Clock.program`."""
    windows = groups.prompts.vision.frames.shape[1]
    return f"{what} of {groups.prompts.tokens.shape[1]} + {groups.tokens.shape[-1]} tokens, {windows} windows"
