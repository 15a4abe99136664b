"""Best of N from the command line: sampled and judged, judged again from its own files, and over an endpoint."""

import csv
import json
import math
import re

import loopback
import pytest
from flax import nnx
from tiny_checkpoint import picture
from tiny_runs import write_shards

from vlaa_jax.errors import InputError
from vlaa_jax.models import reward_model
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.processing.records import Record
from vlaa_jax.processing.tokenizer import Tokenizer
from vlaa_jax.rewards import router


@pytest.fixture(scope="module")
def heads(tiny, tmp_path_factory):
    """`process` and `outcome` on the tiny policy."""
    root = tmp_path_factory.mktemp("heads")
    policy, layout = hf.load(tiny.checkpoint), hf.read_layout(tiny.checkpoint)
    model = reward_model.with_head(policy, reward_model.RewardHead(policy.config.text.width, nnx.Rngs(0)))
    for kind in reward_model.KINDS:
        reward_model.save(model, kind, root / kind, layout)
    return root


def rows(folder) -> dict[tuple[str, str, str], dict]:
    """Lines of the table that are of all questions, by judge, aggregation and N."""
    lines = csv.DictReader((folder / "tables.csv").open())
    return {(row["judge"], row["aggregation"], row["n"]): row for row in lines if row["split"] == "all"}


