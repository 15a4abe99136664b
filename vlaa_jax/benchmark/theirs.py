"""The other side, in torch: `python -m vlaa_jax.benchmark.theirs FOLDER`.

Sampling is `generate` of transformers, the update the same loss on its model with a row for every completion, the step
TRL's `GRPOTrainer`.
"""

import functools
import os
import pathlib
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from vlaa_jax.benchmark.image_text_processor import ImageTextProcessor
from vlaa_jax.benchmark.inputs import COMPLETIONS, POLICY, read_inputs
from vlaa_jax.benchmark.worker import peak_host_bytes, serve, timed
from vlaa_jax.processing.conversation import Prompt, load_prompt
from vlaa_jax.processing.images import decode
from vlaa_jax.processing.records import Record

_CLIP = 0.2


class Theirs:
    """Jobs of the benchmark. What a job needs is made when it is first asked for."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._preset, self._config, self._records = read_inputs(folder)
        on_gpu = torch.cuda.is_available() and self._preset.device != "cpu"
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._dtype = getattr(torch, self._preset.dtype)
        torch.manual_seed(0)

    @functools.cached_property
    def _processor(self) -> ImageTextProcessor:
        return ImageTextProcessor.from_directory(self._folder / POLICY)

    @functools.cached_property
    def _prompt(self) -> Prompt:
        return load_prompt(self._config.prompt.system)

    @functools.cached_property
    def _model(self) -> Qwen2_5_VLForConditionalGeneration:
        path = self._folder / POLICY
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=self._dtype, attn_implementation="sdpa")
        return model.to(self._device).eval()

    def describe(self) -> dict[str, Any]:
        """What computes."""
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        name = torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
        return {"device": name, "version": versions, "threads": torch.get_num_threads()}

    def prompt_tokens(self) -> dict[str, Any]:
        """As `Ours.prompt_tokens`."""
        return {"tokens": self._inputs(max(self._preset.sampling_prompts))["input_ids"].tolist()}

    def sample(self, prompts: int, new_tokens: int, seed: int = 0, greedy: bool = False) -> dict[str, Any]:
        """As `Ours.sample`."""
        inputs = self._inputs(prompts)
        torch.manual_seed(seed)
        distribution = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        if not greedy:
            distribution = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

        def generate():
            out = self._model.generate(
                **inputs,
                **distribution,
                num_return_sequences=1 if greedy else self._preset.group,
                max_new_tokens=new_tokens,
                return_dict_in_generate=True,
                output_logits=greedy,
            )
            return out, out.sequences[:, self._preset.prompt :].cpu()

        (out, tokens), seconds = timed(generate)
        answer = {"seconds": seconds, "tokens_drawn": tokens.numel()}
        if greedy:
            logits = torch.stack(out.logits, 1).float().cpu()
            taken = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
            answer["tokens"], answer["log_probabilities"] = tokens.tolist(), taken.tolist()
        return answer | self._peak()

    def log_probabilities(self) -> dict[str, Any]:
        """As `Ours.log_probabilities`."""
        with torch.no_grad():
            return {"log_probabilities": self._score().cpu().tolist()}

    @functools.cached_property
    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW as ours: no decay. The model is put into training here."""
        self._model.train()
        self._model.model.visual.requires_grad_(not self._preset.freeze_vision)
        if self._preset.remat:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [weight for weight in self._model.parameters() if weight.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)

    def update(self) -> dict[str, Any]:
        """As `Ours.update`."""
        optimizer = self._optimizer
        old, advantages = (
            torch.tensor(np.load(self._folder / f"{name}.npy"), device=self._device) for name in ("old", "advantages")
        )

        def run():
            found = self._score()
            ratio = torch.exp(found - old)
            gain = ratio * advantages[:, None]
            bounded = torch.clamp(ratio, 1 - _CLIP, 1 + _CLIP) * advantages[:, None]
            loss = -torch.minimum(gain, bounded).mean()
            loss.backward()
            trained = optimizer.param_groups[0]["params"]
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item(), norm.item()

        (loss, norm), seconds = timed(run)
        return {"seconds": seconds, "loss": loss, "gradient_norm": norm} | self._peak()

    @functools.cached_property
    def _steps(self):
        from vlaa_jax.benchmark.trl_step import TRLSteps  # slow to import, and no other part needs it

        return TRLSteps(self._model, self._processor, self._preset, self._config, self._records, self._prompt)

    def step(self) -> dict[str, Any]:
        """One step of `GRPOTrainer.train`: data, generation, rewards, update."""
        tokens, seconds = timed(self._steps.step)
        return {"seconds": seconds, "tokens_drawn": tokens} | self._peak()

    def product(self, rows: int, inner: int, columns: int) -> dict[str, Any]:
        """As `Ours.product`."""
        how = {"dtype": self._dtype, "device": self._device}
        left, right = torch.full((rows, inner), 0.5, **how), torch.full((inner, columns), 0.5, **how)
        self._wait()

        def multiply():
            left @ right
            self._wait()

        return {"seconds": timed(multiply)[1]}

    def _messages(self, record: Record) -> list[dict[str, Any]]:
        """The conversation of a record, with its pictures in it."""
        pictures = iter([decode(image) for image in record.images])
        messages = self._prompt.messages(record)
        for message in messages:
            parts = message["content"]
            if isinstance(parts, list):
                message["content"] = [
                    {"type": "image", "image": next(pictures)} if part["type"] == "image" else part for part in parts
                ]
            else:
                message["content"] = [{"type": "text", "text": parts}]
        return messages

    def _inputs(self, prompts: int) -> dict[str, torch.Tensor]:
        """Model input of the first prompts."""
        messages = [self._messages(record) for record in self._records[:prompts]]
        inputs = self._processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return {
            name: (array.to(self._dtype) if array.is_floating_point() else array).to(self._device)
            for name, array in inputs.items()
        }

    @functools.cached_property
    def _completions(self) -> torch.Tensor:
        """`[G, C]` tokens that follow the first prompt."""
        return torch.tensor(np.load(self._folder / COMPLETIONS).astype(np.int64), device=self._device)

    @functools.cached_property
    def _rows(self) -> dict[str, torch.Tensor]:
        """Model input of these completions: for each a row with the prompt, and its picture."""
        inputs = {name: array.repeat(len(self._completions), 1) for name, array in self._inputs(1).items()}
        later = self._completions[:, :-1]  # nothing follows the last token
        inputs["input_ids"] = torch.cat([inputs["input_ids"], later], 1)
        for name, fill in (("attention_mask", torch.ones_like), ("mm_token_type_ids", torch.zeros_like)):
            inputs[name] = torch.cat([inputs[name], fill(later)], 1)
        return inputs

    def _score(self) -> torch.Tensor:
        """Log-probabilities `[G, C]` of the completions."""
        tokens = self._completions
        logits = self._model(**self._rows, logits_to_keep=tokens.shape[1], use_cache=False).logits.float()
        return -functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _peak(self) -> dict[str, int]:
        """As `Ours._peak`."""
        on_gpu = self._device.type == "cuda"
        return {"peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_host_bytes()}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    serve(Theirs)
