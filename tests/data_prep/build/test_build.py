"""All six steps from the miniature sources against the loopback endpoint, over real HTTP and with faults."""

import collections
import json
import shutil
from types import SimpleNamespace

import loopback
import pytest
import source_fixtures
import tiny
from outcomes import SINGLE, aside, config, contents, drafts

from data_prep.build import engine
from data_prep.build.assemble import Order, assemble
from data_prep.build.build import build
from data_prep.build.curation import has_aha
from data_prep.build.destination import destination
from data_prep.build.folder import StepFolder, read_file
from data_prep.digit_scenes.demo import SHIPPED_POLICY
from data_prep.sources.published import PUBLISHED
from vlaa_jax.errors import InputError
from vlaa_jax.processing import shards
from vlaa_jax.processing.images import decode
from vlaa_jax.processing.index import build_index
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.rewards import check_gold
from vlaa_jax.training import settings

STEPS = ("1_collect", "2_caption", "3_distil", "4_rewrite", "5_verify")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return source_fixtures.write_all(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folders):
    """A build from all nine sources, whose endpoint fails now and then; to be read only."""
    out = tmp_path_factory.mktemp("build") / "out"
    with loopback.Endpoint(loopback.faulty(0.15, seed=0)) as endpoint:
        text = build(config(folders, endpoint.base_url), str(out))
        yield SimpleNamespace(out=out, text=text, endpoint=endpoint)


def test_every_step_accounts_for_every_question(finished):
    before = drafts(finished.out, STEPS[0])
    assert collections.Counter(draft.source for draft in before.values()).keys() == PUBLISHED.keys()
    for step in STEPS[1:]:
        after, lost = drafts(finished.out, step), aside(finished.out, step)
        assert after.keys() | lost.keys() == before.keys() and not after.keys() & lost.keys()
        before = after
    records = {record.id for split in ("sft", "rl") for record in RecordSource(f"{finished.out}/shards:{split}")}
    assert records == before.keys() and not aside(finished.out, "6_curate")


def test_each_source_goes_its_way(finished):
    captioned, distilled, rewritten, verified = (drafts(finished.out, step) for step in STEPS[1:])
    for draft in captioned.values():
        route = PUBLISHED[draft.source].route
        assert bool(draft.caption) == (route in ("caption", "own_caption", "as_is"))
        assert (draft.metadata.get("models", {}) == {"caption": "captioner-served"}) == (route == "caption")
    for id, draft in rewritten.items():
        route = PUBLISHED[draft.source].route
        assert bool(draft.rewritten) == (route not in ("as_is", "rl_only"))
        assert bool(draft.distilled) == (route != "rl_only")
        assert draft.caption == captioned[id].caption and draft.distilled == distilled[id].distilled
    asked = collections.Counter(PUBLISHED[draft.source].route for draft in drafts(finished.out, STEPS[0]).values())
    sent = collections.Counter(json.dumps(request) for _, request in finished.endpoint.received)
    distinct = collections.Counter(json.loads(request)["model"] for request in sent)
    assert distinct["captioner"] == asked["caption"]
    assert distinct["reasoner"] == asked["caption"] + asked["own_caption"] + asked["no_caption"]
    # What the reasoner hears of Synthesis is the problem in words and nothing else.
    bare = [draft.text_question for draft in verified.values() if draft.source == "synthesis"]
    heard = [request["messages"][-1]["content"] for _, request in finished.endpoint.received]
    assert bare and all(question in heard for question in bare)


def test_the_published_curation(finished):
    verified = drafts(finished.out, STEPS[-1])
    for split in ("sft", "rl"):
        for record in RecordSource(f"{finished.out}/shards:{split}"):
            draft = verified[record.id]
            rl = draft.source == "geoqa170k" or has_aha(draft.distilled)
            assert rl == (split == "rl")
            assert record.answer == draft.gold and record.question == draft.question
            assert len(record.images) == bool(draft.image) and all(decode(image) for image in record.images)
            assert bool(record.trace) == (draft.source != "geoqa170k") and "<" not in record.trace


