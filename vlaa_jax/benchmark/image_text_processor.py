"""Qwen2.5-VL's processor where torchvision is not installed."""

import pathlib
from typing import Any

from transformers import AutoTokenizer, ProcessorMixin, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """Transformers' own processor without its part for videos, which alone needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_directory(cls, directory: pathlib.Path) -> "ImageTextProcessor":
        """The processor of a Hugging Face directory."""
        tokenizer = AutoTokenizer.from_pretrained(directory)
        return cls(Qwen2VLImageProcessorPil.from_pretrained(directory), tokenizer, tokenizer.get_chat_template())
