"""The programs of a generator at one shape of prompts, as calls to come."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from vlaa_jax.ahead import Program, caches_of, resized, rows_of, weights_of, whole
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.processing.batches import Rows, pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.rollout.decode import admit, decode_program, empty_caches, open_slots, take
from vlaa_jax.rollout.generate import Generator
from vlaa_jax.rollout.sampler import (
    SamplingWeights,
    WholePrompts,
    copy_layer,
    copy_outside_layers,
    encode_images,
    sampling_weights,
)
from vlaa_jax.rollout.schedule import moves, prompts_at_once, row_buckets, slots_beside, steps_of_segment
from vlaa_jax.sharding import ROLLOUT, join_rows, platform, row_shards


def weights_shapes(model: Qwen2_5_VL, dtype: jnp.dtype) -> SamplingWeights:
    """Of the sampling copy, with its layout."""
    return weights_of(jax.eval_shape(functools.partial(sampling_weights, dtype=dtype), model), ROLLOUT)


def copies(model: Qwen2_5_VL, dtype: jnp.dtype) -> list[Program]:
    """What makes the sampling copy."""
    number = jax.ShapeDtypeStruct((), jnp.int32, weak_type=True)
    return [
        Program("copy of the weights outside the layers", copy_outside_layers, (model,), {"dtype": dtype}),
        Program("copy of a layer's weights", copy_layer, (model.language.layers, number), {"dtype": dtype}),
    ]


def rollout_programs(
    generator: Generator, model: Qwen2_5_VL, dtype: jnp.dtype, no_prompt: EncodedPrompt, count: int
) -> list[Program]:
    """Those of calls with `count` prompts at all shapes of a generator.

    Args:
      generator: whose programs they are.
      model: the policy.
      dtype: compute dtype.
      no_prompt: one without a token.
      count: B.
    """
    weights, out = weights_shapes(model, dtype), copies(model, dtype)
    for windows, length in itertools.product(generator.window_buckets, generator.prompt_buckets):
        prompts = resized(pad_prompts([no_prompt], length, windows), generator.batch or count)
        out += RolloutPrograms(generator, weights, prompts, count).all()
    return out


class RolloutPrograms:
    """Calls that `Generator` makes, in the order of their first use; shapes are of all chips together.

    Attributes:
      features: `[B, slots, D]` of all prompts' images.
      prefix: the slots.
      completions: of all prompts.
      rows: of a chip, when all of its slots are taken.
    """

    def __init__(self, generator: Generator, weights: SamplingWeights, prompts: Rows, count: int):
        """Describes the arrays.

        Args:
          generator: whose programs they are.
          weights: shapes of the policy.
          prompts: `[b, P]` shapes of those whose images are encoded at once (`Generator.batch`).
          count: B, all prompts of a call.
        """
        self._generator, self._weights, self._seen = generator, weights, prompts
        self._chips, (self._batch, self._length) = row_shards(), prompts.tokens.shape
        self._slots, self._parts = self._batch // self._chips, count // self._batch
        self.rows = self._slots * generator.group
        self._windows = prompts.vision.frames.shape[1]
        self._seen_features = rows_of(self.images().results())
        self.features = resized(self._seen_features, count)
        self._prompts = WholePrompts(resized(dataclasses.replace(prompts, vision=None), count), self.features)
        self.prefix, self.completions = caches_of(self.slots().results())
        number = whole(jax.ShapeDtypeStruct((), jnp.uint32))
        self._name = (number, number, rows_of(jax.ShapeDtypeStruct((count, 2), jnp.uint32)))

    def all(self) -> list[Program]:
        """Every one that a call may need."""
        generator = self._generator
        sizes = row_buckets(self._slots, generator.group, generator.row_ratio)
        pairs = moves(self._slots, sizes, refill=self._parts > 1)
        joined = [self.join()] if self._parts > 1 else []
        empty = Program(
            f"caches of {self.rows} rows behind {self._length} tokens",
            empty_caches,
            (self.prefix,),
            {"rows": self.rows, "new_tokens": generator.new_tokens},
        )
        moved = [program for old, new in pairs for program in self.move(old, new)]
        return [self.images(), *joined, self.slots(), empty, self.admission(), *map(self.decode, sizes), *moved]

    def images(self) -> Program:
        """Encodes the images of some prompts."""
        name = f"images of {self._batch} prompts with {self._windows} windows"
        return Program(name, encode_images, (self._weights, self._seen.vision))

    def join(self) -> Program:
        """Brings prompts and features of all chunks together."""
        kept = dataclasses.replace(self._seen, vision=None) if self._generator.frozen_vision else self._seen
        chunks = ([(kept, self._seen_features)] * self._parts,)
        return Program(f"{self._parts} chunks of prompts joined, {self._length} tokens", join_rows, chunks)

    def slots(self) -> Program:
        """Makes slots without prompts."""
        generator = self._generator
        static = {"slots": self._slots, "group": generator.group, "new_tokens": generator.new_tokens}
        return Program(f"slots of {self._length} tokens", open_slots, (self._weights, self._prompts), static)

    def admission(self) -> Program:
        """Runs prompts and gives them slots."""
        places = self._places(prompts_at_once(self._slots, self._length))
        arguments = (self._weights, self.prefix, self.completions, self._prompts, places, places)
        name = f"prefill of {self._length} tokens, {self._windows} windows, {_drawn(self._generator)}"
        return Program(name, admit, (*arguments, *self._name), {"sampling": self._generator.sampling})

    def decode(self, rows: int) -> Program:
        """A segment of so many rows a chip."""
        generator, places = self._generator, self._places(rows)
        arguments = (self._weights, self._prefix_beside(rows), self.caches(rows), self.completions, places, places)
        return Program(
            f"decode of {rows} rows behind {self._length} tokens, {_drawn(generator)}",
            decode_program(platform()),
            (*arguments, whole(jax.ShapeDtypeStruct((), jnp.int32)), *self._name),
            {"steps": steps_of_segment(generator.segment, generator.new_tokens), "sampling": generator.sampling},
        )

    def move(self, old: int, new: int) -> list[Program]:
        """Gives rows, and where slots become fewer these, new places; one layer after the other."""
        out = [Program(f"{old} rows moved into {new}", take, (self.caches(old)[0], self._places(new)))]
        slots = [slots_beside(rows, self._slots) for rows in (old, new)]
        if slots[0] != slots[1]:
            prefix, places = self._prefix_beside(old), self._places(slots[1])
            name = f"{slots[0]} slots of {self._length} tokens moved into {slots[1]}"
            out.append(Program(name, take, ((prefix.keys[0], prefix.values[0]), places)))
            rest = (prefix.valid, prefix.state, prefix.position)
            out.append(Program(f"{name}, but for the caches", take, (rest, places)))
        return out

    def caches(self, rows: int) -> Any:
        """Shapes of keys and values of so many rows a chip."""
        text, new_tokens = self._weights.model.config.text, self._generator.new_tokens
        shape = (rows * self._chips, text.key_value_heads, new_tokens, text.head_width)
        one = jax.ShapeDtypeStruct(shape, self.prefix.keys[0].dtype)
        return caches_of(((one, one),) * text.layers)

    def _prefix_beside(self, rows: int) -> Any:
        return caches_of(resized(self.prefix, self._chips * slots_beside(rows, self._slots)))

    def _places(self, count: int) -> jax.ShapeDtypeStruct:
        return rows_of(jax.ShapeDtypeStruct((self._chips * count,), jnp.int32))


def _drawn(generator: Generator) -> str:
    return f"{generator.group} drawn at temperature {generator.sampling.temperature:g}"
