"""Records to arrays, once: the same arrays serve sampling, log-probabilities and update."""

import dataclasses

import numpy as np

from vlaa_jax.errors import InputError
from vlaa_jax.processing.conversation import Prompt
from vlaa_jax.processing.images import ImageProcessor, Resize, decode, read_size
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

    def sizes(self, record: Record) -> tuple[int, int]:
        """Length of the prompt in tokens and number of its windows, without decoding an image.

        Raises:
          InputError: as `encode`, except for what only decoding can find.
        """
        resizes = [self.images.resize(read_size(image)) for image in record.images]
        grids = [self.images.grid(resize) for resize in resizes]
        return len(self._tokens(record, grids)), sum(self.geometry.windows(grid) for grid in grids)

    def encode(self, record: Record) -> EncodedPrompt:
        """All arrays of a record's prompt.

        Raises:
          InputError: an undecodable image, or a text whose image marks do not fit its images; names the record.
        """
        try:
            images = [decode(image) for image in record.images]
        except InputError as error:
            raise InputError(f"record {record.id}: {error}") from None
        resizes = tuple(self.images.resize(image.size) for image in images)
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
        """Ids of a completion that we write (SFT targets, references), with its end token."""
        return np.asarray([*self.tokenizer.encode(text), self.tokenizer.end_tokens[0]], np.int32)

    def _tokens(self, record: Record, grids: list[Grid]) -> np.ndarray:
        ids = self.tokenizer.encode(self.tokenizer.chat(self.prompt.messages(record)))
        marks = ids.count(self.image_token)
        if marks != len(grids):
            raise InputError(f"record {record.id}: its text holds {marks} image placeholders for {len(grids)} images")
        counts = iter([self.geometry.tokens(grid) for grid in grids])
        repeats = [next(counts) if token == self.image_token else 1 for token in ids]
        return np.repeat(np.asarray(ids, np.int32), repeats)
