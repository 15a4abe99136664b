"""Steps of TRL's `GRPOTrainer`, one at a time."""

import tempfile
import threading
from collections.abc import Sequence
from typing import Any

import datasets
from ml_collections import ConfigDict
from transformers import Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from vlaa_jax.benchmark.image_text_processor import ImageTextProcessor
from vlaa_jax.benchmark.presets import Preset
from vlaa_jax.processing.conversation import Prompt
from vlaa_jax.processing.images import decode
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import Request, score_many

_AT_ONCE = 8  # completions of a micro-batch: the default of transformers


class TRLSteps(TrainerCallback):
    """A training in a thread of its own, which waits before every step until it is asked for.

    Everything that the preset does not fix is TRL's default: gradient checkpointing, DAPO's loss, no KL penalty.
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: ImageTextProcessor,
        preset: Preset,
        config: ConfigDict,
        records: Sequence[Record],
        prompt: Prompt,
    ):
        """Starts the training, up to its first step.

        Args:
          model: the policy; it is trained in place.
          processor: of its prompts.
          preset: the workload.
          config: of our run.
          records: what is asked.
          prompt: what surrounds a question.
        """
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: Exception | None = None
        self._tokens = 0

        def reward(prompts: list, completions: list, completion_ids: list, number: list[int], **_: Any) -> list[float]:
            """Ours, on the text of TRL's completions."""
            self._tokens += sum(map(len, completion_ids))
            texts = [completion[0]["content"] for completion in completions]
            asked = [
                Request(records[n].verifier, text, records[n].answer, records[n])
                for n, text in zip(number, texts, strict=True)
            ]
            traces = score_many(asked, strict=config.rewards.strict, scorer=None, pool=None)
            return [trace.score for trace in traces]

        rows = [
            {
                # TRL puts the pictures before the text, as our conversation does.
                "prompt": [
                    {"role": "system", "content": prompt.system},
                    {"role": "user", "content": record.question},
                ],
                "images": [decode(image) for image in record.images],
                "number": number,
            }
            for number, record in enumerate(records)
        ]
        completions = preset.step_prompts * preset.group
        at_once = min(completions, _AT_ONCE)
        self._folder = tempfile.TemporaryDirectory()
        arguments = GRPOConfig(
            output_dir=self._folder.name,
            max_steps=config.steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=completions // at_once,
            use_cpu=model.device.type == "cpu",
            num_generations=preset.group,
            max_completion_length=preset.new_tokens,
            bf16=preset.dtype == "bfloat16",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=processor,
            callbacks=[self],
        )

        def train() -> None:
            self._go.acquire()
            try:
                trainer.train()
            except Exception as error:
                self._error = error
            self._done.release()

        threading.Thread(target=train, daemon=True).start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer after the optimizer's step: hands back and waits."""
        self._done.release()
        self._go.acquire()

    def step(self) -> int:
        """Makes one step and returns the number of tokens that were drawn."""
        self._tokens = 0
        self._go.release()
        self._done.acquire()
        if self._error:
            raise self._error
        return self._tokens
