"""The first wrong step of written traces, and of traces that were made wrong at a known place."""

import dataclasses

import pytest

from data_prep.digit_scenes import builder, process_truth
from data_prep.digit_scenes.process_truth import ProcessTruth, first_wrong_step
from vlaa_jax.processing.conversation import completion_text
from vlaa_jax.processing.records import ProcessRecord
from vlaa_jax.processing.steps import join_steps, split_steps

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def records():
    split = dataclasses.replace(builder.SPLITS["sft"], records=60, enumerate_share=1.0)
    return list(builder.draw_split("sft", split, 0))


def test_a_written_trace_has_no_wrong_step(records):
    for record in records:
        assert first_wrong_step(record, split_steps(completion_text(record.trace, record.answer))) == -1


def test_a_digit_that_is_not_there_is_found_where_it_stands(records):
    for record in records:
        steps = split_steps(completion_text(record.trace, record.answer))
        for place in (0, 1):
            line = steps[place].splitlines()[-1]
            digit = line[-1] if line[-1].isdigit() else None
            if digit is None:
                continue
            wrong = f"{steps[place][:-1]}{(int(digit) + 1) % 10}"
            present = {glyph["value"] for picture in record.metadata["glyphs"] for glyph in picture}
            if (int(digit) + 1) % 10 not in present:
                assert first_wrong_step(record, [*steps[:place], wrong, *steps[place + 1 :]]) == place


def test_a_wrong_answer_is_the_last_step(records):
    record = next(record for record in records if record.verifier == "digit")
    steps = split_steps(completion_text(record.trace, str(int(record.answer) + 1)))
    assert first_wrong_step(record, steps) == len(steps) - 1
    assert first_wrong_step(record, steps[:-1]) == -1
    assert first_wrong_step(record, [steps[0], "Step 2: the digits are nice", *steps[1:]]) is None


def test_only_the_demos_own_questions_are_known(records, monkeypatch):
    monkeypatch.setattr(process_truth, "_source", lambda split: records)
    process_truth._scene.cache_clear()
    record = records[7]
    text = join_steps(split_steps(completion_text(record.trace, record.answer)))
    process = ProcessRecord("sft-000007/3", record.images, record.question, text, 1.0)
    assert ProcessTruth()(process) == -1
    assert ProcessTruth()(dataclasses.replace(process, question="What else?")) is None
    assert ProcessTruth()(dataclasses.replace(process, id="vilreward-clevr-abc/3")) is None
    assert ProcessTruth()(dataclasses.replace(process, id=f"sft-{10**7}/3")) is None
    process_truth._scene.cache_clear()
