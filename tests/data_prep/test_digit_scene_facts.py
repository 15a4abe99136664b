"""Descriptions of digit scenes: the parser, the scorer, and the reward that it leads to."""

import dataclasses
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from data_prep.digit_scenes import builder, facts, scenes
from data_prep.digit_scenes.facts import FactScorer, parse_statements, statement
from vlaa_jax.processing.records import Record

pytestmark = pytest.mark.quick


def scene(*glyphs):
    metadata = {"glyphs": [[{"index": 0, "value": v, "place": place, "box": [0, 0, 9, 9]} for v, place in glyphs]]}
    return Record("r", (b"",), "Describe.", "", "open_ended", metadata=metadata)


SCENE = scene((7, "northwest"), (8, "centre"), (7, "east"), (7, "east"))


def describe(*glyphs):
    return " ".join(statement(value, place) for value, place in glyphs)


def reward(example, answer, reference):
    """The formula of VLAA-Thinking, figure 4."""
    scorer = FactScorer()
    difference = scorer(example, answer) - scorer(example, reference)
    return 1 - math.exp(-scorer.beta * difference) if difference > 0 else 0.0


def test_statements_are_sentences_that_the_parser_reads():
    assert statement(7, "northwest") == "In the northwest there is a 7."
    assert statement(8, "west") == "In the west there is an 8."
    everything = [(value, place) for value in range(10) for place in scenes.PLACES]
    assert parse_statements(describe(*everything)) == everything


def test_parser():
    digit_first = "there is A 7 in the NorthWest; There is a 1 at the north!"
    place_first = "On the east, there is a 8\nat the WEST there is a 2"
    assert parse_statements(digit_first) == [(7, "northwest"), (1, "north")]
    assert parse_statements(place_first) == [(8, "east"), (2, "west")]
    none = "There is a 17 at the north. A 7. There is a 7 at the northwest corner. 7 north"
    assert parse_statements(none) == [None] * 4
    assert parse_statements("There is a 7 at the north and an 8 at the west.") == [None]
    assert parse_statements(" . ;\n ") == []


def test_scores():
    score = FactScorer()
    assert score(SCENE, describe((7, "northwest"))) == 1
    assert score(SCENE, describe((7, "northwest"), (8, "centre"))) == 2
    assert score(SCENE, describe((7, "northwest"), (8, "northwest"))) == 0
    assert score(SCENE, describe((7, "northwest"), (7, "northwest"))) == 0.75  # a repeat
    assert score(SCENE, describe((7, "east"), (7, "east"))) == 2  # there are two
    assert score(SCENE, describe((7, "east"), (7, "east"), (7, "east"))) == 1.75
    assert score(SCENE, describe((1, "north"), (1, "north"))) == -2
    assert score(SCENE, "I see digits. " + describe((7, "northwest"))) == 0.75
    assert score(SCENE, "") == 0


def test_reward_of_an_answer_against_the_reference():
    reference = describe((7, "northwest"), (7, "east"))
    assert reward(SCENE, reference, reference) == 0
    more = describe((7, "northwest"), (7, "east"), (8, "centre"))
    assert reward(SCENE, more, reference) == pytest.approx(0.5507, abs=1e-4)
    all_facts = describe((7, "northwest"), (7, "east"), (8, "centre"), (7, "east"))
    assert reward(SCENE, all_facts, reference) == pytest.approx(0.7981, abs=1e-4)
    with_error = describe((7, "northwest"), (7, "east"), (8, "centre"), (1, "north"))
    assert FactScorer()(SCENE, with_error) < FactScorer()(SCENE, more)
    assert reward(SCENE, with_error, reference) == 0
    assert reward(SCENE, f"{more} Nice.", reference) < reward(SCENE, more, reference)
    every = describe(*((value, place) for value in range(10) for place in scenes.PLACES))
    assert reward(SCENE, every, reference) == 0
    assert reward(SCENE, describe((8, "centre"), (7, "east")), reference) == 0  # as many, but others


@pytest.mark.parametrize("name", ["sft", "rl", "heldout", "harder"])
def test_one_more_fact_than_any_reference_pays_and_no_reference_says_all(name):
    split = dataclasses.replace(builder.SPLITS[name], records=60, kinds={"describe": 1})
    for record in builder.draw_split(name, split, 0):
        glyphs = record.metadata["glyphs"][0]
        stated = parse_statements(record.answer)
        assert None not in stated and FactScorer()(record, record.answer) == len(stated) < len(glyphs)
        left = [(glyph["value"], glyph["place"]) for glyph in glyphs]
        for fact in stated:
            left.remove(fact)
        assert reward(record, f"{record.answer} {statement(*left[0])}", record.answer) > 0.5
        assert reward(record, record.answer, record.answer) == 0


@hypothesis.given(
    answer=st.lists(
        st.tuples(st.sampled_from([1, 7, 8]), st.sampled_from(["northwest", "centre", "east"])), max_size=6
    ),
    data=st.data(),
)
@hypothesis.settings(deadline=None)
def test_order_does_not_matter_and_saying_it_again_never_helps(answer, data):
    score = FactScorer()
    shuffled = data.draw(st.permutations(answer))
    assert score(SCENE, describe(*answer)) == score(SCENE, describe(*shuffled))
    once = describe(*answer)
    known = {(7, "northwest"), (8, "centre"), (7, "east")}
    if all(answer.count(fact) >= (2 if fact == (7, "east") else 1) for fact in set(answer) & known):
        assert score(SCENE, f"{once} {once}") <= score(SCENE, once)


def test_scorer_states_its_scale():
    assert (FactScorer.beta, FactScorer.scale) == (0.8, "true statements less false ones, about -3 to 9")
    assert (facts.TRUE, facts.FALSE, facts.IDLE) == (1.0, -1.0, -0.25)
