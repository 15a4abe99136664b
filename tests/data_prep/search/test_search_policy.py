"""A search with the demo policy: its own sampler under the trees, whatever is searched at once."""

import json

import pytest
from small_search import config, get_config

from data_prep.digit_scenes import builder, demo, glyphs
from data_prep.search import settings
from data_prep.search.folder import SearchFolder
from data_prep.search.rounds import Start
from data_prep.search.search import search
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.models.qwen2_5_vl.config import read_config
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rollout.random_bits import SEARCH


@pytest.fixture(scope="module")
def found(tmp_path_factory, scenes, cache):
    """Folder of a search of six questions, three at once, and its config."""
    made = config(
        scenes,
        data__limit=6,
        rollout__questions=3,
        rollout__prompt_buckets=(224,),
        rollout__window_buckets=(16,),
        search__leaves=1,
        export__drop_decided=False,
    )
    out = tmp_path_factory.mktemp("demo") / "search"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAA_JAX_CACHE", str(cache))
        search(made, out, trees=2)
        yield made, out


def test_trees_hold_the_policys_steps_and_verdicts(found):
    _, out = found
    trees = list(SearchFolder(out).trees())
    assert len(trees) == 6 and all(stored["nodes"][0]["visits"] == 12 for stored in trees)
    texts = [node["text"] for stored in trees for node in stored["nodes"]]
    assert any("I can answer at once." in text for text in texts) and any("Step 2:" in text for text in texts)
    ends = [node for stored in trees for node in stored["nodes"] if node.get("ends")]
    assert {node["right"] for node in ends} == {True, False}
    assert all(("</answer>" in node["text"]) == (node.get("answer") is not None) for node in ends)
    report = json.loads((out / "report.json").read_text())
    assert report["rollouts"] == 72 and report["share_cut"] < 0.5 and report["tokens"] > 72 * 5


def test_a_start_has_the_same_completions_beside_any_others(found):
    """One question among three or twice, from its beginning and behind a step."""
    made, _ = found
    encoder = settings.encoder(made)
    source, index = settings.open_questions(made, encoder)
    policy = settings.policy(made, encoder, index)
    (first, second, third), _ = settings.chunks(made, index)
    starts = [Start((), first), Start(("<think>\nStep 1: ",), second), Start((), third)]
    policy.begin([source[place] for place in (first, second, third)])
    together = policy.sample(starts)
    policy.begin([source[second]])
    assert policy.sample(starts[1:2]) == together[1:2]
    policy.begin([source[third], source[first]])
    assert policy.sample([starts[2], starts[0]]) == [together[2], together[0]]
    assert policy.fits(("Step 1: west 7\n",) * 5) and not policy.fits(("Step 1: west 7\n",) * 50)


def test_programs_follow_from_the_config(found):
    made, _ = found
    encoder, sizes = settings.encoder(made), read_config(demo.SHIPPED_POLICY)
    generator = settings.generator(made, encoder.tokenizer.end_tokens, sizes, ((224,), (16,)))
    assert (generator.stream, generator.group, generator.new_tokens, generator.seed) == (SEARCH, 3, 192, 0)
    programs = settings.programs(made, generator, hf.abstract_model(sizes), encoder.no_prompt)
    names = [program.name for program in programs]
    assert names[2:6] == [
        "images of 3 prompts with 16 windows",
        "3 questions of 224 tokens kept",
        "slots of 352 tokens",
        "caches of 9 rows behind 352 tokens",
    ]
    assert "prefill of 128 tokens behind 224, 3 drawn at temperature 1" in names


def test_the_demo_searches_glyphs_of_the_training_range(found):
    made, out = found
    assert get_config().data.questions == "demo:rl" and builder.SPLITS["rl"].glyphs == "train"
    source = RecordSource(made.data.questions)
    for stored in SearchFolder(out).trees():
        for picture in source[stored["place"]].metadata["glyphs"]:
            assert all(glyph["index"] in glyphs.RANGES["train"] for glyph in picture)
    assert glyphs.RANGES["train"] == range(0, 1200)


@pytest.mark.quick
def test_presets():
    large = get_config("3b")
    assert (large.model.checkpoint, large.data.questions, large.rewards.scorer) == ("", "", "")
    assert "open_ended" not in large.rewards.enabled and large.value.judge_weight == 0
    for preset in ("demo", "3b"):
        settings.check(get_config(preset))
    with pytest.raises(InputError, match="preset '7c' does not exist"):
        get_config("7c")
