"""Does a checkpoint read the same here as in transformers?

Both implementations read the same directory and run in float32, one in memory at a time, on the same inputs: random
tokens with images smaller than, as large as and larger than an attention window, text alone, and on request one real
image with a question. Compared are vision features, three-axis positions, logits at every token of prompt and
continuation, and the greedy continuation.

What agreement proves: names, orientation and dtype of every tensor, the sizes in `config.json`, the order of patches,
window layout, positions and masks are read as transformers reads them. What it does not prove: the accuracy of bfloat16
compute, the attention kernels of an accelerator, the resize rule (images pass through transformers' own processor) and
videos (transformers 5 changed the positions of the text after them).
"""

import dataclasses
import gc
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.parity_inputs import Batch, Row, image_row, lay_out, random_rows
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, hf
from vlaa_jax.models.qwen2_5_vl.config import read_config

CONTINUATION = 64  # greedy tokens
# As a share of the largest value. Rounding alone reached 7e-5 on 36 layers of random weights; a rotary base that is off
# by one per cent gave 2e-4 and more on the smallest models.
TOLERANCE = 1e-4
NEAR_TIE = 1e-4  # logits; two choices closer than this are the same to rounding


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What one implementation makes of one row and the T = P + C - 1 tokens that are fed.

    Attributes:
      features: `[image tokens, D]` in reading order.
      positions: `[3, T]`.
      logits: `[T, V]`.
      greedy: `[C]` the largest logit's token after the prompt and after each token of the continuation.
    """

    features: np.ndarray
    positions: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest absolute difference, and the same as a share of the largest absolute value."""

    absolute: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first token at which a row's greedy continuations differ.

    Attributes:
      token: its place in the continuation, from 0.
      ours, theirs: the two ids.
      our_margin, their_margin: by how much each implementation prefers its own choice to the other's, in logits.
    """

    row: str
    token: int
    ours: int
    theirs: int
    our_margin: float
    their_margin: float

    @property
    def near_tie(self) -> bool:
        return max(self.our_margin, self.their_margin) <= NEAR_TIE


@dataclasses.dataclass(frozen=True)
class Report:
    """The comparison of all rows; `positions` is the largest difference of any position."""

    checkpoint: str
    rows: tuple[str, ...]
    tolerance: float
    features: Difference
    positions: int
    logits: Difference
    divergences: tuple[Divergence, ...]

    @property
    def passed(self) -> bool:
        """Within the tolerance; continuations may part only at a near tie. A NaN anywhere fails."""
        close = all(d.relative <= self.tolerance for d in (self.features, self.logits))
        return close and self.positions == 0 and all(d.near_tie for d in self.divergences)

    def table(self) -> str:
        """For people."""
        lines = [f"{'':18}{'largest difference':>20}{'of largest value':>18}{'tolerance':>12}"]
        for name, difference in (("vision features", self.features), ("logits", self.logits)):
            numbers = f"{difference.absolute:20.2e}{difference.relative:18.2e}{self.tolerance:12.0e}"
            lines.append(f"{name:18}{numbers}")
        lines.append(f"{'positions':18}{self.positions:20d}{'':18}{0:12d}")
        equal = len(self.rows) - len(self.divergences)
        lines.append(f"greedy continuation of {CONTINUATION} tokens: equal in {equal} of {len(self.rows)} rows")
        for d in self.divergences:
            tie = " (a tie to rounding)" if d.near_tie else ""
            lines.append(
                f"  {d.row}: first differs at token {d.token}: ours {d.ours} by {d.our_margin:.2e}, "
                f"theirs {d.theirs} by {d.their_margin:.2e} logits{tie}"
            )
        lines.append("the checkpoint reads the same" if self.passed else "the checkpoint DOES NOT read the same")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same for programs; a number that is not finite becomes null."""
        raw = dataclasses.asdict(self) | {"passed": self.passed, "continuation": CONTINUATION}
        for divergence, found in zip(raw["divergences"], self.divergences, strict=True):
            divergence["near_tie"] = found.near_tie
        return json.dumps(_finite(raw), indent=2, allow_nan=False) + "\n"


def check_checkpoint(directory: str, image: str | None = None, tolerance: float = TOLERANCE) -> Report:
    """Compares both implementations on one directory.

    Args:
      directory: a Hugging Face directory; tokenizer files are used if it has them.
      image: file of a picture to ask about.
      tolerance: largest allowed difference of features and logits, as a share of their largest value.

    Raises:
      InputError: torch is missing, not a checkpoint of this architecture, an unreadable image or tokenizer.
    """
    hf.read_layout(directory)  # transformers would fill what is missing with random numbers
    _import_torch()
    config = read_config(directory)
    rng = np.random.default_rng(0)
    rows = random_rows(config, rng)
    if image is not None:
        rows.append(image_row(directory, config, image, rng))
    theirs = run_transformers(directory, config, rows)
    ours = run_ours(directory, rows, [output.greedy[:-1] for output in theirs])
    return compare(directory, rows, ours, theirs, tolerance)


