"""Rotary embeddings: three position axes in the language model, two in the vision tower.

Positions themselves are made on the host (`processing/positions.py`, `processing/vision_plan.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rotation(NamedTuple):
    """Cosine and sine `[..., H / 2]` of the angles, taken once and used by every layer."""

    cos: jax.Array
    sin: jax.Array


def language_rotation(positions: jax.Array, section: tuple[int, int, int], head_width: int, theta: float) -> Rotation:
    """M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Frequency i follows the time, height or width position, as `section` shares out the H / 2 frequencies.

    Args:
      positions: `[3, ...]` integer positions.

    Returns:
      `[..., H / 2]` float32.
    """
    frequencies = theta ** (-np.arange(0, head_width, 2, dtype=np.float32) / head_width)
    axis = np.repeat(np.arange(3), section)
    angles = jnp.moveaxis(positions.astype(jnp.float32), 0, -1)[..., axis] * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def vision_rotation(ids: jax.Array, head_width: int, theta: float) -> Rotation:
    """The tower's 2-D rotary embedding.

    Args:
      ids: `[..., 2]` row and column of each patch in its frame.

    Returns:
      `[..., H / 2]` float32: the row's frequencies, then the column's.
    """
    half = head_width // 2
    frequencies = theta ** (-np.arange(0, half, 2, dtype=np.float32) / half)
    angles = ids.astype(jnp.float32)[..., None] * frequencies
    angles = angles.reshape(*ids.shape[:-1], -1)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates heads `[..., T, N, H]`; element i pairs with element i + H / 2."""
    cos, sin = rotation.cos[..., None, :], rotation.sin[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
