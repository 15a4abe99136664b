"""Teaches the demo policy's vision tower to find digits, before it sees any language.

A published Qwen2.5-VL starts from a tower that saw millions of pictures; a random one learns to tell digits apart much
faster from labels of its own than through a language model. For every merged token a linear head says
whether a digit's centre lies in it, which one, and where in the picture its box is: as numbers, and as the tens that
the language model will have to write. The head is thrown away.
"""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from flax import nnx

from data_prep.digit_scenes import glyphs, scenes
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.models.qwen2_5_vl.vision import VisionTower
from vlaa_jax.processing.images import ImageProcessor, decode
from vlaa_jax.processing.vision_plan import VisionArrays, WindowGeometry, pad_windows, plan

PICTURES = 64  # of an update
_DIGITS = (2, 6)  # least and greatest number in a picture
_RATE, _FLOOR, _WARMUP = 2e-3, 1e-4, 0.04  # learning rates, and the share of updates that warm up
_TENS = 17  # of a coordinate: pictures have up to 168 pixels a side
_EMPTY = 10  # class of a token without a digit's centre; a slot without a token is -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
    """What the head should say.

    Attributes:
      classes: `[B, S]` for each merged slot the digit whose centre it holds, 10 for none, -1 where there is no token.
      boxes: `[B, S, 4]` sides x1, y1, x2, y2 of that digit from the picture's centre, in token sides; 0 without one.
      tens: `[B, S, 4]` the same sides in tens of pixels, rounded down; 0 without one.
    """

    classes: np.ndarray
    boxes: np.ndarray
    tens: np.ndarray


class _Detector(nnx.Module):
    """The tower under a linear head: 10 digits, none, four sides, and their tens."""

    def __init__(self, tower: VisionTower, seed: int):
        self.tower = tower
        width = tower.config.output_width
        self.head = nnx.Param(jax.random.normal(jax.random.key(seed), (width, _EMPTY + 5 + 4 * _TENS)) * width**-0.5)


def train_tower(model: Qwen2_5_VL, processor: ImageProcessor, *, updates: int, seed: int) -> Qwen2_5_VL:
    """The model with a trained tower.

    Args:
      model: any weights; all but the tower's stay.
      processor: of the checkpoint.
      updates: each takes `PICTURES` fresh pictures of training glyphs.
      seed: of the head and the pictures.
    """
    detector = _Detector(model.vision, seed)
    optimizer = _optimizer(updates)
    state = jax.jit(optimizer.init)(detector)

    @jax.jit
    def update(detector, state, pictures, labels):
        gradients, measures = jax.grad(_loss, has_aux=True)(detector, pictures, labels)
        changes, state = optimizer.update(gradients, state, detector)
        return optax.apply_updates(detector, changes), state, measures

    vision = model.config.vision
    geometry = WindowGeometry(vision.merge, vision.window_units)
    with ThreadPoolExecutor(1) as pool, tqdm.tqdm(total=updates, desc="tower", mininterval=5) as progress:
        draw = lambda number: draw_batch(np.random.default_rng([seed, number]), processor, geometry)  # noqa: E731
        ahead = pool.submit(draw, 0)
        for number in range(1, updates + 1):
            batch, ahead = ahead.result(), pool.submit(draw, number)
            detector, state, measures = update(detector, state, *batch)
            if number % 25 == 0 or number == updates:
                progress.set_postfix({name: f"{value:.3f}" for name, value in measures.items()}, refresh=False)
            progress.update()
    pictures, labels = ahead.result()
    model.vision = _like_text(detector.tower, pictures, labels.classes >= 0, model.language.embedding[...])
    return model


