"""A policy without a model: what it writes is a function of the question, the partial solution and the draw."""

import hashlib
import random
from collections.abc import Sequence

from data_prep.search.rounds import Completion, Start
from vlaa_jax.processing.records import Record


class FakePolicy:
    """Answers at once, or in up to three steps; its answer is often the gold one."""

    def __init__(self, rollouts: int, longest: int = 10_000):
        self.rollouts, self.longest, self.begun, self.calls = rollouts, longest, [], 0

    def begin(self, records: Sequence[Record]):
        self.begun = list(records)
        return [()] * len(records)

    def fits(self, texts: Sequence[str]) -> bool:
        return len("".join(texts)) <= self.longest

    def sample(self, starts: Sequence[Start]) -> list[list[Completion]]:
        self.calls += 1
        each = len(starts) // len(self.begun)
        records = [record for record in self.begun for _ in range(each)]
        return [
            [self._write(record, start, number) for number in range(self.rollouts)]
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