def run_transformers(directory: str, config: ModelConfig, rows: Sequence[Row]) -> list[Outputs]:
    """transformers' outputs row by row, without padding; the continuation is decoded with its own cache."""
    torch = _import_torch()
    import transformers

    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    ).eval()
    seen: dict[str, list[np.ndarray]] = {}
    model.model.visual.register_forward_hook(
        lambda module, arguments, output: seen["features"].append(output.pooler_output.numpy())
    )
    # What the rotary embedding is given, not what a helper would compute.
    model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda module, arguments: seen["positions"].append(arguments[1].expand(3, -1, -1)[:, 0].numpy())
    )
    outputs = []
    for row in rows:
        seen.update(features=[np.zeros((0, config.text.width), np.float32)], positions=[])
        model.model.rope_deltas = None  # it would carry over from the row before
        inputs: dict[str, Any] = {"input_ids": torch.tensor(row.tokens)[None]}
        if row.grids:
            # Without the token types transformers falls back to plain positions, silently.
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == config.image_token).int()
            inputs["pixel_values"] = torch.tensor(row.patches)
            inputs["image_grid_thw"] = torch.tensor(row.grids)
        logits, greedy, cache = [], [], None
        with torch.inference_mode():
            while len(greedy) < CONTINUATION:
                output = model(**inputs, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                logits.append(output.logits[0].numpy())
                greedy.append(int(logits[-1][-1].argmax()))
                inputs = {"input_ids": torch.tensor([greedy[-1:]])}
        outputs.append(
            Outputs(
                np.concatenate(seen["features"]),
                np.concatenate(seen["positions"], axis=1),
                np.concatenate(logits),
                np.asarray(greedy),
            )
        )
    del model
    gc.collect()  # modules and hooks form cycles; the memory is needed for our model
    return outputs


def run_ours(directory: str, rows: Sequence[Row], continuations: Sequence[np.ndarray]) -> list[Outputs]:
    """Our outputs for the rows as one padded batch, each followed by the `[C - 1]` tokens of a continuation.

    One pass is enough for the greedy continuation: attention is causal, so the largest logit after each token of theirs
    is the token that we would choose there, up to and including the first difference.
    """
    model = hf.load(directory)
    batch = lay_out(rows, model.config, continuations)
    with jax.default_matmul_precision("highest"):
        features, states = _features_and_states(model, batch)
        outputs = []
        for b, row in enumerate(rows):
            length = len(row.tokens) + len(continuations[b])
            logits = np.asarray(_logits(model, states[b]))[:length]
            slots = batch.feature_index[b][batch.feature_index[b] >= 0]
            greedy = logits[len(row.tokens) - 1 :].argmax(axis=-1)
            outputs.append(Outputs(np.asarray(features[b][slots]), batch.positions[:, b, :length], logits, greedy))
    return outputs


@jax.jit
def _features_and_states(model: Qwen2_5_VL, batch: Batch) -> tuple[jax.Array, jax.Array]:
    features = model.vision(batch.vision, jnp.float32)
    return features, model(batch.tokens, batch.positions, Causal(batch.segments), features, batch.feature_index)


@jax.jit
def _logits(model: Qwen2_5_VL, states: jax.Array) -> jax.Array:
    return states @ model.language.head[...].T


def compare(
    directory: str, rows: Sequence[Row], ours: Sequence[Outputs], theirs: Sequence[Outputs], tolerance: float
) -> Report:
    """Largest differences over all rows, and each row's first diverging token."""
    divergences = []
    for row, a, b in zip(rows, ours, theirs, strict=True):
        [different] = np.nonzero(a.greedy != b.greedy)
        if different.size:
            token = int(different[0])
            place, mine, other = len(row.tokens) - 1 + token, int(a.greedy[token]), int(b.greedy[token])
            margins = (
                float(a.logits[place, mine] - a.logits[place, other]),
                float(b.logits[place, other] - b.logits[place, mine]),
            )
            divergences.append(Divergence(row.name, token, mine, other, *margins))
    return Report(
        checkpoint=str(directory),
        rows=tuple(row.name for row in rows),
        tolerance=tolerance,
        features=_difference([o.features for o in ours], [o.features for o in theirs]),
        positions=max(int(np.abs(a.positions - b.positions).max()) for a, b in zip(ours, theirs, strict=True)),
        logits=_difference([o.logits for o in ours], [o.logits for o in theirs]),
        divergences=tuple(divergences),
    )


def _difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Difference:
    # np.max passes a NaN on where Python's max may drop it.
    absolute = float(np.max([np.abs(a - b).max(initial=0) for a, b in zip(ours, theirs, strict=True)]))
    largest = float(np.max([np.abs(b).max(initial=0) for b in theirs]))
    return Difference(absolute, absolute / largest if largest else absolute)


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            "the comparison needs torch: install it with `pip install -e '.[test]'` in the repository"
        ) from None
    return torch


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
