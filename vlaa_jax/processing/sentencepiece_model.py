"""Checkpoints whose vocabulary is a sentencepiece model (`tokenizer.model`), as InternLM's and LLaMA's are."""

import json
import re
from typing import Any

import sentencepiece
from etils import epath

from vlaa_jax.errors import InputError


class SentencePieceModel:
    """The pieces of `tokenizer.model` and the tokens that the folder's JSON files add.

    Attributes:
      chat_template: from chat_template.jinja, else tokenizer_config.json; '' when neither has one.
      special_tokens: `bos_token`, `eos_token` and so on, as tokenizer_config.json names them.
      end_token: id of `eos_token`, else the model's own end piece; None without either.
    """

    def __init__(self, directory: epath.Path):
        """Reads the folder.

        Raises:
          InputError: a damaged file, or an `eos_token` that is no token.
        """
        content = (directory / "tokenizer.model").read_bytes()
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise InputError(f"{directory / 'tokenizer.model'} is no sentencepiece model ({error})") from None
        config = _read_json(directory / "tokenizer_config.json")
        names = {**_read_json(directory / "special_tokens_map.json"), **config}
        self.special_tokens = {
            name: _text(value) for name, value in names.items() if name.endswith("_token") and _text(value)
        }
        self.chat_template = _read_template(directory, config)
        # sentencepiece never makes a control piece of text that spells it; chat templates count on it.
        control = {self._pieces.id_to_piece(i): i for i in range(len(self._pieces)) if self._pieces.is_control(i)}
        self._added: dict[str, int] = {**control, **_read_json(directory / "added_tokens.json")}
        self._added |= {_text(token): int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
        self._content = content + json.dumps(sorted(self._added.items())).encode()
        self._text_of = {i: text for text, i in self._added.items()}
        longest_first = sorted(self._added, key=lambda text: (-len(text), text))
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self.end_token = self._id(directory, "eos_token")

    def __len__(self) -> int:
        return max([len(self._pieces), *(i + 1 for i in self._text_of)])

    def encode(self, text: str) -> list[int]:
        """Ids of a text; the parts between added tokens are encoded one by one."""
        ids: list[int] = []
        for part in self._split.split(text) if self._split else [text]:
            if part in self._added:
                ids.append(self._added[part])
            elif part:
                ids += self._pieces.encode(part)
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Text of ids; those beyond the vocabulary give nothing."""
        parts: list[str] = []
        run: list[int] = []
        for token in [*tokens, None]:
            if token in self._text_of or token is None:
                parts += [self._pieces.decode(run), self._text_of.get(token, "")]
                run = []
            elif 0 <= token < len(self._pieces):
                run.append(token)
        return "".join(parts)

    def content(self) -> bytes:
        """All that token ids depend on."""
        return self._content

    def _id(self, directory: epath.Path, name: str) -> int | None:
        text = self.special_tokens.get(name)
        if text is None:
            end = self._pieces.eos_id()
            return end if end >= 0 else None
        if text in self._added:
            return self._added[text]
        piece = self._pieces.piece_to_id(text)
        if self._pieces.id_to_piece(piece) != text:
            raise InputError(f"{directory / 'tokenizer_config.json'}: {name} {text!r} is no token of the vocabulary")
        return piece


def _text(token: Any) -> str:
    """Tokens are written as text or as an object with the text under `content`."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _read_json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a JSON object: {error}") from None


def _read_template(directory: epath.Path, config: dict[str, Any]) -> str:
    path = directory / "chat_template.jinja"
    return path.read_text() if path.exists() else config.get("chat_template") or ""