def test_a_record_tells_how_it_came_about(finished):
    record = next(record for record in RecordSource(f"{finished.out}/shards:sft") if record.source == "docvqa")
    served = {"caption": "captioner", "distil": "reasoner", "rewrite": "rewriter", "verify": "verifier"}
    assert record.metadata["models"] == {step: f"{name}-served" for step, name in served.items()}
    assert record.metadata["caption"].startswith("The scene shows")
    assert record.metadata["final"].startswith("**Answer:**")
    assert record.trace.startswith("First I look")


def test_the_shards_are_whole_and_of_the_size_asked_for(finished):
    shards.verify(finished.out / "shards")
    manifest = json.loads((finished.out / "shards" / "manifest.json").read_text())
    sizes = collections.defaultdict(list)
    for name in sorted(manifest["shards"]):
        sizes[manifest["shards"][name]["split"]].append(manifest["shards"][name]["records"])
    assert all(size == 8 for split in sizes.values() for size in split[:-1]) and len(sizes["sft"]) > 1


@pytest.mark.parametrize("split", ["sft", "rl"])
def test_every_record_can_be_trained_on(finished, policy, split):
    source = RecordSource(f"{finished.out}/shards:{split}")
    index = build_index(source, policy, check_gold)
    assert len(index.good) == len(source) > 0 and not index.report()
    assert all(len(policy.encode(record).tokens) == index.prompt[place] for place, record in enumerate(source))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """How the demo's policy reads records."""
    folder = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAA_JAX_CACHE", str(folder))
        yield settings.load_encoder(tiny.config("sft", folder, model__checkpoint=str(SHIPPED_POLICY)))


def test_the_report_says_what_became_of_all(finished):
    report = json.loads((finished.out / "report.json").read_text())
    passed = {name: step["passed"] for name, step in report["steps"].items()}
    assert sum(passed["5 verify"]["drafts"].values()) == len(drafts(finished.out, STEPS[-1]))
    assert sum(passed["6 curate"]["rl"].values()) == len(RecordSource(f"{finished.out}/shards:rl"))
    reasons = {reason: sum(own.values()) for reason, own in report["steps"]["5 verify"]["set_aside"].items()}
    assert reasons == {"the verifier says No": len(aside(finished.out, STEPS[-1]))}
    ledger = {stage["stage"]: stage for stage in report["ledger"]}
    assert sum(stage["requests"] for stage in ledger.values()) == finished.endpoint.answers
    assert ledger["distil"]["cost"] > 0
    for words in ("Questions after each step", "the verifier says No", f"{finished.out}/shards"):
        assert words in finished.text


def test_a_finished_build_asks_nothing(finished, folders):
    before, requests = contents(finished.out), finished.endpoint.requests
    text = build(config(folders, finished.endpoint.base_url), str(finished.out))
    assert text == f"{finished.text}\n\nThese steps were done already; nothing was asked."
    assert contents(finished.out) == before and finished.endpoint.requests == requests


def test_another_config_is_refused_by_its_field(finished, folders, tmp_path):
    prompt = tmp_path / "verify.txt"
    prompt.write_text("{gold} {answer}")
    before = contents(finished.out)
    for changes, field in [
        ({"seed": 1}, "config.seed is 1, but .*1_collect was made with 0"),
        ({"rewrite__drift": 20}, "config.rewrite.drift is 20, but .*4_rewrite was made with 15"),
        ({"distil__temperature": 0.5}, "config.distil.temperature is 0.5"),
        ({"verify__prompt": str(prompt)}, "config.verify.prompt"),
        ({"curation__disjoint_by": "image"}, "config.curation.disjoint_by is 'image'"),
        ({"sources__vg__folder": ""}, "config.sources.vg.folder is None"),
    ]:
        with pytest.raises(InputError, match=field):
            build(config(folders, finished.endpoint.base_url, **changes), str(finished.out))
    assert contents(finished.out) == before
    # What no answer depends on may change.
    build(config(folders, "http://127.0.0.1:9/v1", caption__concurrency=2, files=7), str(finished.out))


def test_any_parallelism_and_any_number_of_commands_give_the_same_bytes(finished, folders, tmp_path):
    out = str(tmp_path / "out")
    # The endpoint is not there: all answers are in the cache.
    made = config(folders, "http://127.0.0.1:9/v1", cache=str(finished.out / "cache"))
    with pytest.raises(InputError, match="step 3 needs step 2, which is not done"):
        build(made, out, steps=[1, 3])
    for number in range(1, 7):
        build(made, out, steps=[number], options=SINGLE)
    assert contents(tmp_path / "out") == contents(finished.out)


