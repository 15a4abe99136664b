"""Digit scenes against the verifiers: every gold is read, and answering it scores 1 (0 for an open-ended reference)."""

import collections
import dataclasses

import pytest

from data_prep.digit_scenes import builder, facts
from vlaa_jax.processing.conversation import completion_text
from vlaa_jax.processing.images import Resize, read_size
from vlaa_jax.rewards import Request, check_gold, score_many

pytestmark = pytest.mark.quick


def requests_for(records, answers):
    for record, answer in zip(records, answers, strict=True):
        resizes = [Resize(read_size(image), read_size(image)) for image in record.images]
        yield Request(record.verifier, completion_text(record.trace, answer), record.answer, record, resizes)


@pytest.mark.parametrize("name", ["sft", "heldout", "harder"])
def test_golds_score_one(name):
    records = list(builder.draw_split(name, dataclasses.replace(builder.SPLITS[name], records=120), 0))
    for record in records:
        check_gold(record)
    traces = score_many(
        list(requests_for(records, [record.answer for record in records])),
        strict=name == "sft",  # the other splits have no reasoning to show
        scorer=facts.FactScorer(),
    )
    scores = collections.defaultdict(set)
    for record, trace in zip(records, traces, strict=True):
        assert trace.valid
        scores[record.verifier].add(trace.score)
    assert scores == {"digit": {1.0}, "math": {1.0}, "mcq": {1.0}, "iou": {1.0}, "open_ended": {0.0}}


def test_an_unreduced_fraction_scores_one():
    split = dataclasses.replace(builder.SPLITS["rl"], records=20, kinds={"fraction_even": 1})
    records = list(builder.draw_split("rl", split, 0))
    values = [[glyph["value"] for glyph in record.metadata["glyphs"][0]] for record in records]
    unreduced = [rf"\frac{{{sum(v % 2 == 0 for v in shown)}}}{{{len(shown)}}}" for shown in values]
    assert {trace.score for trace in score_many(list(requests_for(records, unreduced)))} == {1.0}
    wrong = [rf"\frac{{{sum(v % 2 == 0 for v in shown)}}}{{{len(shown) + 10}}}" for shown in values]
    scores = [trace.score for trace in score_many(list(requests_for(records, wrong)))]
    assert all(score == (record.answer == "0") for score, record in zip(scores, records, strict=True))
