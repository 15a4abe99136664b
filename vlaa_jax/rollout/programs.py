"""The programs of a generator at one shape of prompts, as calls to come."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
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
    ContinuedPrompts,
    Prompts,
    SamplingWeights,
    WholePrompts,
    copy_layer,
    copy_outside_layers,
    encode_images,
    keep_prompts,
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


def continued_programs(
    generator: Generator,
    model: Qwen2_5_VL,
    dtype: jnp.dtype,
    no_prompt: EncodedPrompt,
    *,
    questions: int,
    starts: int,
    lengths: Sequence[int],
) -> list[Program]:
    """Those of `Generator.keep` and `Generator.go_on` at all shapes of a generator.

    Args:
      generator: whose programs they are.
      model: the policy.
      dtype: compute dtype.
      no_prompt: one without a token.
      questions: Q.
      starts: partial solutions of each question that are continued at once.
      lengths: T, of partial solutions.
    """
    weights, out = weights_shapes(model, dtype), copies(model, dtype)
    for windows, prompt in itertools.product(generator.window_buckets, generator.prompt_buckets):
        rows = resized(pad_prompts([no_prompt], prompt, windows), questions)
        for length in lengths:
            out += ContinuedPrograms(generator, weights, rows, starts, length).all()
    return out


class GroupPrograms:
    """What samples groups behind prompts of one kind and shape, in the order of first use; shapes are of all chips.

    Attributes:
      prompts: all of a call.
      prefix: the slots.
      completions: of all prompts.
      rows: of a chip, when all of its slots are taken.
    """

    def __init__(self, generator: Generator, weights: SamplingWeights, prompts: Prompts, prefill: str):
        """Describes the arrays.

        Args:
          generator: whose programs they are.
          weights: shapes of the policy.
          prompts: shapes of all prompts of a call.
          prefill: what runs when a prompt gets its slot, in words.
        """
        self._generator, self._weights, self.prompts, self._prefill = generator, weights, prompts, prefill
        count, self._length = prompts.shape
        self._chips, batch = row_shards(), min(generator.batch or count, count)
        self._slots, self._parts = batch // self._chips, count // batch
        self.rows = self._slots * generator.group
        self.prefix, self.completions = caches_of(self.slots().results())
        number = whole(jax.ShapeDtypeStruct((), jnp.uint32))
        self._name = (number, number, rows_of(jax.ShapeDtypeStruct((count, 2), jnp.uint32)))

    def sampling(self) -> list[Program]:
        """Every one that sampling may need when the prompts' images have been seen."""
        generator = self._generator
        sizes = row_buckets(self._slots, generator.group, generator.row_ratio)
        pairs = moves(self._slots, sizes, refill=self._parts > 1)
        empty = Program(
            f"caches of {self.rows} rows behind {self._length} tokens",
            empty_caches,
            (self.prefix,),
            {"rows": self.rows, "new_tokens": generator.new_tokens},
        )
        moved = [program for old, new in pairs for program in self.move(old, new)]
        return [self.slots(), empty, self.admission(), *map(self.decode, sizes), *moved]

    def slots(self) -> Program:
        """Makes slots without prompts."""
        generator = self._generator
        static = {"slots": self._slots, "group": generator.group, "new_tokens": generator.new_tokens}
        return Program(f"slots of {self._length} tokens", open_slots, (self._weights, self.prompts), static)

    def admission(self) -> Program:
        """Runs prompts and gives them slots."""
        places = self._places(prompts_at_once(self._slots, self._length))
        arguments = (self._weights, self.prefix, self.completions, self.prompts, places, places)
        name = f"prefill of {self._prefill}, {_drawn(self._generator)}"
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


class RolloutPrograms(GroupPrograms):
    """Calls that `Generator` makes for whole prompts, in the order of their first use.

    Attributes:
      features: `[B, slots, D]` of all prompts' images.
    """

    def __init__(self, generator: Generator, weights: SamplingWeights, prompts: Rows, count: int):
        """Describes the arrays.

        Args:
          generator: whose programs they are.
          weights: shapes of the policy.
          prompts: `[b, P]` shapes of those whose images are encoded at once (`Generator.batch`).
          count: B, all prompts of a call.
        """
        self._seen, self._images = prompts, _images(weights, prompts)
        self._seen_features = rows_of(self._images.results())
        self.features = resized(self._seen_features, count)
        text = resized(dataclasses.replace(prompts, vision=None), count)
        prefill = f"{prompts.tokens.shape[1]} tokens, {prompts.vision.frames.shape[1]} windows"
        super().__init__(generator, weights, WholePrompts(text, self.features), prefill)

    def all(self) -> list[Program]:
        """Every one that a call may need."""
        return [self._images, *([self.join()] if self._parts > 1 else []), *self.sampling()]

    def images(self) -> Program:
        """Encodes the images of some prompts."""
        return self._images

    def join(self) -> Program:
        """Brings prompts and features of all chunks together."""
        kept = dataclasses.replace(self._seen, vision=None) if self._generator.frozen_vision else self._seen
        chunks = ([(kept, self._seen_features)] * self._parts,)
        return Program(f"{self._parts} chunks of prompts joined, {self._length} tokens", join_rows, chunks)


class ContinuedPrograms(GroupPrograms):
    """Calls that `Generator` makes to keep questions and to go on behind them, in the order of their first use."""

    def __init__(self, generator: Generator, weights: SamplingWeights, questions: Rows, starts: int, length: int):
        """Describes the arrays.

        Args:
          generator: whose programs they are; its `batch` holds all prompts.
          weights: shapes of the policy.
          questions: `[Q, P]` shapes.
          starts: partial solutions of each question.
          length: T, of a partial solution.
        """
        self._images = _images(weights, questions)
        text, features = dataclasses.replace(questions, vision=None), rows_of(self._images.results())
        count, prompt = questions.tokens.shape
        name = f"{count} questions of {prompt} tokens kept"
        self._keep = Program(name, keep_prompts, (weights, text, features))
        numbers = rows_of(jax.ShapeDtypeStruct((count * starts,), jnp.int32))
        tokens = rows_of(jax.ShapeDtypeStruct((count * starts, length), jnp.int32))
        prompts = ContinuedPrompts(caches_of(self._keep.results()), numbers, tokens, numbers)
        super().__init__(generator, weights, prompts, f"{length} tokens behind {prompt}")

    def all(self) -> list[Program]:
        """Every one that the calls may need."""
        return [self._images, self._keep, *self.sampling()]

    def images(self) -> Program:
        """Encodes the images of the questions."""
        return self._images

    def keep(self) -> Program:
        """Runs the questions."""
        return self._keep


def _images(weights: SamplingWeights, prompts: Rows) -> Program:
    count, windows = prompts.vision.frames.shape
    return Program(f"images of {count} prompts with {windows} windows", encode_images, (weights, prompts.vision))


def _drawn(generator: Generator) -> str:
    return f"{generator.group} drawn at temperature {generator.sampling.temperature:g}"