def _like_text(tower: VisionTower, pictures: VisionArrays, tokens: np.ndarray, embedding: jax.Array) -> VisionTower:
    """The tower with features of mean 0 and of the size of text embeddings; a linear head would not notice.

    As they leave training the features are one large vector, the same for all tokens, and a small part that says what
    is there; next to it nothing that a layer of the language model adds would count.
    """
    features = jax.jit(lambda tower, pictures: tower(pictures, jnp.float32, "none"))(tower, pictures)[tokens]
    mean = features.mean(0)
    scale = jnp.sqrt((embedding**2).mean() / ((features - mean) ** 2).mean())
    tower.merger_out[...] *= scale
    tower.merger_out_bias[...] = (tower.merger_out_bias[...] - mean) * scale
    return tower


def _optimizer(updates: int) -> optax.GradientTransformation:
    """AdamW, warm-up, cosine; norms and biases do not decay."""
    warmup = math.ceil(_WARMUP * updates)
    ramp = lambda count: _RATE * (count + 1) / max(1, warmup)  # noqa: E731
    decay = optax.cosine_decay_schedule(_RATE, max(1, updates - warmup), alpha=_FLOOR / _RATE)

    def decayed(tree):
        names = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), tree)
        return jax.tree.map(lambda name: "norm" not in name and "bias" not in name, names)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.join_schedules([ramp, decay], [warmup]), b2=0.98, weight_decay=0.01, mask=decayed),
    )


def _loss(detector: _Detector, pictures: VisionArrays, labels: Labels) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy over tokens, the rare ones with a digit counted again; absolute error and tens of the boxes."""
    output = detector.tower(pictures, jnp.float32, "none") @ detector.head[...]
    logits, sides, tens = jnp.split(output, (_EMPTY + 1, _EMPTY + 5), axis=-1)
    tens = tens.reshape(*sides.shape, _TENS)
    token = labels.classes >= 0
    digit = token & (labels.classes < _EMPTY)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels.classes, 0))
    error = jnp.abs(sides - labels.boxes).sum(-1)
    written = optax.softmax_cross_entropy_with_integer_labels(tens, labels.tens).mean(-1)
    loss = _mean(entropy, token) + 0.5 * _mean(entropy, digit) + 0.25 * (_mean(error, digit) + _mean(written, digit))
    right = _mean(logits.argmax(-1) == labels.classes, digit)
    tens_right = _mean((tens.argmax(-1) == labels.tens).mean(-1), digit)
    measures = {"digits_right": right, "off_by": _mean(error, digit) / 4, "tens_right": tens_right}
    return loss, {"loss": loss} | measures


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    return (values * where).sum() / where.sum()


def draw_batch(
    generator: np.random.Generator, processor: ImageProcessor, geometry: WindowGeometry
) -> tuple[VisionArrays, Labels]:
    """`PICTURES` scenes of training glyphs, with their labels."""
    windows = max(geometry.windows(processor.grid(processor.resize(size))) for size in scenes.PLAIN.sizes)
    slots = windows * geometry.window_units**2
    plans, classes = [], np.full((PICTURES, slots), -1, np.int32)
    boxes, tens = np.zeros((PICTURES, slots, 4), np.float32), np.zeros((PICTURES, slots, 4), np.int32)
    pools = glyphs.glyphs_by_value("train")
    for row in range(PICTURES):
        values = generator.integers(0, 10, generator.integers(_DIGITS[0], _DIGITS[1] + 1))
        file, scene = scenes.compose(generator, [int(generator.choice(pools[v])) for v in values], scenes.PLAIN)
        image = decode(file)
        grid = processor.grid(processor.resize(image.size))
        arrays, slot = plan(processor.patches([image]), [grid], geometry)
        plans.append(arrays)
        classes[row, slot] = _EMPTY
        side, columns = processor.factor, grid[2] // geometry.merge
        middle = np.tile(image.size, 2) / 2
        for glyph in scene:
            x, y = (int(c // side) for c in glyph.centre)
            place = slot[y * columns + x]
            classes[row, place] = glyph.value
            boxes[row, place] = (np.array(glyph.box) - middle) / side
            tens[row, place] = np.array(glyph.box) // 10
    return pad_windows(plans, windows), Labels(classes, boxes, tens)
