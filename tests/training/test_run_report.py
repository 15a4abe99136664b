"""Tables and pages made from the files of run folders."""

import json

import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.tables import Table
from vlaa_jax.training.run_folder import RunFolder
from vlaa_jax.training.run_report import before_after_tables, write_comparison

pytestmark = pytest.mark.quick


def write_run(directory, before, after):
    """A run of two steps; `before` and `after` are the scores of a digit and of an iou question."""
    folder = RunFolder(directory)
    folder.begin({"task": "grpo"}, prompt_sha256="ab")
    for step, (digit, iou) in enumerate((before, after)):
        rewards = {"evaluation/reward": (digit + iou) / 2, "evaluation/reward/digit": digit, "reward": digit}
        folder.write_metrics(step, rewards)
    (directory / "evaluation").mkdir()
    for when, scores in (("before", before), ("after", after)):
        for mode in ("greedy", "sampled"):
            rows = [
                {"step": 1, "id": name, "verifier": name, "kind": name, "answers": [{"score": score, "valid": True}]}
                for name, score in zip(("digit", "iou"), scores, strict=True)
            ]
            path = directory / "evaluation" / f"{when}-{mode}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.close()
    return folder


def test_runs_are_compared_by_their_changes(tmp_path):
    folders = [
        write_run(tmp_path / "a", (0.25, 0.5), (0.75, 0.5)),
        write_run(tmp_path / "b", (0.25, 0.5), (0.25, 0.0)),
    ]
    sampled, greedy = write_comparison(folders, tmp_path / "page.html")
    assert sampled.rows == [
        ["a", "37.5", "62.5", "+25.0 [+0.0, +50.0]", "+50.0 [+50.0, +50.0]", "-", "-", "+0.0 [+0.0, +0.0]", "-"],
        ["b", "37.5", "12.5", "-25.0 [-50.0, +0.0]", "+0.0 [+0.0, +0.0]", "-", "-", "-50.0 [-50.0, -50.0]", "-"],
    ]
    assert greedy.rows == sampled.rows
    page = (tmp_path / "page.html").read_text()
    assert "held-out reward, greedy: digit" in page and "training reward: all" in page
    assert "held-out reward, greedy: mcq" not in page


def test_runs_without_an_end_have_curves_only(tmp_path):
    folder = write_run(tmp_path / "a", (0.25, 0.5), (0.75, 0.5))
    (tmp_path / "a" / "evaluation" / "after-sampled.jsonl").unlink()
    assert write_comparison([folder], tmp_path / "page.html") == []
    assert "held-out reward, greedy: all" in (tmp_path / "page.html").read_text()


def test_more_runs_than_colours_are_refused(tmp_path):
    folders = [write_run(tmp_path / str(n), (0.25, 0.5), (0.75, 0.5)) for n in range(7)]
    with pytest.raises(InputError, match="7 lines, at most 6 can be told apart"):
        write_comparison(folders, tmp_path / "page.html")


def test_tables_of_another_tool_stand_in_the_report(tmp_path):
    from vlaa_jax.training.run_report import _more_tables

    folder = write_run(tmp_path / "a", (0.25, 0.5), (0.75, 0.5))
    assert before_after_tables(folder.directory)[0].title == "Held-out reward"
    table = Table("Controls", ["policy", "all"], [["blank", "3.1"]], "greedy")
    path = folder.directory / "evaluation" / "controls.json"
    assert _more_tables(path) == []
    path.write_text(json.dumps([vars(table)]))
    assert _more_tables(path) == [table]
