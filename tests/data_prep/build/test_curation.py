"""The aha rule as published, and the draw of both splits."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.build.curation import AHA, Candidate, candidate, choose, has_aha
from data_prep.drafts import Draft
from vlaa_jax.errors import InputError

pytestmark = pytest.mark.quick


def draft(distilled: str) -> Draft:
    return Draft("arxivqa-1", "arxivqa", "1.jpg", "How many?", "2", "math", distilled=distilled)


@pytest.mark.parametrize(
    "text", [*AHA, "against", "await", "I checked it.", "WAIT", "Hmm, no", "I should confirm that"]
)
def test_these_are_aha_moments(text):
    assert has_aha(f"First {text} second")


@pytest.mark.parametrize("text", ["", "There are two dots.", "I confirm", "ag ain", "miss take", "w-ait", "hm"])
def test_these_are_none(text):
    assert not has_aha(text)


def test_the_keywords_are_the_published_ones():
    assert len(AHA) == 8 and "i should confirm" in AHA


def test_which_part_is_searched():
    thinking = draft("<think>Wait.</think>2")
    final = draft("<think>Two.</think>Let me check: 2")
    assert candidate(thinking, "whole").aha and candidate(thinking, "think").aha
    assert candidate(final, "whole").aha and not candidate(final, "think").aha
    assert candidate(draft("no block, but wait"), "think").aha


def pool(source: str, count: int, *, aha: bool, start: int = 0, images: int = 10**9) -> list[Candidate]:
    return [Candidate(f"{source}-{i}", source, f"{i % images}.jpg", aha) for i in range(start, start + count)]


def test_no_aha_is_for_sft_and_aha_for_rl():
    both = pool("arxivqa", 10, aha=False) + pool("arxivqa", 10, aha=True, start=10)
    quotas = {"arxivqa": {"sft": 7, "rl": 4}}
    chosen, left = choose(both, quotas, seed=0, disjoint_by="id")
    assert collections.Counter(chosen.values()) == {"sft": 7, "rl": 4}
    assert all((split == "rl") == (int(id.split("-")[1]) >= 10) for id, split in chosen.items())
    assert collections.Counter(left.values()) == {"beyond the quota of 7 for SFT": 3, "beyond the quota of 4 for RL": 6}
    assert choose(both[::-1], quotas, seed=0, disjoint_by="id") == (chosen, left)
    assert choose(both, quotas, seed=1, disjoint_by="id")[0] != chosen


def test_geoqa_is_for_rl_whatever_it_says():
    quotas = {"geoqa170k": {"sft": 0, "rl": 5}}
    chosen, _ = choose(pool("geoqa170k", 3, aha=False), quotas, seed=0, disjoint_by="id")
    assert set(chosen.values()) == {"rl"} and len(chosen) == 3


def test_disjoint_by_image():
    # Ten pictures, each with an aha question and two others.
    both = pool("coco", 10, aha=True) + pool("coco", 20, aha=False, start=10, images=10)
    quotas = {"coco": {"sft": 100, "rl": 4}}
    by_id, _ = choose(both, quotas, seed=0, disjoint_by="id")
    assert collections.Counter(by_id.values()) == {"sft": 20, "rl": 4}
    by_image, left = choose(both, quotas, seed=0, disjoint_by="image")
    assert collections.Counter(by_image.values()) == {"sft": 12, "rl": 4}
    assert collections.Counter(left.values())["its picture is in the RL split"] == 8


def test_questions_without_a_picture_share_none():
    both = [Candidate("synthesis-1", "synthesis", "", True), Candidate("synthesis-2", "synthesis", "", False)]
    chosen, _ = choose(both, {"synthesis": {"sft": 1, "rl": 1}}, seed=0, disjoint_by="image")
    assert chosen == {"synthesis-1": "rl", "synthesis-2": "sft"}


def test_an_id_that_occurs_twice_is_refused():
    with pytest.raises(InputError, match="'vg-0' occurs twice"):
        choose(pool("vg", 1, aha=True) * 2, {"vg": {"sft": 1, "rl": 1}}, seed=0, disjoint_by="id")


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.uuids().map(str),
        st.sampled_from(["coco", "vg", "geoqa170k"]),
        st.sampled_from(["", "1.jpg", "2.jpg", "3.jpg"]),
        st.booleans(),
    ),
    unique_by=lambda one: one.id,
    max_size=40,
)


@settings(max_examples=50)
@given(CANDIDATES, st.integers(0, 5), st.integers(0, 5), st.sampled_from(["id", "image"]))
def test_every_question_is_chosen_or_left_and_quotas_hold(candidates, sft, rl, disjoint_by):
    quotas = {name: {"sft": sft, "rl": rl} for name in ("coco", "vg", "geoqa170k")}
    chosen, left = choose(candidates, quotas, seed=0, disjoint_by=disjoint_by)
    assert chosen.keys() | left.keys() == {one.id for one in candidates} and not chosen.keys() & left.keys()
    counts = collections.Counter((one.source, chosen[one.id]) for one in candidates if one.id in chosen)
    assert all(number <= {"sft": sft, "rl": rl}[split] for (_, split), number in counts.items())
    if disjoint_by == "image":
        pictures = {
            split: {(one.source, one.image) for one in candidates if one.image and chosen.get(one.id) == split}
            for split in ("sft", "rl")
        }
        assert not pictures["sft"] & pictures["rl"]
