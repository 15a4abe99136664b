"""The benchmark's command at its smallest size, and what it refuses."""

import json

import pytest

from vlaa_jax.errors import InputError


def test_tiny_sizes_against_transformers_and_trl(launch, tmp_path, capsys):
    arguments = ["--preset=tiny", "--runs=1", "--repeats=0", f"--json={tmp_path / 'figures.json'}"]
    launch("benchmark", *arguments)
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["part"] for row in figures["rows"]] == ["sampling", "lengths", "update", "step"]
    sampling, lengths, update, step = figures["rows"]
    # Two completions of four tokens for each of two prompts; both sides count what they drew.
    for row, amount in ((sampling, 16), (update, 8), (step, 16)):
        assert row["amount"] == amount
        for side in ("ours", "theirs"):
            [run] = row[side]["runs"]
            assert run["seconds"] == row[side]["seconds"] > 0
            assert run["result"]["peak_bytes"] > 2**20
        assert row["ratio"] == pytest.approx(row["theirs"]["seconds"] / row["ours"]["seconds"])
    assert sampling["ours"]["runs"][0]["result"]["tokens_drawn"] == 16
    assert step["theirs"]["runs"][0]["result"]["tokens_drawn"] == 16
    found = lengths["figures"]
    assert 8 < found["mean_length"] < 32 and 48 < found["longest_ours"] <= 96, "geometric"
    # One loop: 32 rows until the longest has ended; the first token of a row needs no step.
    assert found["row_steps_theirs"] == 32 * (found["longest_theirs"] - 1)
    assert found["row_steps_ours"] < 0.6 * found["row_steps_theirs"]
    assert found["wasted_theirs"] == pytest.approx(1 - (found["tokens_drawn_theirs"] - 32) / found["row_steps_theirs"])
    assert set(step["figures"]) >= {"ours_seconds_rollout", "ours_seconds_update", "ours_seconds_verify"}
    assert update["figures"]["flop_ratio"] == pytest.approx(109_759_488 / 57_727_488)
    assert "greedy tokens: " in printed
    assert "drawn tokens: 32 of 32 completions equal" in printed
    assert "log-probabilities of the same tokens differ by at most" in printed
    assert "loss of the first update differs by" in printed
    assert "TRL " in printed


@pytest.mark.slow
def test_the_form_for_a_gpu_runs_without_one(launch, capsys):
    launch("benchmark", "--preset=gpu-tiny", "--runs=1", "--repeats=0")
    printed = capsys.readouterr().out
    assert "sampling, 1 x 2 completions of 4 tokens" in printed
    assert "sampling, 2 x 2 completions of 4 tokens" in printed
    assert "update, one prompt with 2 completions of 4 tokens" in printed
    assert "step, " not in printed


@pytest.mark.quick
@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--preset=tpu", "--preset is 'tpu': expected one of cpu, gpu, tiny, gpu-tiny"),
        ("--parts=sampling,decode", "--parts names 'decode': expected any of sampling, lengths, update, step"),
        ("--runs=0", "--runs is 0: expected 1 or more"),
        ("--repeats=-1", "--repeats is -1: expected 0 or more"),
        ("--new-tokens=1", "--new-tokens is 1: expected 2 or more"),
        ("--json=/none/figures.json", "--json: no folder /none"),
    ],
)
def test_wrong_flags_are_refused_at_once(launch, argument, sentence):
    with pytest.raises(InputError) as refused:
        launch("benchmark", argument)
    assert str(refused.value).startswith(sentence)


def test_a_missing_gpu_is_one_sentence_before_any_weights(launch, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(InputError, match="--preset=gpu needs a GPU: JAX computes on cpu, torch does"):
        launch("benchmark", "--preset=gpu")
    assert not any(tmp_path.iterdir())