def test_a_step_in_parts_gives_the_same_shards(finished, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_AT_ONCE", 20)
    made = config(folders, "http://127.0.0.1:9/v1", cache=str(finished.out / "cache"))
    build(made, str(tmp_path / "out"), options=SINGLE)
    assert len({path.name.split("-")[1] for path in (tmp_path / "out/steps/2_caption").glob("drafts-*.jsonl")}) > 1
    shards_of = lambda out: {name: file for name, file in contents(out).items() if name.startswith("shards")}  # noqa: E731
    assert shards_of(tmp_path / "out") == shards_of(finished.out)
    for step in STEPS:
        assert drafts(tmp_path / "out", step) == drafts(finished.out, step)
        assert aside(tmp_path / "out", step) == aside(finished.out, step)


def test_a_picture_that_went_is_missed_in_the_shards_alone(finished, folders, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    for part in ("shards", "steps/6_curate"):
        shutil.rmtree(tmp_path / "out" / part)
    record = next(record for record in RecordSource(f"{finished.out}/shards:sft") if record.source == "vizwiz")
    path = folders["vizwiz"] / record.metadata["image"]
    path.rename(path.with_suffix(".away"))
    try:
        build(config(folders, finished.endpoint.base_url), str(tmp_path / "out"), options=SINGLE)
    finally:
        path.with_suffix(".away").rename(path)
    (lost,) = aside(tmp_path / "out", "6_curate").values()
    assert lost["id"] == record.id and lost["reason"].startswith("picture: ")
    before, after = (
        {record.id for record in RecordSource(f"{out}/shards:sft")} for out in (finished.out, tmp_path / "out")
    )
    assert before - after == {record.id}


def test_shards_in_a_bucket_are_those_on_disk(finished, folders, tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("VLAA_JAX_CACHE", str(tmp_path / "cache"))
    made = config(folders, finished.endpoint.base_url)
    before, curate = (StepFolder(str(finished.out), number, name) for number, name in ((5, "verify"), (6, "curate")))
    plan = Order(**json.loads(read_file(f"{curate.path}/order.json")))
    target = destination(bucket.address("shards"))

    def write():
        assemble(
            plan,
            before.files(),
            StepFolder(str(tmp_path), 6, "curate"),
            target,
            folders={name: str(folder) for name, folder in folders.items()},
            section=made.shards.to_dict(),
            spread=3,
            options=SINGLE,
        )

    write()
    on_disk = {path.name: path.read_bytes() for path in (finished.out / "shards").iterdir()}
    assert bucket.files("shards") == on_disk
    versions = bucket.emulator.buckets[bucket.name]
    assert max(versions, key=lambda name: versions[name].generation) == "shards/manifest.json"
    for split in ("sft", "rl"):
        assert list(RecordSource(f"{bucket.address('shards')}:{split}")) == list(
            RecordSource(f"{finished.out}/shards:{split}")
        )
    with pytest.raises(InputError, match="shards exists already"):
        write()
    target.forget(begun=False)  # somebody's
    assert bucket.files("shards") == on_disk
    bucket.remove("shards/manifest.json")
    target.forget(begun=False)  # half a data set
    assert bucket.files() == {}


def test_a_last_step_that_was_ended_begins_again(finished, folders, tmp_path):
    shutil.copytree(finished.out, tmp_path / "out")
    made = config(folders, finished.endpoint.base_url)
    (tmp_path / "out" / "steps" / "6_curate" / "step.json").unlink()
    (tmp_path / "out" / ".shards.0123abcd").mkdir()
    build(made, str(tmp_path / "out"), options=SINGLE)
    assert contents(tmp_path / "out") == contents(finished.out)
    assert not list((tmp_path / "out").glob(".shards*"))
    # Shards that no step of this build has begun are somebody's.
    shutil.rmtree(tmp_path / "out" / "steps" / "6_curate")
    with pytest.raises(InputError, match="shards exists already"):
        build(made, str(tmp_path / "out"), options=SINGLE)
