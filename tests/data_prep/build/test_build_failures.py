"""What goes wrong costs one question or stops the build in one sentence, and never reaches a shard."""

import collections
import io
import json
import pathlib
import re
import shutil
import tarfile

import loopback
import pytest
import source_fixtures
from outcomes import SINGLE, aside, config, drafts
from PIL import Image

from data_prep import pictures
from data_prep.build.build import build
from vlaa_jax.errors import InputError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four questions to caption, and four that have captions."""
    everything = source_fixtures.write_all(tmp_path_factory.mktemp("sources"))
    return {name: everything[name] for name in ("vizwiz", "allava_laion")}


@pytest.fixture(scope="module")
def step_one(tmp_path_factory, folders):
    out = tmp_path_factory.mktemp("collected") / "out"
    build(config(folders, "http://127.0.0.1:9/v1"), str(out), steps=[1], options=SINGLE)
    return out


@pytest.fixture
def out(step_one, tmp_path):
    """A build whose first step is done."""
    return pathlib.Path(shutil.copytree(step_one, tmp_path / "out"))


def test_a_bad_answer_costs_one_question(folders, out):
    """An endpoint that hangs, answers 500, HTML, half a JSON, no text, too much or a NUL to one question each."""
    faults = [
        lambda request: loopback.stalled(5),
        lambda request: loopback.broken(),
        lambda request: loopback.page(),
        lambda request: loopback.half(loopback.answer(request)),
        lambda request: loopback.completion(request, ""),
        lambda request: loopback.completion(request, "<think>a</think>b", finish="length"),
        lambda request: loopback.completion(request, "<think>a</think>b\0"),
    ]
    chosen: dict[str, int] = {}

    def reply(request, number):
        prompt = loopback.read(request)[0]
        if request["model"] != "reasoner" or chosen.setdefault(prompt, len(chosen)) >= len(faults):
            return loopback.answer(request)
        return faults[chosen[prompt]](request)

    with loopback.Endpoint(reply) as endpoint:
        changes = {"distil__retries": 1, "distil__timeout": 1.0, "most_unanswered": 0.7}
        build(config(folders, endpoint.base_url, **changes), str(out), steps=[2, 3], options=SINGLE)
    lost = aside(out, "3_distil")
    assert len(lost) == len(faults) and len(drafts(out, "3_distil")) == 1
    reasons = collections.Counter(entry["reason"] for entry in lost.values())
    assert reasons["the answer was cut at max_tokens"] == 1
    assert reasons["the answer cannot be used: it holds a NUL character"] == 1
    unanswered = collections.Counter(reason.partition(":")[0] for reason in reasons if reason.startswith("unanswered"))
    assert unanswered == {
        "unanswered, no answer in time": 1,
        "unanswered, server error": 1,
        "unanswered, not JSON": 2,
        "unanswered, no text in the message": 1,
    }
    assert all(entry["draft"]["caption"] and not entry["draft"]["distilled"] for entry in lost.values())


def test_a_verifier_that_is_not_clear_is_asked_once_more(folders, out):
    seen = collections.Counter()

    def reply(request, number):
        if request["model"] != "verifier":
            return loopback.answer(request)
        place = (
            list(seen).index(request["messages"][-1]["content"])
            if request["messages"][-1]["content"] in seen
            else len(seen)
        )
        seen[request["messages"][-1]["content"]] += 1
        # The first says Yes at the second time, the second never does, the others at once.
        say = {0: ("Maybe", "Yes"), 1: ("yes", "Yes.")}.get(place, ("Yes",))
        return loopback.completion(request, say[seen[request["messages"][-1]["content"]] - 1])

    with loopback.Endpoint(reply) as endpoint:
        build(config(folders, endpoint.base_url), str(out), steps=range(2, 6), options=SINGLE)
    reasons = [entry["reason"] for entry in aside(out, "5_verify").values()]
    assert reasons == ["twice an answer other than asked for"]
    assert sorted(seen.values(), reverse=True)[:2] == [2, 2] and max(list(seen.values())[2:]) == 1


def test_the_budget_stops_the_build_and_a_larger_one_goes_on(folders, out):
    prices = {"caption__price_prompt": 0.0, "caption__price_completion": 100.0, "caption__max_tokens": 100}
    prices |= {"caption__concurrency": 1}
    with loopback.Endpoint() as endpoint:

        def run(budget):
            made = config(folders, endpoint.base_url, budget=budget, **prices)
            return build(made, str(out), steps=[2], options=SINGLE)

        with pytest.raises(InputError, match=r"the budget of 0\.0125 is used up: "):
            run(0.0125)  # the worst case of an answer is 0.01, and about 0.002 is paid
        report = json.loads((out / "report.json").read_text())
        (caption,) = report["ledger"]
        assert 0 < endpoint.requests < 4 and caption["requests"] == endpoint.requests
        assert 0 < caption["cost"] <= 0.0125 and "2 caption" not in report["steps"]
        run(1.0)
        assert endpoint.requests == endpoint.answers == 4  # none was asked again
        assert len(drafts(out, "2_caption")) == 8


def test_a_wrong_key_stops_the_build(folders, out):
    with loopback.Endpoint(lambda request, number: loopback.failed(401)) as endpoint:
        with pytest.raises(InputError, match=r"stage caption: model captioner at .* \(401\)"):
            build(config(folders, endpoint.base_url), str(out), steps=[2], options=SINGLE)
    assert not (out / "steps" / "2_caption" / "step.json").exists()


def test_a_step_does_not_end_while_its_model_is_away(folders, out):
    away = True
    with loopback.Endpoint() as endpoint:
        endpoint.reply = lambda request, number: loopback.failed(503) if away else loopback.answer(request)
        made = config(folders, endpoint.base_url, caption__retries=0)
        with pytest.raises(InputError, match=r"step 2: 4 of 8 questions got no answer .*asks them again"):
            build(made, str(out), steps=[2], options=SINGLE)
        away = False
        build(made, str(out), steps=[2], options=SINGLE)
    assert len(drafts(out, "2_caption")) == 8


def test_nothing_begins_with_a_wrong_config(folders, tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    for changes, sentence in [
        ({"caption__key_variable": "SOME_KEY"}, "the environment variable SOME_KEY"),
        ({"verify__base_url": "localhost"}, "stage verify: base_url is 'localhost'"),
        ({"distil__prompt": "none.txt"}, "config.distil.prompt: none.txt cannot be read"),
        ({"curation__aha": "final"}, "config.curation.aha is 'final': expected whole or think"),
        ({"curation__disjoint_by": "picture"}, "config.curation.disjoint_by is 'picture': expected id or image"),
        ({"curation__quotas__vizwiz__rl": -1}, "config.curation.quotas.vizwiz.rl is -1: expected 0 or more"),
        ({"files": 0}, "config.files is 0: expected 1 or more"),
        ({"shards__version": "1"}, "config.shards.version is '1': expected three numbers"),
        ({"shards__name": "my-shards"}, "config.shards.name is 'my-shards': expected lower-case"),
        ({"sources__vizwiz__folder": "gs://bucket/x"}, "config.sources.vizwiz.folder: gs://bucket/x lies in a bucket"),
    ]:
        with pytest.raises(InputError, match=sentence):
            build(config(folders, "http://127.0.0.1:9/v1", **changes), str(tmp_path))
    with pytest.raises(InputError, match="no source has a folder"):
        build(config({}, "http://127.0.0.1:9/v1"), str(tmp_path))
    with pytest.raises(InputError, match="nosuch://x cannot be reached: gs:// needs pip install 'vlaa_jax"):
        build(config(folders, "http://127.0.0.1:9/v1"), "nosuch://x")
    with pytest.raises(InputError, match="--runner: Unexpected pipeline runner: Other"):
        build(config(folders, "http://127.0.0.1:9/v1"), str(tmp_path), steps=[1], options=["--runner=Other"])
    assert not (tmp_path / "steps").exists()


def test_a_source_of_another_form_stops_the_build(tmp_path):
    (tmp_path / "arxivqa").mkdir()
    made = config({"arxivqa": tmp_path / "arxivqa"}, "http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match=r"source arxivqa: .*has none of arxivqa"):
        build(made, str(tmp_path / "out"), steps=[1], options=SINGLE)
    assert not (tmp_path / "out" / "steps" / "1_collect" / "step.json").exists()


def hostile(folder):
    """A source of two good questions between bad ones, and what each bad one is set aside for."""
    good = source_fixtures.picture("good", "JPEG", (64, 48))
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    files = {
        "good.jpg": good,
        "good2.jpg": source_fixtures.picture("good2", "JPEG", (48, 64)),
        "bomb.png": bomb.getvalue(),
        "cut.jpg": good[: len(good) // 2],
        "text.jpg": b"no picture",
        "long.jpg": source_fixtures.picture("long", "JPEG", (64, 64)),
        "nul.jpg": source_fixtures.picture("nul", "JPEG", (50, 64)),
    }
    (folder.parent / "secret.jpg").write_bytes(good)
    folder.mkdir()
    with tarfile.open(folder / "images.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"images/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    rows = [
        ("a-1", "images/good.jpg", "Which curve rises?", ""),
        ("a-2", "images/bomb.png", "Which curve rises?", f"picture: .*more than {pictures.MAX_PIXELS:,} pixels"),
        ("a-3", "images/cut.jpg", "Which curve rises?", r"picture: .*cut\.jpg.*undecodable"),
        ("a-4", "../secret.jpg", "Which curve rises?", "leaves its folder|no such"),
        ("a-5", "images/text.jpg", "Which curve rises?", r"picture: .*text\.jpg.*undecodable"),
        ("a-6", "images/long.jpg", "Why? " * 2_000_000, "too long"),
        ("a-7", "images/nul.jpg", "Which \0 curve?", "control|NUL"),
        ("a-8", "images/good2.jpg", "Which curve falls?", ""),
    ]
    lines = [
        json.dumps({"id": id, "image": image, "question": question, "options": ["A) one", "B) two"], "label": "B",
                    "rationale": "It is seen."})
        for id, image, question, _ in rows
    ]  # fmt: skip
    (folder / "arxivqa.jsonl").write_text("\n".join(lines) + "\n")
    return [reason for *_, reason in rows if reason]


def test_hostile_pictures_and_texts_cost_one_question_each(tmp_path):
    expected = hostile(tmp_path / "arxivqa")
    with loopback.Endpoint() as endpoint:
        made = config({"arxivqa": tmp_path / "arxivqa"}, endpoint.base_url)
        build(made, str(tmp_path / "out"), steps=[1], options=SINGLE)
    assert len(drafts(tmp_path / "out", "1_collect")) == 2
    reasons = [entry["reason"] for entry in aside(tmp_path / "out", "1_collect").values()]
    assert len(reasons) == len(expected)
    for words in expected:
        assert any(re.search(words, reason) for reason in reasons), (words, [r[:200] for r in reasons])
