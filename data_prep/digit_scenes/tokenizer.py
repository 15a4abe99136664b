"""The demo's tokenizer: Qwen2.5-VL's rules and special tokens, a small vocabulary trained on the demo's own text."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

from data_prep.digit_scenes import builder, traces
from vlaa_jax.errors import InputError
from vlaa_jax.processing.conversation import completion_text, load_prompt

VOCABULARY = 640  # rows, special tokens included

# Qwen2.5's special tokens in the order of their ids; they follow the vocabulary there as here.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_CHAT_TEMPLATE = pathlib.Path(__file__).with_name("chat_template.jinja")


def build_tokenizer(
    directory: str | os.PathLike[str],
    extra_texts: Iterable[str] = (),
    *,
    vocabulary: int = VOCABULARY,
    records: int = 1500,
) -> None:
    """Trains the byte-level BPE and saves it so that `AutoTokenizer` loads it; the same input gives the same bytes.

    Args:
      directory: made if missing; receives tokenizer.json, tokenizer_config.json and chat_template.jinja.
      extra_texts: text that completions or prompts hold beside questions, traces, answers and the default prompt.
      vocabulary: rows in all. Fewer come out when the text has fewer pairs to merge.
      records: digit scenes whose text is learnt from; fixed seed.

    Raises:
      InputError: `vocabulary` is too small for the 256 bytes and the special tokens.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import AddedToken, Qwen2Tokenizer

    smallest = 256 + len(SPECIAL_TOKENS)
    if vocabulary < smallest:
        raise InputError(f"vocabulary: {vocabulary} rows, expected at least {smallest} (bytes and special tokens)")
    trained = Qwen2Tokenizer().backend_tokenizer  # an empty vocabulary behind Qwen2's NFC and split rule
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([*_texts(records), *extra_texts], trainer)
    model = json.loads(trained.to_str())["model"]
    first = len(model["vocab"])
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        added_tokens_decoder={
            first + index: AddedToken(token, special=True, normalized=False)
            for index, token in enumerate(SPECIAL_TOKENS)
        },
    )
    tokenizer.chat_template = _CHAT_TEMPLATE.read_text()
    tokenizer.save_pretrained(directory)


def _texts(records: int) -> Iterator[str]:
    """Everything the demo's conversations say, in the proportions of the enumerating style."""
    prompt = load_prompt()
    split = dataclasses.replace(builder.SPLITS["sft"], records=records, digits=(2, 7), enumerate_share=1.0)
    for record in builder.draw_split("tokenizer", split, seed=0):
        yield "\n".join(part["text"] for part in prompt.messages(record)[1]["content"] if part["type"] == "text")
        yield from (completion_text(trace, record.answer) for trace in (record.trace, traces.DIRECT))
    yield from [prompt.system] * records  # every prompt has it
