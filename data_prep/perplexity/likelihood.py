"""Log-likelihood of reference completions under a checkpoint, in batches of few shapes."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.perplexity.scores import Score
from vlaa_jax.errors import InputError
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import Qwen2_5_VL
from vlaa_jax.objectives.log_probabilities import token_log_probabilities
from vlaa_jax.processing.batches import Rows, Targets, bucket, pack
from vlaa_jax.processing.buckets import choose_buckets
from vlaa_jax.processing.conversation import completion_text
from vlaa_jax.processing.encode import Encoder
from vlaa_jax.processing.index import Index
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.sharding import ROWS, TRAINING, P, over_rows, place_rows, row_specs, specs

_MOST_LENGTHS = 4  # programs


@dataclasses.dataclass(frozen=True)
class Batch:
    """Records that are scored together, one a row.

    Attributes:
      places: of the records in the shard set.
      length, windows, targets: room of a row, as in `batches.pack`.
    """

    places: tuple[int, ...]
    length: int
    windows: int
    targets: int


def plan_batches(index: Index, size: int) -> list[Batch]:
    """All usable records in batches of `size`, of one shape for each bucket of lengths.

    The longest come first: if memory does not suffice, that shows at once.
    """
    lengths = index.prompt + index.completion
    buckets = choose_buckets(lengths[index.good], _MOST_LENGTHS, drawn=1, multiple=64)
    of_bucket: dict[int, list[int]] = {length: [] for length in reversed(buckets)}
    for place in index.good.tolist():
        of_bucket[bucket(int(lengths[place]), buckets, "a record's length")].append(place)
    batches = []
    for length, places in of_bucket.items():
        windows = -(-max(1, index.windows[places].max()) // 4) * 4
        room = int(windows), int(index.completion[places].max())
        batches += [Batch(tuple(places[at : at + size]), length, *room) for at in range(0, len(places), size)]
    return batches


class Scorer:
    """A checkpoint's model with the records that it judges."""

    def __init__(self, model: Qwen2_5_VL, encoder: Encoder, source: RecordSource, *, rows: int, span: str):
        """Compiles and reads nothing yet.

        Args:
          model: computes in the dtype of its embedding.
          encoder: the checkpoint's.
          source: the records.
          rows: of a batch, a multiple of what the chips share evenly.
          span: what of a completion is scored, see `span_tokens`.
        """
        self._model, self._encoder, self._source = model, encoder, source
        self._rows, self._span = rows, span

    def arrays(self, batch: Batch) -> tuple[list[str], tuple[Rows, Targets]]:
        """The ids and the input of a batch, on the host."""
        records = [self._source[place] for place in batch.places]
        examples = [[(self._encoder.encode(r), span_tokens(self._encoder, r, self._span))] for r in records]
        packed = pack(
            examples,
            count=self._rows,
            length=batch.length,
            windows=batch.windows,
            targets=batch.targets,
            slots_per_window=self._encoder.geometry.window_units**2,
            no_vision=self._encoder.no_vision,
        )
        return [record.id for record in records], packed

    def score(self, ids: Sequence[str], arrays: tuple[Rows, Targets]) -> list[Score]:
        """The scores of a batch.

        Raises:
          InputError: a likelihood is not finite; names the record.
        """
        found = np.asarray(log_probabilities(self._model, *place_rows(arrays)), np.float64)
        scores = []
        for record, values, segments in zip(ids, found, arrays[1].segments, strict=False):
            own = values[segments > 0]
            if not np.isfinite(own).all():
                raise InputError(f"record {record}: the checkpoint gives its completion no finite likelihood")
            scores.append(Score(record, len(own), round(float(-own.mean()), 6)))
        return scores


def span_tokens(encoder: Encoder, record: Record, span: str) -> np.ndarray:
    """The tokens of a record's reference completion that are scored: its first ones, as many as the span has.

    `answer` is all of it with its end token, what SFT learns; `think` ends where the think block's end tag begins.
    """
    text = completion_text(record.trace, record.answer)
    tokens = encoder.completion(text)
    if span == "answer":
        return tokens
    # Cut text may end in another token than the whole has there; such a one is left out.
    head = encoder.tokenizer.encode(text[: text.rindex("</think>")])
    shared = next((i for i, (a, b) in enumerate(zip(tokens, head, strict=False)) if a != b), len(head))
    return tokens[:shared]


@jax.jit
def log_probabilities(model: Qwen2_5_VL, rows: Rows, targets: Targets) -> jax.Array:
    """`[B, S]` float32 of every target; what stands on padding means nothing."""
    dtype = model.language.embedding[...].dtype

    def of_own_rows(model: Qwen2_5_VL, rows: Rows, targets: Targets) -> jax.Array:
        features = model.vision(rows.vision, dtype)
        states = model(rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index, dtype)
        states = jnp.take_along_axis(states, targets.states[..., None], axis=1)
        return token_log_probabilities(states, model.language.head[...], targets.tokens)[0]

    inputs = specs(model, TRAINING), row_specs(rows), row_specs(targets)
    return over_rows(of_own_rows, inputs, P(ROWS), split_weights=True)(model, rows, targets)
