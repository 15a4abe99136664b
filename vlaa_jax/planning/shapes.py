"""Shapes of batches, dealt over the mesh as training deals them."""

from typing import Any

import jax
import jax.numpy as jnp

from vlaa_jax.ahead import rows_of
from vlaa_jax.models.qwen2_5_vl import ModelConfig
from vlaa_jax.processing.batches import Rows
from vlaa_jax.processing.solutions import Solutions, SolutionShape
from vlaa_jax.processing.vision_plan import VisionArrays


def array_shape(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    """One array."""
    return rows_of(jax.ShapeDtypeStruct(shape, dtype))


def rows_shapes(sizes: ModelConfig, count: int, length: int, windows: int) -> Rows:
    """Shapes of `count` rows of `length` tokens with patches."""
    vision = sizes.vision
    patches = (count, windows, vision.window_slots)
    rows = Rows(
        *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((count, length), (count, length))),
        positions=jax.ShapeDtypeStruct((3, count, length), jnp.int32),
        feature_index=jax.ShapeDtypeStruct((count, length), jnp.int32),
        vision=VisionArrays(
            jax.ShapeDtypeStruct((*patches, vision.patch_values), jnp.float32),
            jax.ShapeDtypeStruct(patches, jnp.bool_),
            jax.ShapeDtypeStruct((*patches, 2), jnp.int32),
            jax.ShapeDtypeStruct(patches[:2], jnp.int32),
        ),
    )
    return rows_of(rows)


def solutions_shapes(sizes: ModelConfig, count: int, shape: SolutionShape) -> Solutions:
    """Shapes of `count` questions with their solutions."""
    return Solutions(
        rows_shapes(sizes, count, shape.prompt, shape.windows),
        tokens=array_shape(jnp.int32, count, shape.solutions, shape.tokens),
        lengths=array_shape(jnp.int32, count, shape.solutions),
        ends=array_shape(jnp.int32, count, shape.solutions, shape.steps),
        length=shape.length,
    )
