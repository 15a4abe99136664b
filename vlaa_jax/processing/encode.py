"""Records to arrays, once: the same arrays serve sampling, log-probabilities and update.

Nothing here or in `batches` shortens a prompt or a completion, so no run of image tokens is ever cut: what is too long
is skipped by the index with a reason (`index.usable`), and refused where rows are filled.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from vlaa_jax.errors import InputError
from vlaa_jax.processing.conversation import Prompt
from vlaa_jax.processing.images import ImageProcessor, Resize, decode
from vlaa_jax.processing.positions import mrope_positions
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.processing.vision_plan import Grid, VisionArrays, WindowGeometry, plan


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, unpadded.

    Attributes:
      tokens: `[P]`, image placeholders expanded to one a merged token.
      positions: `[3, P]`.
      feature_index: `[P]` slot of each vision token among the row's merged slots, -1 on text.
      vision: the row's patches; W = 0 for text alone.
      resizes: how each image was scaled.
    """

    tokens: np.ndarray
    positions: np.ndarray
    feature_index: np.ndarray
    vision: VisionArrays
    resizes: tuple[Resize, ...]


class Encoder:
    """A checkpoint's tokenizer, chat template, image rule and window geometry under one prompt."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        images: ImageProcessor,
        prompt: Prompt,
        geometry: WindowGeometry,
        *,
        image_token: int,
    ):
        self.tokenizer = tokenizer
        self.images = images
        self.prompt = prompt
        self.geometry = geometry
        self.image_token = image_token

    @property
    def no_vision(self) -> VisionArrays:
        """The patches of a text without images."""
        return plan(np.zeros((0, self.images.patch_values), np.float32), [], self.geometry)[0]

    @property
    def no_prompt(self) -> EncodedPrompt:
        """One without a token: the shapes and dtypes of all."""
        nothing = np.zeros(0, np.int32)
        return EncodedPrompt(nothing, np.zeros((3, 0), np.int32), nothing, self.no_vision, ())

    def sizes(self, record: Record) -> tuple[int, int]:
        """Length of the prompt in tokens and number of its windows; cuts no patches.

        Raises:
          InputError: as `encode`.
        """
        _, resizes = self._images(record)
        grids = [self.images.grid(resize) for resize in resizes]
        return len(self._tokens(record, grids)), sum(self.geometry.windows(grid) for grid in grids)

    def encode(self, record: Record) -> EncodedPrompt:
        """All arrays of a record's prompt.

        Raises:
          InputError: an undecodable image, one that is more than 200 times as long as wide, or a text whose image marks
            or placeholders do not fit its images; names the record.
        """
        images, resizes = self._images(record)
        grids = [self.images.grid(resize) for resize in resizes]
        tokens = self._tokens(record, grids)
        values = self.images.patches(images) if images else np.zeros((0, self.images.patch_values), np.float32)
        vision, slots = plan(values, grids, self.geometry)
        is_vision = tokens == self.image_token
        feature_index = np.full(len(tokens), -1, np.int32)
        feature_index[is_vision] = slots
        positions = mrope_positions(is_vision, grids, merge=self.geometry.merge)
        return EncodedPrompt(tokens, positions, feature_index, vision, resizes)

    def completion(self, text: str) -> np.ndarray:
        """Ids `[C]` of a completion that we write (SFT targets, references), with its end token.

        Raises:
          InputError: the text spells out an end token or an image placeholder, which no completion may hold.
        """
        return np.asarray([*self._written(text), self.tokenizer.end_tokens[0]], np.int32)

    def solution(self, steps: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids `[C]` of a solution that is to be scored, and the place `[S]` of each step's last token, a line end.

        Each step becomes ids by itself, so those of a prefix do not depend on what follows it.

        Args:
          steps: of `steps.split_steps`.

        Raises:
          InputError: as `completion`.
        """
        parts = [self._written(f"{step}\n") for step in steps]
        tokens = np.asarray([token for part in parts for token in part], np.int32)
        return tokens, np.cumsum([len(part) for part in parts], dtype=np.int32) - 1

    def _written(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)
        for token in (*self.tokenizer.end_tokens, self.image_token):
            if token in ids:
                raise InputError(f"a completion's text holds the special token {token}: {text[:80]!r}")
        return ids

    def _images(self, record: Record) -> tuple[list[Image], tuple[Resize, ...]]:
        try:
            images = [decode(image) for image in record.images]
            return images, tuple(self.images.resize(image.size) for image in images)
        except InputError as error:
            raise InputError(f"record {record.id}: {error}") from None

    def _tokens(self, record: Record, grids: list[Grid]) -> np.ndarray:
        ids = self.tokenizer.encode(self.tokenizer.chat(self.prompt.messages(record)))
        marks = ids.count(self.image_token)
        if marks != len(grids):
            raise InputError(f"record {record.id}: its text holds {marks} image placeholders for {len(grids)} images")
        counts = iter([self.geometry.tokens(grid) for grid in grids])
        repeats = [next(counts) if token == self.image_token else 1 for token in ids]
        return np.repeat(np.asarray(ids, np.int32), repeats)
