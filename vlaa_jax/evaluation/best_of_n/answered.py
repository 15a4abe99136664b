"""Questions with several responses each, their verdicts and their judges' scores; in memory and as JSON Lines.

A line of a response file is `{"id": RECORD_ID, "responses": [TEXT, ...]}`, with `"greedy": TEXT` and `"model": NAME` if
they are known. What a run writes has its verdicts and step scores too.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.evaluate import Result
from vlaa_jax.processing.images import Resize, read_size
from vlaa_jax.processing.records import Record
from vlaa_jax.rewards import MathPool, Request, Scorer, Trace, accuracy, score_now

_AT_ONCE = 256  # questions whose pictures are in memory


@dataclasses.dataclass(frozen=True)
class Responses:
    """A line of a response file.

    Attributes:
      id: of the record.
      texts: responses, in the order in which they were sampled.
      greedy: the greedy one, where it is known.
      scores: judge -> step scores `[S]` of each response.
      whole: judges that score a response as a whole.
    """

    id: str
    texts: tuple[str, ...]
    greedy: str | None = None
    scores: Mapping[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    whole: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question with N responses and their verdicts.

    Attributes:
      record: without its images.
      texts: of the responses, in the order in which they were sampled.
      traces: their verdicts.
      greedy: text and verdict of the greedy response, where there is one.
    """

    record: Record
    texts: tuple[str, ...]
    traces: tuple[Trace, ...]
    greedy: tuple[str, Trace] | None = None

    @functools.cached_property
    def right(self) -> np.ndarray:
        """`[N]` 1 for a right response, as `rewards.accuracy` counts."""
        return np.asarray([accuracy(trace, self.record.verifier) for trace in self.traces], np.float64)

    @functools.cached_property
    def rewards(self) -> np.ndarray:
        """`[N]` in [0, 1]."""
        return np.asarray([trace.score for trace in self.traces], np.float64)


@dataclasses.dataclass(frozen=True)
class Judged:
    """What one model answered, and what judges say of it.

    Attributes:
      model: whose responses these are.
      questions: Q.
      scores: judge -> for each question, for each response, its step scores `[S]`.
      whole: judges that score a response as a whole.
    """

    model: str
    questions: tuple[Answered, ...]
    scores: Mapping[str, list[list[np.ndarray]]]
    whole: frozenset[str] = frozenset()


def from_results(sampled: Sequence[Result], greedy: Sequence[Result] | None) -> list[Answered]:
    """What the evaluator found, sampled and greedy, of the same records."""
    out = []
    for place, result in enumerate(sampled):
        first = greedy[place].answers[0] if greedy else None
        texts, traces = zip(*((answer.completion, answer.trace) for answer in result.answers), strict=True)
        out.append(Answered(result.record, texts, traces, first and (first.completion, first.trace)))
    return out


