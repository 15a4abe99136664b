"""The checkpoint's own tokenizer and chat template."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

import transformers
from etils import epath
from transformers.utils.chat_template_utils import render_jinja_template

from vlaa_jax.errors import InputError
from vlaa_jax.processing.sentencepiece_model import SentencePieceModel


class TokenModel(Protocol):
    """What `Tokenizer` needs of a vocabulary: `tokenizer.json` or `tokenizer.model`.

    Attributes:
      chat_template: source of the template, '' when the folder has none.
      special_tokens: texts that a template may name, such as `bos_token`.
      end_token: id of `eos_token`, None when the folder names none.
    """

    chat_template: str
    special_tokens: dict[str, Any]
    end_token: int | None

    def __len__(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...

    def content(self) -> bytes:
        """All that token ids depend on."""
        ...


class Tokenizer:
    """Text to ids and back, and chat messages to text. May be used by several threads.

    Attributes:
      end_tokens: ids that end a completion; the first one ends those that we write.
      chat_template: the template's source.
      sha256: of vocabulary, merges and special tokens.
    """

    def __init__(self, directory: str | epath.Path):
        """Loads `tokenizer.model` through sentencepiece where no `tokenizer.json` stands, else what transformers finds.

        Raises:
          InputError: no tokenizer, chat template or end token, or damaged files.
        """
        directory = epath.Path(directory)
        pieces, fast = directory / "tokenizer.model", directory / "tokenizer.json"
        self._model: TokenModel
        self._model = SentencePieceModel(directory) if pieces.exists() and not fast.exists() else _FastModel(directory)
        if not self._model.chat_template:
            raise InputError(f"{directory}: the tokenizer has no chat template")
        self.chat_template = self._model.chat_template
        self.sha256 = hashlib.sha256(self._model.content()).hexdigest()
        self.end_tokens = _read_end_tokens(directory, self._model.end_token)

    def __len__(self) -> int:
        return len(self._model)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, all of them: nothing is ever cut. Special tokens that the text spells out become their ids."""
        return self._model.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of a completion: everything before its first end token.

        Other special tokens stay visible: a completion that holds one is not silently repaired. Bytes that are no UTF-8
        become U+FFFD, ids beyond the vocabulary (the model may have more rows) nothing.
        """
        tokens = [int(token) for token in tokens]
        end = next((place for place, token in enumerate(tokens) if token in self.end_tokens), len(tokens))
        return self._model.decode(tokens[:end])

    def chat(self, messages: list[dict[str, Any]]) -> str:
        """Messages as text, up to where the assistant begins."""
        (text,), _ = render_jinja_template(
            [messages], chat_template=self.chat_template, add_generation_prompt=True, **self._model.special_tokens
        )
        return text


class _FastModel:
    """`tokenizer.json`, or older files that transformers turns into one."""

    def __init__(self, directory: epath.Path):
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
            self._model = loaded.backend_tokenizer
            self.chat_template = loaded.get_chat_template() if loaded.chat_template else ""
        except Exception as error:  # the Rust parser raises bare Exception on a damaged file
            raise InputError(f"{directory}: no tokenizer could be loaded ({error})") from None
        # Asked directly: transformers' own call sets options on the shared object, which threads must not do.
        self._model.no_truncation()
        self._model.no_padding()
        self.special_tokens = loaded.special_tokens_map
        self.end_token = loaded.eos_token_id

    def __len__(self) -> int:
        return self._model.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: list[int]) -> str:
        return self._model.decode(tokens, skip_special_tokens=False)

    def content(self) -> bytes:
        return self._model.to_str().encode()


def _read_end_tokens(directory: epath.Path, own: int | None) -> tuple[int, ...]:
    """`<|im_end|>`-like ids from generation_config.json, else config.json, else the tokenizer's own."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        try:
            found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        if found is not None:
            ids = [found] if isinstance(found, int) else list(found)
            # The tokenizer's own ends a turn of the chat template, so it comes first.
            return tuple(sorted(ids, key=lambda token: token != own))
    if own is None:
        raise InputError(f"{directory}: no end token in generation_config.json, config.json or the tokenizer")
    return (own,)
