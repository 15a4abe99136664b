"""The checkpoint's own tokenizer and chat template."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import transformers
from etils import epath

from vlaa_jax.errors import InputError


class Tokenizer:
    """Text to ids and back, and chat messages to text.

    Attributes:
      end_tokens: ids that end a completion; the first one ends those that we write.
      chat_template: the template's source.
      sha256: of vocabulary, merges and special tokens.
    """

    def __init__(self, directory: str | epath.Path):
        directory = epath.Path(directory)
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        except (OSError, ValueError) as error:
            raise InputError(f"{directory}: no tokenizer could be loaded ({error})") from None
        if not self._tokenizer.chat_template:
            raise InputError(f"{directory}: the tokenizer has no chat template")
        self.chat_template: str = self._tokenizer.chat_template
        self.sha256 = hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        self.end_tokens = self._read_end_tokens(directory)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens that the text spells out become their ids."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of a completion: everything before its first end token."""
        tokens = list(tokens)
        for index, token in enumerate(tokens):
            if token in self.end_tokens:
                tokens = tokens[:index]
                break
        return self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def chat(self, messages: list[dict[str, Any]]) -> str:
        """Messages as text, up to where the assistant begins."""
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _read_end_tokens(self, directory: epath.Path) -> tuple[int, ...]:
        """`<|im_end|>`-like ids from generation_config.json, else config.json, else the tokenizer."""
        own = self._tokenizer.eos_token_id
        for file in ("generation_config.json", "config.json"):
            path = directory / file
            found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
            if found is not None:
                ids = [found] if isinstance(found, int) else list(found)
                # The tokenizer's own ends a turn of the chat template, so it comes first.
                return tuple(sorted(ids, key=lambda token: token != own))
        if own is None:
            raise InputError(f"{directory}: no end token in generation_config.json, config.json or the tokenizer")
        return (own,)
