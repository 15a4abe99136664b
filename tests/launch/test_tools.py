import json

import pytest
from tiny_checkpoint import picture
from tiny_runs import write_shards

from vlaa_jax.processing.records import Record


def test_evaluation_prints_tables_and_writes_figures_and_answers(tiny, tmp_path, launch, capsys):
    launch(
        "tpu_eval",
        f"--workdir={tiny.run.folder.directory}",
        f"--data={tiny.shards}:test",
        "--samples=3",
        "--new-tokens=5",
        "--batch=4",
        f"--json={tmp_path / 'figures.json'}",
        f"--out={tmp_path / 'answers.jsonl'}",
    )
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    assert "step 1 on 5 records" in printed.out
    for title in ("Answers, greedy, by verifier", "Answers, 3 samples at temperature 1, by kind", "best of 3"):
        assert title in printed.out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["options"]["new_tokens"] == 5
    assert figures["prompt_sha256"] == figures["trained_prompt_sha256"]
    for mode in ("greedy", "sampled"):
        assert set(figures[mode]["verifier"]) == {"all", "digit"}
        assert {name: part["records"] for name, part in figures[mode]["kind"].items()} == {"kind0": 3, "kind1": 2}
        assert 0 < figures[mode]["verifier"]["all"]["length"]["value"] <= 5
    assert "best_of" in figures["sampled"]["verifier"]["all"]
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in answers if row["mode"] == "greedy"] == ["r0", "r1", "r2", "r3", "r4"]
    assert [len(row["answers"]) for row in answers] == [1] * 5 + [3] * 5
    samples = [answer["completion"] for row in answers[5:] for answer in row["answers"]]
    assert len(set(samples)) > 5, "samples differ"


def test_evaluation_refuses_bad_records_unless_told_otherwise(tiny, tmp_path, launch, capsys):
    from vlaa_jax.errors import InputError

    shards = write_shards(tmp_path / "bad", Record("broken", (b"no picture",), "What?", "1", "digit"))
    arguments = [f"--checkpoint={tiny.checkpoint}", f"--data={shards}:test", "--samples=0", "--new-tokens=2"]
    with pytest.raises(InputError, match=r"1 of 6 records cannot be used \(broken: .* --skip-bad goes on"):
        launch("tpu_eval", *arguments)
    launch("tpu_eval", *arguments, "--skip-bad", "--records=2", "--images=swapped")
    printed = capsys.readouterr().out
    assert "skipped: 1 of 6 records" in printed
    assert "on 2 records" in printed
    assert "samples at temperature" not in printed


def test_a_question_about_two_pictures(tiny, tmp_path, launch, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name)))
    images = [f"--image={tmp_path / name}.png" for name in ("a", "b")]
    policy = f"--checkpoint={tiny.checkpoint}"
    launch("ask", policy, *images, "--question=Is <image> <image> a pair?", "--new-tokens=3", "--samples=2", "--seed=1")
    printed = capsys.readouterr().out
    assert "question: Is <image> <image> a pair?" in printed
    assert printed.count("answer: ") == 2
    assert "reward" not in printed


def test_without_arguments_the_last_run_is_asked_about_a_scene(tiny, tmp_path, launch, capsys, monkeypatch):
    scenes = write_shards(tmp_path / "scenes")
    monkeypatch.setattr("data_prep.digit_scenes.demo.data", lambda location: f"{scenes}:test")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(tiny.run.folder.directory)
    monkeypatch.chdir(tmp_path)
    launch("ask", "--seed=7", "--new-tokens=3")
    printed = capsys.readouterr().out
    assert "policy:   runs/mine, step 1" in printed
    assert f"picture:  {tmp_path}/r2-0.png" in printed
    assert (tmp_path / "r2-0.png").read_bytes() == picture(2)
    assert "gold:     2" in printed
    assert "reward:   0.00 (digit: " in printed
