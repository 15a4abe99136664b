"""Questions with solutions whose steps are to be scored, in fixed shapes: the prompt once, all solutions behind it."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from vlaa_jax.errors import InputError
from vlaa_jax.processing.batches import Rows, pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.processing.records import ProcessRecord, Record


@dataclasses.dataclass(frozen=True)
class SolutionShape:
    """Shape of a batch's rows.

    Attributes:
      prompt: P, tokens of a prompt.
      windows: W of its images.
      solutions: G.
      tokens: C of a solution.
      steps: S of a solution.
      length: T of the row that holds the prompt and its solutions end to end (`objectives.shared_prompt`).
    """

    prompt: int
    windows: int
    solutions: int
    tokens: int
    steps: int
    length: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solutions:
    """Questions, each with up to G solutions.

    Attributes:
      prompts: `[B, P]`.
      tokens: `[B, G, C]`.
      lengths: `[B, G]`; 0 where there is no solution.
      ends: `[B, G, S]` place of each step's last token in its solution; -1 where there is no step.
      length: T of the rows that they are laid out in.
    """

    prompts: Rows
    tokens: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray
    length: int = dataclasses.field(metadata={"static": True})


def question_of(record: Record | ProcessRecord) -> Record:
    """What a judge is shown of a record: pictures and question, without gold answer, metadata and instruction.

    So a record to be answered and a judged partial solution of it are the same conversation.
    """
    return Record(record.id, record.images, record.question, "", "open_ended")


def pad_solutions(
    prompts: Sequence[EncodedPrompt],
    solutions: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    shape: SolutionShape,
) -> Solutions:
    """Fills a batch.

    Args:
      prompts: B.
      solutions: for each prompt up to G: tokens `[C]` and ends of steps `[S]` (`Encoder.solution`).
      shape: of the rows; that a row holds its prompt and solutions is for the caller to see (`row_tokens`).

    Raises:
      InputError: a prompt or a solution is larger than its room.
    """
    count = len(prompts)
    tokens = np.zeros((count, shape.solutions, shape.tokens), np.int32)
    lengths = np.zeros((count, shape.solutions), np.int32)
    ends = np.full((count, shape.solutions, shape.steps), -1, np.int32)
    for b, of_prompt in enumerate(solutions):
        for g, (own, own_ends) in enumerate(of_prompt):
            if len(own) > shape.tokens or len(own_ends) > shape.steps:
                raise InputError(
                    f"a solution has {len(own)} tokens in {len(own_ends)} steps, but there is room for {shape.tokens} "
                    f"in {shape.steps}: raise these numbers, or skip what is longer"
                )
            tokens[b, g, : len(own)], lengths[b, g], ends[b, g, : len(own_ends)] = own, len(own), own_ends
    return Solutions(pad_prompts(prompts, shape.prompt, shape.windows), tokens, lengths, ends, shape.length)
