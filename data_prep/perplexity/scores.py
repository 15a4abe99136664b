"""Files of scores: a line of JSON with `id`, `tokens` and `mean_nll` for every record."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

from vlaa_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Score:
    """How a model finds the reference completion of a record.

    Attributes:
      id: of the record.
      tokens: that are scored.
      mean_nll: mean negative log-likelihood of a token, in nats.
    """

    id: str
    tokens: int
    mean_nll: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean_nll)


def to_lines(scores: Sequence[Score]) -> str:
    """Whole lines of a file."""
    return "".join(json.dumps(dataclasses.asdict(score), ensure_ascii=False) + "\n" for score in scores)


def read_scores(path: pathlib.Path) -> dict[str, Score]:
    """The scores of a file by record.

    Raises:
      InputError: no such file, a line that is no score, or a record that is scored twice.
    """
    if not path.is_file():
        raise InputError(f"--scores: {path} is not a file")
    scores: dict[str, Score] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            score = _parse(line)
            if score is None:
                raise InputError(f"{path}:{number}: no score, expected an object with id, tokens and mean_nll")
            if score.id in scores:
                raise InputError(f"{path}:{number}: the record {score.id!r} is scored twice")
            scores[score.id] = score
    return scores


def whole_batches(path: pathlib.Path, batches: Sequence[Sequence[str]]) -> int:
    """How many batches a file holds from its beginning; cuts off what is more.

    Args:
      path: of a run that may have been killed while it wrote.
      batches: ids of each, in the order in which they are written.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    scores = [_parse(line.decode(errors="replace")) if line.endswith(b"\n") else None for line in lines]
    ids = [score and score.id for score in scores]
    count = at = 0
    for batch in batches:
        if ids[at : at + len(batch)] != list(batch):
            break
        count, at = count + 1, at + len(batch)
    with path.open("r+b") as file:
        file.truncate(sum(map(len, lines[:at])))
    return count


def _parse(line: str) -> Score | None:
    try:
        score = Score(**json.loads(line))
    except (ValueError, TypeError):
        return None
    numbers = type(score.tokens) is int and isinstance(score.mean_nll, int | float)
    # A mean above 700 has no finite perplexity; one below 0 is none of tokens.
    return score if isinstance(score.id, str) and numbers and score.tokens > 0 and 0 <= score.mean_nll < 700 else None
