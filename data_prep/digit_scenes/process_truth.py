"""The first wrong step of a solution of a digit scene, exactly: every step is a fact that is checked with the scene."""

import functools
from collections.abc import Sequence

from data_prep.digit_scenes import builder, demo
from data_prep.digit_scenes.traces import check_steps
from vlaa_jax.processing.records import ProcessRecord, Record
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.processing.steps import join_steps, split_steps
from vlaa_jax.rewards import score

_JUDGED = ("digit", "mcq", "math")  # verifiers that need no more than the text
_RIGHT = 0.5  # reward of a right answer


def first_wrong_step(record: Record, steps: Sequence[str]) -> int | None:
    """Place of the first step that states something false, -1 where none does.

    The last step is wrong with its answer too, where it states one and the question's verifier needs the text alone.

    Args:
      record: the question with its scene.
      steps: of `split_steps`.

    Returns:
      None where a step of no known form comes before: nobody knows whether it is true.
    """
    facts = check_steps(record, steps)
    if steps and "<answer>" in steps[-1] and record.verifier in _JUDGED:
        facts[-1].append(score(record.verifier, join_steps(steps), record.answer, example=record) >= _RIGHT)
    for place, of_step in enumerate(facts):
        if False in of_step:
            return place
        if None in of_step:
            return None
    return -1


class ProcessTruth:
    """For process records of the demo's own scenes (`config.evaluation.truth`)."""

    def __call__(self, record: ProcessRecord) -> int | None:
        """`first_wrong_step` of its process; None where the question is not one of the demo's."""
        found = _scene(record.id.rpartition("/")[0])
        if found is None or (found.question, found.images) != (record.question, record.images):
            return None
        return first_wrong_step(found, split_steps(record.process))


@functools.lru_cache(4096)
def _scene(name: str) -> Record | None:
    """The demo's record of an id, `SPLIT-NUMBER`."""
    split, _, number = name.rpartition("-")
    if split not in builder.SPLITS or not number.isdecimal() or int(number) >= builder.SPLITS[split].records:
        return None
    return _source(split)[int(number)]


@functools.cache
def _source(split: str) -> RecordSource[Record]:
    return RecordSource(demo.data(f"demo:{split}"))