def read_responses(path: pathlib.Path, known: Mapping[str, int]) -> dict[str, list[Responses]]:
    """The lines of a response file by model, each model's in the order of the records.

    Args:
      path: JSON Lines; a line without a model has the file's name.
      known: place of each record that there is, by its id.

    Raises:
      InputError: the file, a line or a field is wrong; names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no response file ({error})") from None
    found: dict[str, dict[str, Responses]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        model, responses = _parse(line, where, path.stem)
        if responses.id not in known:
            raise InputError(f"{where}: no usable record has the id {responses.id!r}")
        if responses.id in found.setdefault(model, {}):
            raise InputError(f"{where}: {responses.id!r} has responses of {model} already")
        found[model][responses.id] = responses
    if not found:
        raise InputError(f"{path} holds no responses")
    return {model: sorted(own.values(), key=lambda item: known[item.id]) for model, own in found.items()}


def _parse(line: str, where: str, default: str) -> tuple[str, Responses]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where}: expected an object with id and responses")
    texts, greedy = fields.get("responses"), fields.get("greedy")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: `responses` must be a list of texts, one at least")
    for name, default_value in (("id", None), ("model", default), ("greedy", "")):
        if not isinstance(fields.get(name, default_value), str):
            raise InputError(f"{where}: `{name}` must be a text")
    scores = fields.get("scores", {})
    try:
        scores = {
            judge: [np.asarray([np.nan if score is None else score for score in steps], np.float64) for steps in own]
            for judge, own in scores.items()
        }
        good = all(len(own) <= len(texts) and all(len(steps) for steps in own) for own in scores.values())
    except (AttributeError, TypeError, ValueError):
        good = False
    if not good:
        raise InputError(f"{where}: `scores` must hold, by judge, a list of numbers for each response")
    texts = tuple(map(_writable, texts))
    whole = tuple(fields.get("whole", ()))
    return fields.get("model", default), Responses(
        fields["id"], texts, None if greedy is None else _writable(greedy), scores, whole
    )


def _writable(text: str) -> str:
    """JSON may hold halves of surrogate pairs, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def verify(
    responses: Sequence[Responses],
    read: Callable[[str], Record],
    *,
    resize: Callable[[tuple[int, int]], Resize] = lambda size: Resize(size, size),
    scorer: Scorer | None = None,
    pool: MathPool | None = None,
) -> list[Answered]:
    """Verdicts by the verifiers and the gate of GRPO.

    Args:
      responses: to some questions.
      read: a record with its images, by its id.
      resize: how the model that answered saw a picture of some size; boxes in pixels are in its pixels. By default it
        saw the stored one.
      scorer, pool: see `rewards.score_now`.

    Raises:
      InputError: as `rewards.score_now`.
    """
    out: list[Answered] = []
    for start in range(0, len(responses), _AT_ONCE):
        chosen = [(read(own.id), own) for own in responses[start : start + _AT_ONCE]]
        requests = [request for record, own in chosen for request in _requests(record, own, resize)]
        traces = iter(score_now(requests, scorer=scorer, pool=pool))
        for record, own in chosen:
            of_texts = tuple(next(traces) for _ in own.texts)
            greedy = None if own.greedy is None else (own.greedy, next(traces))
            out.append(Answered(dataclasses.replace(record, images=()), own.texts, of_texts, greedy))
    return out


def _requests(record: Record, own: Responses, resize: Callable[[tuple[int, int]], Resize]) -> list[Request]:
    sizes = [resize(read_size(image)) for image in record.images] if record.box_space == "pixels" else []
    texts = own.texts if own.greedy is None else (*own.texts, own.greedy)
    return [Request(record.verifier, text, record.answer, record, sizes) for text in texts]


def to_lines(judged: Judged) -> list[str]:
    """A line a question, which `read_responses` reads."""
    return [json.dumps(_fields(judged, place)) for place in range(len(judged.questions))]


def _fields(judged: Judged, place: int) -> dict[str, Any]:
    question = judged.questions[place]
    fields: dict[str, Any] = {
        "id": question.record.id,
        "model": judged.model,
        "responses": list(question.texts),
        "verdicts": [_verdict(question.record, trace) for trace in question.traces],
    }
    if question.greedy:
        text, trace = question.greedy
        fields |= {"greedy": text, "greedy_verdict": _verdict(question.record, trace)}
    if judged.scores:
        fields["scores"] = {
            judge: [[None if np.isnan(score) else float(score) for score in steps] for steps in scores[place]]
            for judge, scores in judged.scores.items()
        }
        fields["whole"] = sorted(judged.whole)
    return fields


def _verdict(record: Record, trace: Trace) -> dict[str, Any]:
    names = ("valid", "normal_form", "rule", "score")
    return {"right": bool(accuracy(trace, record.verifier))} | {name: getattr(trace, name) for name in names}


def stored_scores(model: str, questions: Sequence[Answered], responses: Sequence[Responses]) -> Judged:
    """Answers with the scores that stand in their file: those of judges that every line has."""
    names = [name for name in responses[0].scores if all(name in own.scores for own in responses)]
    whole = frozenset(name for name in names if name in responses[0].whole)
    return Judged(model, tuple(questions), {name: [own.scores[name] for own in responses] for name in names}, whole)
