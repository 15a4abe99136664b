import contextlib
import io
import json
import re

import numpy as np
import pytest
from tiny_checkpoint import picture, write_checkpoint
from tiny_runs import write_run

from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl.config import QWEN2, QWEN2_5, read_config
from vlaa_jax.processing.records import Record
from vlaa_jax.training import saved_policy
from vlaa_jax.training.export import export, trained_model

QUESTION = "How many dots are there?"


def contents(directory) -> dict:
    return {
        path.relative_to(directory): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [directory, *directory.rglob("*")]
    }


def greedy(policy: saved_policy.SavedPolicy) -> list[int]:
    prompt = policy.encoder.encode(Record("q", (picture(),), QUESTION, "", "open_ended"))
    generator = policy.generator(
        group=1, temperature=0, new_tokens=0, prompt_buckets=(1024,), window_buckets=(32,), seed=0
    )
    completions = generator(policy.weights(), [prompt], [0]).completions
    return completions.tokens[0, 0, : int(completions.lengths[0, 0])].tolist()


def by_model_card(directory, tmp_path) -> tuple[list[int], str, str]:
    """Runs the card's code as it stands: the new tokens, what it printed, and the model's class."""
    (tmp_path / "picture.png").write_bytes(picture())
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)[1]
    names = {"directory": str(directory), "picture": str(tmp_path / "picture.png"), "question": QUESTION}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return (
        names["out"][0, names["inputs"]["input_ids"].shape[1] :].tolist(),
        printed.getvalue(),
        type(names["model"]).__name__,
    )


@pytest.mark.parametrize(
    ("model_type", "tied", "freeze_vision"), [(QWEN2_5, False, True), (QWEN2_5, True, False), (QWEN2, True, False)]
)
def test_the_model_card_runs_in_transformers_and_continues_as_we_do(tmp_path, model_type, tied, freeze_vision):
    start = write_checkpoint(tmp_path / "start", tied=tied, seed=3 + tied, model_type=model_type)
    run = write_run(tmp_path / "run", start, freeze_vision=freeze_vision)
    before = contents(run.folder.directory)
    assert export(run.folder, run.config, tmp_path / "policy") == 1
    assert contents(run.folder.directory) == before, "export only reads the run"
    ours = greedy(saved_policy.from_checkpoint(tmp_path / "policy"))
    assert ours != greedy(saved_policy.from_checkpoint(start))[: len(ours)], "training changed the policy"
    assert len(set(ours)) > 2
    tokens, printed, name = by_model_card(tmp_path / "policy", tmp_path)
    assert name == {QWEN2_5: "Qwen2_5_VL", QWEN2: "Qwen2VL"}[model_type] + "ForConditionalGeneration"
    assert tokens == ours
    assert len(tokens) == 12 or tokens[-1] == 9
    assert printed.strip()
    assert ours == greedy(saved_policy.from_run(run.folder, run.config))


def test_what_an_export_holds(tiny, tmp_path):
    out = tmp_path / "policy"
    export(tiny.run.folder, tiny.run.config, out)
    read = lambda name: json.loads((out / name).read_text())  # noqa: E731
    processor = read("preprocessor_config.json")
    assert processor["size"] == {"shortest_edge": 256, "longest_edge": 1024}
    assert (processor["min_pixels"], processor["max_pixels"], processor["patch_size"]) == (256, 1024, 4)
    # The penalty of the start checkpoint is gone: the policy was trained without it.
    assert read("generation_config.json") == {
        "eos_token_id": [9],
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": 12,
    }
    card = (out / "README.md").read_text()
    assert "base_model: start" in card
    assert f"config hash `{tiny.run.folder.header()['config_hash']}`" in card
    assert "0.500 at step 1" in card
    policy = saved_policy.from_checkpoint(out)
    assert policy.encoder.prompt.instructions["digit"] == "One number."
    assert (policy.new_tokens, policy.encoder.images.max_pixels) == (12, 1024)
    assert policy.warning() == ""
    trained, frozen = tiny.run.state.trainable, tiny.run.state.frozen
    np.testing.assert_array_equal(policy.model.language.embedding[...], trained.language.embedding[...])
    np.testing.assert_array_equal(policy.model.vision.merger_in[...], frozen.vision.merger_in[...])
    assert not list(tmp_path.glob(".*")), "no temporary folder stays behind"


def test_another_conversation_than_in_training_is_named(tiny, tmp_path):
    out = tmp_path / "policy"
    export(tiny.run.folder, tiny.run.config, out)
    (tmp_path / "system.txt").write_text("Answer.")
    for policy in (
        saved_policy.from_checkpoint(out, system=str(tmp_path / "system.txt")),
        saved_policy.from_run(tiny.run.folder, tiny.run.config, system=str(tmp_path / "system.txt")),
    ):
        assert "was trained with the conversation" in policy.warning()


def test_pixel_limits_reach_a_processor_that_was_saved_whole(tmp_path):
    start = write_checkpoint(tmp_path / "start", tied=False, seed=3)
    image = json.loads((start / "preprocessor_config.json").read_text())
    (start / "preprocessor_config.json").unlink()
    (start / "processor_config.json").write_text(json.dumps({"image_processor": image}))
    run = write_run(tmp_path / "run", start, freeze_vision=True)
    export(run.folder, run.config, tmp_path / "policy")
    images = saved_policy.from_checkpoint(tmp_path / "policy").encoder.images
    assert (images.min_pixels, images.max_pixels, images.factor) == (256, 1024, 8)


def test_nothing_is_overwritten(tiny, tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="policy exists already: nothing was written"):
        export(tiny.run.folder, tiny.run.config, tmp_path / "policy")
    assert [path.name for path in tmp_path.rglob("*")] == ["policy", "mine.txt"]


def test_a_failed_export_leaves_nothing(tiny, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("vlaa_jax.training.export._write_pixel_limits", fail)
    with pytest.raises(OSError, match="disk full"):
        export(tiny.run.folder, tiny.run.config, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_are_not_there(tiny, tmp_path):
    with pytest.raises(InputError, match="has no checkpoint of step 7: it holds 1"):
        trained_model(tiny.run.folder, tiny.run.config, 7)
    config = tiny.run.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.checkpoint = str(write_checkpoint(tmp_path / "other", tied=False, seed=5))
    assert read_config(tmp_path / "other").text.width != read_config(tiny.checkpoint).text.width
    with pytest.raises(InputError, match="does not fit the start checkpoint"):
        trained_model(tiny.run.folder, config)
