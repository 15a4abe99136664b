"""A small search, and a policy without a model."""

import hashlib
import pathlib
import random
import runpy
from collections.abc import Sequence

from ml_collections import ConfigDict

from data_prep.digit_scenes import demo
from data_prep.search.rounds import Completion, Start
from vlaa_jax.processing.images import Resize, read_size
from vlaa_jax.processing.records import Record

get_config = runpy.run_path(str(pathlib.Path(__file__).parents[3] / "configs" / "search.py"))["get_config"]


def config(scenes: pathlib.Path, **changes) -> ConfigDict:
    """The demo's search of some scenes, small; dots in names as `__`."""
    out = get_config("demo")
    values = {
        "model.checkpoint": str(demo.SHIPPED_POLICY),
        "data.questions": f"{scenes}:rl",
        "data.limit": 12,
        "search.simulations": 4,
        "search.leaves": 2,
        "search.rollouts": 3,
        "search.prior": "visits",
        "export.least_visits": 2,
        "rollout.questions": 5,
        "export.heldout": 0.3,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    out = out.copy_and_resolve_references()
    with out.unlocked():
        out.update_from_flattened_dict(values)
    return out


class FakePolicy:
    """Answers at once, or in up to three steps; its answer is often the gold one.

    What it writes is a function of the question, the partial solution and the draw.

    Attributes:
      calls: of `sample`, so far.
    """

    def __init__(self, rollouts: int, *, stop: int = 0):
        """`stop`: the call, from 1, in which it is interrupted; 0 for none."""
        self._rollouts, self._stop, self._begun, self.calls = rollouts, stop, [], 0

    def begin(self, records: Sequence[Record]):
        self._begun = list(records)
        sizes = [[read_size(image) for image in record.images] for record in records]
        return [[Resize(size, size) for size in own] for own in sizes]

    def fits(self, texts: Sequence[str]) -> bool:
        return len(texts) <= 2

    def sample(self, starts: Sequence[Start]) -> list[list[Completion]]:
        self.calls += 1
        if self.calls == self._stop:
            raise KeyboardInterrupt
        each = len(starts) // len(self._begun)
        records = [record for record in self._begun for _ in range(each)]
        return [
            [self._write(record, start, number) for number in range(self._rollouts)]
            for record, start in zip(records, starts, strict=True)
        ]

    def _write(self, record: Record, start: Start, number: int) -> Completion:
        name = f"{record.id}|{''.join(start.texts)}|{start.draw}|{number}"
        drawn = random.Random(hashlib.sha256(name.encode()).digest())
        done = len(start.texts)
        steps = [f"Step {k + 1}: fact {drawn.randrange(2)}\n" for k in range(done, drawn.randrange(done, 4))]
        if not done:
            steps = ["<think>\n" + (steps[0] if steps else "At once.\n"), *steps[1:]]
        answer = record.answer if drawn.random() < 0.4 else f"{drawn.randrange(10)}"
        text = f"{''.join(steps)}</think>\n<answer>{answer}</answer>"
        if drawn.random() < 0.1:
            return Completion(text[: len(text) // 2], 9, is_cut=True)
        return Completion(text, len(text), is_cut=False)