def test_sampled_responses_are_judged_and_judged_again_from_the_folder(tiny, heads, tmp_path, launch, capsys):
    judges = [
        f"process:{heads / 'process'}",
        f"outcome:{heads / 'outcome'}",
        f"untrained:{tiny.checkpoint}",
        "likelihood",
    ]
    launch(
        "tpu_eval",
        f"--checkpoint={tiny.checkpoint}",
        f"--data={tiny.shards}:test",
        "--best-of=4,2",
        *(f"--judge={judge}" for judge in judges),
        "--new-tokens=5",
        "--temperature=1",
        "--batch=5",
        f"--out-folder={tmp_path / 'first'}",
    )
    printed = capsys.readouterr().out
    assert "on 5 records" in printed and f"written to {tmp_path / 'first'}" in printed
    assert "Accuracy of the pick, responses of " in printed and "Averages over judges" in printed
    lines = [json.loads(line) for line in (tmp_path / "first" / "responses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["r0", "r1", "r2", "r3", "r4"]
    for line in lines:
        assert len(line["responses"]) == 4 and isinstance(line["greedy"], str)
        assert list(line["scores"]) == judges and line["whole"] == judges[1:2]
        assert [len(line["scores"][judge]) for judge in judges] == [4] * 4
    found = rows(tmp_path / "first")
    for judge, count in zip(judges, (7, 1, 7, 6), strict=True):
        assert len({how for name, how, _ in found if name == judge}) == count
    assert {n for _, _, n in found} == {"2", "4"}
    # The outcome head is the process head here: it picks by the last step alone.
    same = [{k: v for k, v in found[judge, "last", "4"].items() if k != "judge"} for judge in judges[:2]]
    assert same[0] == same[1]

    launch(
        "tpu_eval",
        f"--data={tiny.shards}:test",
        "--best-of=2,4",
        f"--responses={tmp_path / 'first' / 'responses.jsonl'}",
        "--judge=stored",
        f"--out-folder={tmp_path / 'second'}",
    )
    for name in ("tables.csv", "responses.jsonl"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    for path in (tmp_path / "first" / "pictures").iterdir():
        assert (tmp_path / "second" / "pictures" / path.name).read_bytes() == path.read_bytes()


def test_a_reward_model_scores_open_ended_answers(tiny, heads, tmp_path, launch, capsys, monkeypatch):
    """Random text has no tags: all of it is the answer."""
    monkeypatch.setattr(router, "answer_text", lambda text, *, strict: (text.strip() or "nothing", ""))
    more = [
        Record(f"o{i}", (picture(i),), "What is it?", answer, "open_ended") for i, answer in enumerate(("up", "on"))
    ]
    launch(
        "tpu_eval",
        f"--checkpoint={tiny.checkpoint}",
        f"--data={write_shards(tmp_path / 'shards', *more)}:test",
        f"--scorer=process:{heads / 'process'}",
        "--samples=2",
        "--new-tokens=5",
        f"--out={tmp_path / 'answers.jsonl'}",
    )
    printed = capsys.readouterr().out
    beta = float(re.search(r"beta (\S+), so that the median difference of two answers", printed)[1])
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    traces = [answer for line in lines if line["id"] in ("o0", "o1") for answer in line["answers"]]
    assert len(traces) == 2 * (1 + 2)
    for trace in traces:
        ours, theirs = map(float, trace["normal_form"].split(" against "))
        assert trace["score"] == pytest.approx(max(0.0, 1 - math.exp(-beta * (ours - theirs))), abs=1e-3)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Two records more, of which it is known what they can be answered from."""
    more = [
        Record(f"d{i}", (picture(i),), "How many dots?", "3", "digit", metadata={"by": by})
        for i, by in enumerate(("text", "vision"))
    ]
    return write_shards(tmp_path_factory.mktemp("split") / "shards", *more)


def test_an_endpoint_judges_responses_from_a_file(split, tmp_path, launch, capsys):
    right, wrong = (f"Step 1: I count.\n</think>\n<answer>{answer}</answer>" for answer in (3, 4))
    first = [{"id": "d0", "responses": [wrong, right, wrong, wrong]}, {"id": "d1", "responses": [right, right]}]
    (tmp_path / "big.jsonl").write_text("\n".join(map(json.dumps, first)))
    (tmp_path / "small.jsonl").write_text(json.dumps({"id": "d0", "responses": [wrong, wrong], "greedy": right}))
    (tmp_path / "own.json").write_text('{"rubric:grader": 0.5}')

    def grade(request, number):
        prompt = loopback.read(request)[0]
        return loopback.completion(request, f"Overall Score: {4 if '<answer>3' in prompt else 2}")

    with loopback.Endpoint(grade) as server:
        launch(
            "tpu_eval",
            f"--data={split}:test",
            "--best-of=2,4,8",
            f"--responses={tmp_path / 'big.jsonl'}",
            f"--responses={tmp_path / 'small.jsonl'}",
            "--judge=rubric:grader",
            f"--endpoint={server.base_url}",
            f"--own-accuracy={tmp_path / 'own.json'}",
            "--dominance=by",
            f"--out-folder={tmp_path / 'out'}",
        )
        assert server.asked == {"grader": 3 + 2}, "each prefix of a question once, over both files"
    found = list(csv.DictReader((tmp_path / "out" / "tables.csv").open()))
    cells = {
        (row["model"], row["split"], row["group"], row["judge"], row["aggregation"], row["n"]): row for row in found
    }
    assert cells["big", "all", "", "rubric:grader", "last", "2"]["accuracy"] == "1"
    assert cells["big", "all", "", "rubric:grader", "last", "4"]["questions"] == "1"
    assert cells["big", "all", "", "mean sample", "", "2"]["accuracy"] == "0.75"
    assert cells["big", "all", "", "mean sample", "", "4"]["accuracy"] == "0.25"
    assert not any(row["n"] == "8" for row in found)
    assert cells["small", "all", "", "greedy", "", "2"]["accuracy"] == "1"
    assert cells["small", "all", "", "oracle", "", "2"]["accuracy"] == "0"
    assert ("big", "dominance", "text", "rubric:grader", "last", "4") in cells
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "A judge's own accuracy against that of its picks" in text
    assert "Answered questions: 2 of big, 1 of small; from " in text


def test_a_policy_in_this_process_grades(tiny, split, tmp_path, launch, monkeypatch):
    """What it says is made up: random weights never give a grade."""
    monkeypatch.setattr(Tokenizer, "decode", lambda self, tokens: f"I looked.\nOverall Score: {1 + len(tokens) % 2}")
    responses = [f"Step 1: I count.\n</think>\n<answer>{answer}</answer>" for answer in (3, 4)]
    (tmp_path / "given.jsonl").write_text(json.dumps({"id": "d0", "responses": responses}))
    judge = f"rubric:policy:{tiny.checkpoint}"
    launch(
        "tpu_eval",
        f"--data={split}:test",
        "--best-of=2",
        f"--responses={tmp_path / 'given.jsonl'}",
        f"--judge={judge}",
        f"--out-folder={tmp_path / 'out'}",
    )
    (line,) = map(json.loads, (tmp_path / "out" / "responses.jsonl").read_text().splitlines())
    assert [len(scores) for scores in line["scores"][judge]] == [2, 2]
    assert {score for scores in line["scores"][judge] for score in scores} <= {1.0, 2.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge=likelihood"], "belong to --best-of"),
        ([], "one of --checkpoint and --workdir is needed"),
        (["--best-of=2", "--out-folder=new"], "--best-of needs responses"),
        (["--best-of=2"], "--best-of needs --out-folder=DIR"),
        (["--best-of=1,2", "--out-folder=new"], "--best-of is '1,2': expected numbers of responses above 1"),
        (["--best-of=many", "--out-folder=new"], "--best-of is 'many'"),
        (["--best-of=2", "--out-folder=tests"], "--out-folder: tests exists already"),
        (
            ["--best-of=2", "--out-folder=new", "--responses=x", "--judge=prm:x"],
            "--judge is 'prm:x': expected process:",
        ),
        (
            ["--best-of=2", "--out-folder=new", "--checkpoint=demo", "--judge=stored"],
            "--judge=stored needs --responses",
        ),
        (["--best-of=2", "--out-folder=new", "--responses=x", "--judge=rubric:m"], "name its endpoint, --endpoint=URL"),
        (["--best-of=2", "--out-folder=new", "--responses=x", "--records=3"], "--records chooses what is sampled"),
        (["--best-of=2", "--out-folder=new", "--responses=x", "--json=y"], "do not go with --best-of"),
        (["--best-of=2", "--out-folder=new", "--responses=none.jsonl"], "none.jsonl: no response file"),
        (["--best-of=2", "--out-folder=new", "--responses=x", "--judge=process:none"], "none does not exist"),
        (["--best-of=2", "--out-folder=new", "--responses=x", "--judge=likelihood"], "no policy is evaluated here"),
        (["--best-of=2", "--out-folder=new", "--responses=x", "--own-accuracy=none"], "none: expected JSON"),
        (["--checkpoint=demo", "--rows=0"], "--rows is 0: expected 1 or more"),
    ],
)
def test_wrong_flags_are_refused_at_once(tiny, launch, arguments, message):
    with pytest.raises(InputError) as refused:
        launch("tpu_eval", f"--data={tiny.shards}:test", *arguments)
    assert message in str(refused.value)
