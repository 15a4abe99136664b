"""What the checkpoint check runs on: random rows, a picture with a question, and their layout for our model."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import ModelConfig
from vlaa_jax.processing.positions import mrope_positions
from vlaa_jax.processing.vision_plan import Grid, VisionArrays, WindowGeometry, pad_windows, plan

QUESTION = "Describe this picture."
_IMAGE_TOKENS = 256  # dense attention over a larger picture costs memory and shows nothing new


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt.

    Attributes:
      name: what the row tests, for the reader of the table.
      tokens: `[P]` ids; each image has a run of image tokens.
      patches: `[patches of all images, patch values]`, see `vision_plan.plan`.
      grids: size of each image in patches.
    """

    name: str
    tokens: np.ndarray
    patches: np.ndarray
    grids: tuple[Grid, ...]


def random_rows(config: ModelConfig, rng: np.random.Generator) -> list[Row]:
    """Random tokens and patches: several images of different sizes, one image alone, text alone."""
    merge, side = config.vision.merge, config.vision.window_units
    smaller = (1, merge, merge * max(1, side - 1))
    window = (1, merge * side, merge * side)
    larger = (1, merge * (side + 1), merge * (2 * side + 1))
    tall = (1, merge * (2 * side + 1), merge)
    rows = []
    for name, grids in (
        ("three images", (smaller, window, larger)),
        ("text alone", ()),
        ("one image", (tall,)),
    ):
        tokens = _random_text(config, rng)
        for grid in grids:
            tokens += [*_image_tokens(config, grid), *_random_text(config, rng)]
        patches = rng.standard_normal((sum(map(math.prod, grids)), config.vision.patch_values), np.float32)
        rows.append(Row(name, np.asarray(tokens), patches, grids))
    return rows


def image_row(directory: str, config: ModelConfig, image: str, rng: np.random.Generator) -> Row:
    """A picture through transformers' image processor, with a question through the directory's chat template.

    A directory without tokenizer or template gets random text around the picture.
    """
    import PIL.Image
    from transformers import Qwen2VLImageProcessorPil

    vision = config.vision
    if (epath.Path(directory) / "preprocessor_config.json").exists():
        processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
    else:
        processor = Qwen2VLImageProcessorPil(
            patch_size=vision.patch, temporal_patch_size=vision.temporal_patch, merge_size=vision.merge
        )
    sizes = (processor.patch_size, processor.temporal_patch_size, processor.merge_size)
    if sizes != (vision.patch, vision.temporal_patch, vision.merge):
        raise InputError(
            f"{directory}: preprocessor_config.json has patch, temporal patch and merge sizes {sizes}, "
            f"config.json {(vision.patch, vision.temporal_patch, vision.merge)}"
        )
    limit = _IMAGE_TOKENS * (vision.patch * vision.merge) ** 2  # pixels
    size = {key: min(processor.size[key], limit) for key in ("shortest_edge", "longest_edge")}
    try:
        with PIL.Image.open(image) as opened:
            inputs = processor(images=opened.convert("RGB"), size=size, return_tensors="np")
    except (OSError, ValueError) as error:
        raise InputError(f"{image} is not a picture that can be used: {error}") from None
    [grid] = (tuple(map(int, grid)) for grid in inputs["image_grid_thw"])
    tokens = _question(directory, config, grid)
    if tokens is None:
        tokens = [*_random_text(config, rng), *_image_tokens(config, grid), *_random_text(config, rng)]
    return Row(epath.Path(image).name, np.asarray(tokens), inputs["pixel_values"].astype(np.float32), (grid,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows padded on the right: `tokens`, `segments`, `feature_index` `[B, T]`, `positions` `[3, B, T]`, `vision`."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    feature_index: np.ndarray
    vision: VisionArrays


def lay_out(rows: Sequence[Row], config: ModelConfig, continuations: Sequence[np.ndarray]) -> Batch:
    """The model's arrays for rows and what follows them. An image token in a continuation is text like any other."""
    geometry = WindowGeometry(config.vision.merge, config.vision.window_units)
    shape = (len(rows), max(len(r.tokens) + len(c) for r, c in zip(rows, continuations, strict=True)))
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "segments")}
    positions, index, plans = np.zeros((3, *shape), np.int32), np.full(shape, -1, np.int32), []
    for b, (row, continuation) in enumerate(zip(rows, continuations, strict=True)):
        tokens = np.concatenate([row.tokens, continuation])
        length = len(tokens)
        is_image = (tokens == config.image_token) & (np.arange(length) < len(row.tokens))
        arrays, slots = plan(row.patches, row.grids, geometry)
        plans.append(arrays)
        batch["tokens"][b, :length], batch["segments"][b, :length] = tokens, 1
        index[b, :length][is_image] = slots
        positions[:, b, :length] = mrope_positions(is_image, row.grids, merge=config.vision.merge)
    vision = pad_windows(plans, max(len(arrays.frames) for arrays in plans))
    return Batch(**batch, positions=positions, feature_index=index, vision=vision)


def _random_text(config: ModelConfig, rng: np.random.Generator) -> list[int]:
    special = (config.image_token, config.video_token, config.vision_start_token, config.vision_end_token)
    drawn = rng.integers(config.text.vocabulary, size=int(rng.integers(5, 20)))
    return [int(token) for token in drawn if token not in special] or [0]


def _image_tokens(config: ModelConfig, grid: Grid) -> list[int]:
    count = math.prod(grid) // config.vision.merge**2
    return [config.vision_start_token, *[config.image_token] * count, config.vision_end_token]


def _question(directory: str, config: ModelConfig, grid: Grid) -> list[int] | None:
    """Ids of the question about one image, None without tokenizer files or chat template."""
    from transformers import AutoTokenizer

    if not any((epath.Path(directory) / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of {directory} cannot be loaded: {error}") from None
    if tokenizer.chat_template is None:
        return None
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if tokens.count(config.image_token) != 1:
        raise InputError(f"{directory}: the chat template writes no token {config.image_token} for an image")
    if max(tokens) >= config.text.vocabulary:
        raise InputError(
            f"{directory}: the tokenizer gives id {max(tokens)}, the model has {config.text.vocabulary} rows"
        )
    place = tokens.index(config.image_token)
    count = math.prod(grid) // config.vision.merge**2
    return [*tokens[:place], *[config.image_token] * count, *tokens[place + 1 :]]
