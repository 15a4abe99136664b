"""A whole search with a policy that needs no model: its files, restarts, workers, and what it refuses."""

import json
import pathlib
import shutil

import pytest
from small_search import FakePolicy, config

from data_prep.__main__ import main
from data_prep.released.command import import_released
from data_prep.search import export, settings
from data_prep.search.export import Selection, process_of
from data_prep.search.folder import SearchFolder
from data_prep.search.search import search
from data_prep.search.tree import Rules, Tree
from vlaa_jax.errors import InputError
from vlaa_jax.processing.records import ProcessRecord
from vlaa_jax.processing.shards import RecordSource
from vlaa_jax.processing.steps import split_steps

RULES = Rules(16, 8, 1.0, "visits", "normalised")


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files but timings, by name."""
    out = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".seconds":
            out[str(path.relative_to(folder))] = path.read_bytes()
    if "report.json" in out:
        report = json.loads(out["report.json"])
        assert report.pop("seconds") >= 0
        out["report.json"] = report
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes, cache):
    """An undisturbed search."""
    out = tmp_path_factory.mktemp("finished") / "search"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAA_JAX_CACHE", str(cache))
        patch.setattr(settings, "policy", lambda config, *_: FakePolicy(config.search.rollouts))
        search(config(scenes), out, trees=4)
    return out


def test_every_prefix_of_every_kept_tree_is_one_record(finished, scenes):
    source, kept = RecordSource(f"{scenes}:rl"), {}
    for stored in SearchFolder(finished).trees():
        tree, record = Tree.from_json(RULES, stored), source[stored["place"]]
        assert (stored["id"], stored["gold"], tree.rollouts) == (record.id, record.answer, 12)
        if not Selection(True, 2).dropped(tree):
            for place, node in enumerate(tree.nodes()):
                if place and (node.ends or node.visits >= 2):
                    kept[f"{record.id}/{place}"] = (process_of(node), node.mean, record.images, record.question)
    splits = {name: RecordSource(f"{finished / 'shards'}:{name}", ProcessRecord) for name in ("train", "heldout")}
    found = {record.id: record for source in splits.values() for record in map(source.__getitem__, range(len(source)))}
    assert found.keys() == kept.keys() and len(kept) > 20
    for name, record in found.items():
        process, value, images, question = kept[name]
        assert (record.process, record.images, record.question) == (process, images, question)
        assert record.value == pytest.approx(value, abs=1e-6) and split_steps(record.process)
    questions = [{source[i].id.rpartition("/")[0] for i in range(len(source))} for source in splits.values()]
    assert not questions[0] & questions[1] and len(questions[1]) == round(0.3 * sum(map(len, questions)))


def test_report_counts(finished):
    report = json.loads((finished / "report.json").read_text())
    trees = list(SearchFolder(finished).trees())
    decided = [stored for stored in trees if stored["right"] in (0, 12)]
    assert (report["questions"], report["rollouts"]) == (12, 144)
    assert sum(report["dropped"].values()) == len(decided) == 12 - report["kept"]
    assert report["share_right"] == sum(stored["right"] for stored in trees) / 144
    assert report["nodes"] == sum(len(stored["nodes"]) - 1 for stored in trees)
    assert report["tokens"] == sum(stored["tokens"] for stored in trees) > 0
    assert report["records"] == sum(report["splits"].values())
    assert 0 < report["share_of_records_in_numbered_steps"] < 1
    assert sum(part["questions"] for part in report["verifiers"].values()) == 12


def test_the_published_layout_is_imported_as_it_was(finished, tmp_path):
    rows = json.loads((finished / "process.json").read_text())
    assert list(rows[0]) == ["index", "image_path", "question", "process", "value"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    import_released(finished / "process.json", finished, tmp_path / "imported")
    ours, theirs = (
        RecordSource(f"{folder}:train", ProcessRecord) for folder in (finished / "shards", tmp_path / "imported")
    )
    expected = [record for record in map(ours.__getitem__, range(len(ours))) if len(record.images) == 1]
    found = list(map(theirs.__getitem__, range(len(theirs))))
    fields = lambda record: (record.images, record.question, record.process, record.value)  # noqa: E731
    assert [fields(record) for record in found] == [fields(record) for record in expected]
    report = json.loads((finished / "report.json").read_text())
    assert report["records_not_published"] == len(ours) - len(expected) > 0, "a scene of two pictures is among them"


def test_one_that_was_interrupted_in_every_round_ends_with_the_same_bytes(finished, searching, tmp_path):
    out, chunks, rounds = tmp_path / "search", 3, 2
    for done in range(chunks):
        for stop in range(1, rounds + 1):
            with pytest.raises(KeyboardInterrupt):
                searching.run(out, stop=stop)
            assert len(list((out / "trees").glob("*.jsonl"))) == done and not (out / "report.json").exists()
        if done + 1 < chunks:
            with pytest.raises(KeyboardInterrupt):
                searching.run(out, stop=rounds + 1)  # behind a whole chunk
    assert searching.run(out).calls == rounds, "what is whole is not grown again"
    assert contents(out) == contents(finished)


def test_an_export_that_was_interrupted_is_made_again(finished, searching, tmp_path, monkeypatch):
    out = tmp_path / "search"
    with monkeypatch.context() as patch:
        patch.setattr(export, "finish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            searching.run(out)
    assert not (out / "report.json").exists() and not (out / "shards").exists()
    (out / "shards").mkdir()  # another one was killed between its renames
    assert searching.run(out).calls == 0
    assert contents(out) == contents(finished)


def test_chunks_and_workers_change_no_tree(finished, searching, tmp_path, capsys):
    out = tmp_path / "search"
    trees = {stored["id"]: stored for stored in SearchFolder(finished).trees()}
    searching.run(tmp_path / "other", rollout__questions=12)
    assert {stored["id"]: stored for stored in SearchFolder(tmp_path / "other").trees()} == trees
    searching.run(out, worker=1, workers=2)
    assert "2 of 3 chunks are still to be searched" in capsys.readouterr().out
    searching.run(out, worker=0, workers=2)
    assert contents(out) == contents(finished)


def test_a_finished_search_is_left_alone_and_another_one_refused(finished, searching, capsys):
    before = contents(finished)
    assert searching.run(finished).calls == 0
    assert "this search is finished" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"^config\.search\.rollouts is 2, but the trees in .* were made with 3: name"):
        searching.run(finished, search__rollouts=2)
    assert contents(finished) == before


def test_policy_and_questions_may_lie_elsewhere(finished, searching, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "moved")
    path = tmp_path / "moved" / "search.json"
    made_from = json.loads(path.read_text())
    made_from["config"]["model"]["checkpoint"] = "/elsewhere/policy"
    made_from["config"]["data"]["questions"] = "/elsewhere/shards:rl"
    path.write_text(json.dumps(made_from))
    assert searching.run(tmp_path / "moved").calls == 0
    assert "this search is finished" in capsys.readouterr().out


def test_a_folder_with_something_else_is_not_written_to(searching, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no search"):
        searching.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search__leaves": 3}, "config.search.simulations is 4: expected a multiple of the 3"),
        ({"search__rollouts": 0}, "config.search.rollouts is 0: expected 1 or more"),
        ({"search__prior": "flat"}, "config.search.prior is 'flat': expected visits or uniform"),
        ({"export__heldout": 1.5}, "config.export.heldout is 1.5: expected a share"),
        ({"rollout__process_buckets": ()}, "config.rollout.process_buckets is empty"),
        ({"value__judge_weight": 0.5}, "config.value.judge is not set"),
        ({"rewards__enabled": ("digits",)}, "config.rewards.enabled names 'digits'"),
    ],
)
def test_what_cannot_be_is_said_with_its_field(scenes, changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        settings.check(config(scenes, **changes))


def test_open_ended_questions_need_their_scorer(searching, tmp_path):
    with pytest.raises(InputError, match="open-ended records need a scorer"):
        searching.run(tmp_path / "out", rewards__scorer="")


def test_page_shows_questions_trees_and_verdicts(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["data_prep", "search-page", f"--search={finished}", f"--html={tmp_path / 'a.html'}"]
    )
    main()
    text = (tmp_path / "a.html").read_text()
    shown = [stored for stored in SearchFolder(finished).trees() if 0 < stored["right"] < 12]
    assert text.count("<svg class='tree'") == len(shown) and "data:image/png;base64," in text
    assert "✓ right" in text and "✗ wrong" in text and "At once." in text and ">Answer: " in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert (finished / "trees.html").read_text().count("<svg class='tree'") == 4
    monkeypatch.setattr(
        "sys.argv", ["data_prep", "search-page", f"--search={tmp_path}", f"--html={tmp_path / 'b.html'}"]
    )
    with pytest.raises(InputError, match="holds no search"):
        main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--config={config}:3b",),
            r"search\.py:3b needs --config\.model\.checkpoint=\.\.\. \(a Hugging Face directory",
        ),
        (("--config={config}", "--worker=2/2"), r"--worker is '2/2': expected I/N with I from 0 to N - 1"),
        (("--config={config}", "--trees=-1"), r"--trees is -1: expected 0 or more"),
        (("--config={config}", "--config.search.depth=-1"), r"config\.search\.depth is -1: expected 0 or more"),
        (("--config={config}", "--config.search.deep=1"), "the config has no field 'deep'"),
    ],
)
def test_wrong_command_lines_end_in_a_sentence(monkeypatch, tmp_path, arguments, message):
    file = pathlib.Path(__file__).parents[3] / "configs" / "search.py"
    given = [argument.format(config=file) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["data_prep", "search", f"--out={tmp_path / 'out'}", *given])
    with pytest.raises(InputError, match=message):
        main()
    assert not (tmp_path / "out").exists()
