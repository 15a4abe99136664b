"""Our side, in JAX: `python -m vlaa_jax.benchmark.ours FOLDER`."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.benchmark.inputs import COMPLETIONS, DRAWN, read_inputs
from vlaa_jax.benchmark.worker import peak_host_bytes, serve, timed
from vlaa_jax.objectives.shared_prompt import SharedRows, lay_out, longest_row
from vlaa_jax.processing.batches import pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.random_bits import EVALUATION
from vlaa_jax.rollout.sampler import SamplingWeights, encode_images, sampling_weights
from vlaa_jax.sharding import place_rows
from vlaa_jax.training import settings
from vlaa_jax.training.clock import Clock
from vlaa_jax.training.grpo import Scored, group_log_probabilities, group_loss
from vlaa_jax.training.grpo_task import GRPOTask


class Ours:
    """Jobs of the benchmark. What a job needs is made when it is first asked for."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._preset, self._config, self._records = read_inputs(folder)
        self._steps = 0

    @functools.cached_property
    def _loaded(self) -> tuple:
        """The model in float32, and the encoder."""
        return settings.load_policy(self._config)

    @functools.cached_property
    def _weights(self) -> SamplingWeights:
        return jax.block_until_ready(sampling_weights(self._loaded[0], settings.compute_dtype(self._config)))

    @functools.cached_property
    def _prompts(self) -> list[EncodedPrompt]:
        most = max(*self._preset.sampling_prompts, self._preset.lengths.prompts)
        return [self._loaded[1].encode(record) for record in self._records[:most]]

    def describe(self) -> dict[str, Any]:
        """What computes."""
        return {"device": jax.devices()[0].device_kind, "version": f"jax {jax.__version__}"}

    def prompt_tokens(self) -> dict[str, Any]:
        """Of the prompts that both sides sample, `[B][P]`."""
        both = self._prompts[: max(self._preset.sampling_prompts)]
        return {"tokens": [prompt.tokens.tolist() for prompt in both]}

    def sample(self, prompts: int, new_tokens: int, seed: int = 0, greedy: bool = False) -> dict[str, Any]:
        """Samples groups, or one greedy completion of each prompt.

        Returns:
          `seconds`; of greedy completions `tokens` and `log_probabilities`, `[B][C]`.
        """
        generator = self._generator(new_tokens, 1 if greedy else self._preset.group, seed=seed, greedy=greedy)
        weights, chosen = self._weights, self._prompts[:prompts]
        completions, seconds = timed(lambda: jax.device_get(generator(weights, chosen, np.arange(prompts)).completions))
        answer = {"seconds": seconds, "tokens_drawn": int(completions.lengths.sum())}
        if greedy:
            answer["tokens"] = completions.tokens[:, 0].tolist()
            answer["log_probabilities"] = completions.log_probability[:, 0].tolist()
        return answer | self._peak()

    def lengths(self, whole: bool) -> dict[str, Any]:
        """Samples groups of geometric lengths: random weights give one token in so many about that probability.

        Args:
          whole: in one segment, so that all wait for the longest.

        Returns:
          `seconds`, how much was drawn (`tokens_drawn`, `longest`) and the rows' steps. The tokens lie in the folder.
        """
        sizes = self._preset.lengths
        plain = self._generator(sizes.cap, self._preset.group)
        ends = tuple(range(0, self._preset.model.text.vocabulary, sizes.mean))
        generator = dataclasses.replace(
            plain,
            sampling=dataclasses.replace(plain.sampling, end_tokens=ends),
            segment=sizes.cap if whole else plain.segment,
        )
        weights, chosen = self._weights, self._prompts[: sizes.prompts]
        rollout, seconds = timed(lambda: jax.block_until_ready(generator(weights, chosen, np.arange(sizes.prompts))))
        lengths = np.asarray(rollout.completions.lengths)
        np.save(self._folder / DRAWN[whole], np.asarray(rollout.completions.tokens).reshape(lengths.size, -1))
        return {
            "seconds": seconds,
            "tokens_drawn": int(lengths.sum()),
            "longest": int(lengths.max()),
            "row_steps": rollout.row_steps.ran,
            "wasted": rollout.row_steps.wasted,
        } | self._peak()

    def _generator(self, new_tokens: int, group: int, *, seed: int = 0, greedy: bool = False) -> Generator:
        model, encoder = self._loaded
        return Generator(
            sampling=settings.sampling(self._config, encoder.tokenizer.end_tokens, model.config, greedy=greedy),
            group=group,
            new_tokens=new_tokens,
            prompt_buckets=(self._preset.prompt,),
            window_buckets=(self._preset.windows,),
            seed=seed,
            stream=EVALUATION,
            frozen_vision=self._preset.freeze_vision,
        )

    @functools.cached_property
    def _group(self) -> SharedRows:
        """The first prompt with the completions that both sides score and learn from."""
        preset = self._preset
        rows = place_rows(pad_prompts(self._prompts[:1], preset.prompt, preset.windows))
        features = encode_images(self._weights, rows.vision) if preset.freeze_vision else None
        tokens = jnp.asarray(np.load(self._folder / COMPLETIONS)[None])
        lengths = jnp.full(tokens.shape[:2], preset.update_tokens)
        row = longest_row(preset.prompt, preset.group, preset.update_tokens)
        return jax.jit(lay_out, static_argnames="length")(rows, features, tokens, lengths, length=row)

    def log_probabilities(self) -> dict[str, Any]:
        """Of the completions that both sides score, `[G][C]`."""
        found = group_log_probabilities(self._loaded[0], self._group, policy=settings.policy(self._config))
        return {"log_probabilities": np.asarray(found[0]).tolist()}

    @functools.cached_property
    def _updates(self) -> dict[str, Any]:
        """State, programs and data of the update; the loaded model goes into the state."""
        group = self._group
        self.__dict__.pop("_weights", None)
        model, encoder = self._loaded
        self.__dict__["_loaded"] = (None, encoder)
        loss = functools.partial(
            group_loss, policy=settings.policy(self._config), objective=settings.objective(self._config)
        )
        state, updater, _ = settings.start_training(self._config, model, loss, 1000)
        old = jnp.asarray(np.load(self._folder / "old.npy")[None])
        scored = Scored(
            old=old,
            reference=None,
            advantages=jnp.asarray(np.load(self._folder / "advantages.npy")[None]),
            mask=jnp.ones(old.shape, bool),
            importance=None,
        )
        return {"state": state, "updater": updater, "batch": (group, scored, jnp.float32(0))}

    def update(self) -> dict[str, Any]:
        """Loss, gradient and AdamW's step of one group."""
        parts = self._updates

        def run():
            updater, batch = parts["updater"], parts["batch"]
            total = updater.first(parts["state"], batch)
            parts["state"], outcome, _ = updater.apply(parts["state"], total, jnp.float32(batch[1].mask.size))
            return jax.device_get(outcome)

        outcome, seconds = timed(run)
        answer = {"loss": float(outcome.loss), "gradient_norm": float(outcome.gradient_norm)}
        return {"seconds": seconds, **answer} | self._peak()

    @functools.cached_property
    def _task(self) -> GRPOTask:
        task = GRPOTask(self._config)
        task.begin()
        return task

    def step(self) -> dict[str, Any]:
        """One step of GRPO: data, rollout, rewards, update."""
        task, clock = self._task, Clock()
        self._steps += 1
        report, seconds = timed(lambda: task.step(self._steps, clock, lambda: None))
        phases = {f"seconds_{name}": value for name, value in clock.read().items()}
        return {"seconds": seconds, "tokens_drawn": report.tokens["rollout"], **phases} | self._peak()

    def product(self, rows: int, inner: int, columns: int) -> dict[str, Any]:
        """A product of two matrices in the preset's dtype."""
        dtype = jnp.dtype(self._preset.dtype)
        matrices = jnp.full((rows, inner), 0.5, dtype), jnp.full((inner, columns), 0.5, dtype)
        jax.block_until_ready(matrices)
        _, seconds = timed(lambda: _multiply(*matrices).block_until_ready())
        return {"seconds": seconds}

    def _peak(self) -> dict[str, int]:
        """Most memory so far: the device's, or of this process where it computes on the host."""
        found = jax.devices()[0].memory_stats() or {}
        return {"peak_bytes": found.get("peak_bytes_in_use", 0) or peak_host_bytes()}


@jax.jit
def _multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    return left @ right


if __name__ == "__main__":
    serve(Ours)
