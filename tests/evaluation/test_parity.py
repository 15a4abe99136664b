"""The checkpoint check: what it accepts, what it catches, what it says; and greedy text against transformers' own."""

import dataclasses
import gc
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import PIL.Image
import pytest
import torch
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation import parity, parity_inputs
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.models.qwen2_5_vl.config import QWEN2, QWEN2_5

ROOT = pathlib.Path(__file__).parents[2]
TOOL = ROOT / "launch" / "check_checkpoint.py"


def write(directory, seed=1, model_type=QWEN2_5, **save):
    """A random checkpoint whose vocabulary holds the tokens of `oracle.write_tokenizer`."""
    config = oracle.draw_config(np.random.default_rng(seed), tied=bool(seed % 2), model_type=model_type)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocabulary=300))
    oracle.random_checkpoint(directory, config, seed, **save)
    return config


def run(*arguments, before=""):
    """The tool as a user starts it; `before` is Python that runs first in its process."""
    code = f"{before}\nimport runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    start = ["-c", code] if before else []
    return subprocess.run(
        [sys.executable, *start, TOOL, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


# --- the oracle ---


@pytest.mark.parametrize(("seed", "model_type"), [*((seed, QWEN2_5) for seed in range(4)), (1, QWEN2)])
def test_random_checkpoints_agree(tmp_path, seed, model_type):
    write(tmp_path / "hf", seed, model_type)
    report = parity.check_checkpoint(str(tmp_path / "hf"))
    assert report.passed and report.positions == 0
    assert 0 < report.features.absolute <= 1e-4 and 0 < report.logits.absolute <= 1e-4
    assert report.rows == ("three images", "text alone", "one image")


def greedy(directory, rows):
    """Token by token: each step is one pass over the rows, padded to a fixed length."""
    model = hf.load(directory)
    room = [np.zeros(parity.CONTINUATION, np.int64)] * len(rows)
    batch = parity_inputs.lay_out(rows, model.config, room)
    lengths = np.asarray([len(row.tokens) for row in rows])

    @jax.jit
    def next_tokens(model, tokens, features, last):
        states = model(tokens, batch.positions, Causal(batch.segments), features, batch.feature_index)
        states = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        return jnp.argmax(states @ model.language.head[...].T, axis=-1)

    features = jax.jit(lambda model: model.vision(batch.vision, jnp.float32))(model)
    tokens, chosen = batch.tokens.copy(), []
    for step in range(parity.CONTINUATION):
        chosen.append(np.asarray(next_tokens(model, tokens, features, lengths - 1 + step)))
        tokens[np.arange(len(rows)), lengths + step] = chosen[-1]
    return np.stack(chosen, axis=1)


@pytest.mark.parametrize("seed", [3, 4, 10])
def test_64_greedy_tokens_with_images_equal_those_of_transformers(tmp_path, seed):
    config = write(tmp_path / "hf", seed)
    rows = parity_inputs.random_rows(config, np.random.default_rng(seed))
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    theirs.generation_config = GenerationConfig(do_sample=False, max_new_tokens=64, pad_token_id=0)
    expected = []
    for row in rows:
        theirs.model.rope_deltas = None
        tokens = torch.tensor(row.tokens)[None]
        images = {
            "pixel_values": torch.tensor(row.patches),
            "image_grid_thw": torch.tensor(row.grids),
            "mm_token_type_ids": (tokens == oracle.IMAGE).int(),
        }
        out = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **(images if row.grids else {}))
        expected.append(out[0, len(row.tokens) :].tolist())
    assert [len(row) for row in expected] == [64] * 3
    assert all(len(set(row)) > 10 for row in expected), "text that repeats itself tests nothing"
    assert greedy(tmp_path / "hf", rows).tolist() == expected
    # What the tool compares is this text.
    outputs = parity.run_transformers(str(tmp_path / "hf"), config, rows)
    assert [output.greedy.tolist() for output in outputs] == expected
    # Rounding on another machine cannot change it.
    best = [np.sort(o.logits[len(r.tokens) - 1 :], axis=-1)[:, -2:] for o, r in zip(outputs, rows, strict=True)]
    assert min((two[:, 1] - two[:, 0]).min() for two in best) > 1e-3


def test_one_model_in_memory_at_a_time(tmp_path, monkeypatch):
    write(tmp_path / "hf")
    alive = lambda: [o for o in gc.get_objects() if type(o) is Qwen2_5_VLForConditionalGeneration]  # noqa: E731
    gc.collect()
    assert not alive()
    found, load = [], hf.load
    monkeypatch.setattr(parity.hf, "load", lambda directory: found.append(len(alive())) or load(directory))
    parity.check_checkpoint(str(tmp_path / "hf"))
    assert found == [0]


# --- faults ---


def lose_key_bias(model):
    model.language.layers.key_bias[...] = model.language.layers.key_bias[...].at[-1].set(0)


def wrong_theta(model):
    model.language.config = dataclasses.replace(model.language.config, rope_theta=9e5)


def wrong_window_layers(model):
    full = set(range(model.config.vision.depth)) - set(model.config.vision.full_attention_layers)
    model.vision.config = dataclasses.replace(model.vision.config, full_attention_layers=tuple(full))


def lose_vision_bias(model):
    model.vision.blocks.qkv_bias[...] = model.vision.blocks.qkv_bias[...].at[0, 0].set(0)


@pytest.mark.parametrize(
    ("fault", "features_differ"),
    [(lose_key_bias, False), (wrong_theta, False), (wrong_window_layers, True), (lose_vision_bias, True)],
)
def test_a_fault_on_our_side_is_caught(tmp_path, monkeypatch, fault, features_differ):
    write(tmp_path / "hf")
    load = hf.load

    def broken(directory):
        model = load(directory)
        fault(model)
        return model

    monkeypatch.setattr(parity.hf, "load", broken)
    report = parity.check_checkpoint(str(tmp_path / "hf"))
    assert not report.passed
    assert report.logits.relative > report.tolerance
    assert (report.features.relative > report.tolerance) == features_differ


def test_wrong_positions_are_caught(tmp_path, monkeypatch):
    write(tmp_path / "hf")
    true_positions = parity_inputs.mrope_positions

    def late(*arguments, **keywords):
        positions = true_positions(*arguments, **keywords)
        positions[1, -1] += 3
        return positions

    monkeypatch.setattr(parity_inputs, "mrope_positions", late)
    report = parity.check_checkpoint(str(tmp_path / "hf"))
    assert report.positions == 3 and not report.passed


# --- the comparison, by hand ---

ROW = parity_inputs.Row("a row", np.asarray([4, 2]), np.zeros((0, 1), np.float32), ())


def outputs(logits, features=(1.0,), positions=(0, 1, 2)):
    """Two prompt tokens and a continuation of two: logits of tokens 0, 1 and 2."""
    logits = np.asarray(logits, np.float32)
    greedy = logits[1:].argmax(axis=-1)
    positions = np.tile(np.asarray(positions), (3, 1))
    return parity.Outputs(np.asarray([features], np.float32), positions, logits, greedy)


THEIRS = outputs([[0, 0, 0], [1, 3, 0], [2.5, 0, 2]], features=(4.0, -8.0))


def compare(ours, tolerance=1e-4):
    return parity.compare("DIR", [ROW], [ours], [THEIRS], tolerance)


@pytest.mark.quick
def test_equal_outputs_pass():
    report = compare(THEIRS)
    assert report.passed
    assert report == parity.Report(
        "DIR", ("a row",), 1e-4, parity.Difference(0.0, 0.0), 0, parity.Difference(0.0, 0.0), ()
    )
    assert "equal in 1 of 1 rows" in report.table() and report.table().endswith("the checkpoint reads the same")


@pytest.mark.quick
def test_the_first_diverging_token_and_both_margins():
    ours = outputs([[0, 0, 0], [1, 3, 0], [1.5, 0, 2]], features=(4.0, -8.5), positions=(0, 1, 4))
    report = compare(ours)
    assert report.divergences == (parity.Divergence("a row", 1, ours=2, theirs=0, our_margin=0.5, their_margin=0.5),)
    assert report.logits == parity.Difference(1.0, 1 / 3)
    assert report.features == parity.Difference(0.5, 0.0625)
    assert report.positions == 2 and not report.passed
    assert "a row: first differs at token 1: ours 2 by 5.00e-01, theirs 0 by 5.00e-01 logits" in report.table()
    assert report.table().endswith("the checkpoint DOES NOT read the same")
    assert not compare(THEIRS, tolerance=-1).passed


@pytest.mark.quick
def test_each_criterion_fails_alone():
    def passed(**change):
        return compare(dataclasses.replace(THEIRS, **change)).passed

    assert passed(features=THEIRS.features + np.float32(7e-4))  # 8 * 1e-4 are allowed
    assert not passed(features=THEIRS.features + np.float32(9e-4))
    assert passed(logits=THEIRS.logits + np.float32(2e-4))  # 3 * 1e-4
    assert not passed(logits=THEIRS.logits + np.float32(4e-4))
    assert not passed(positions=THEIRS.positions + 1)
    assert not passed(greedy=np.asarray([0, 0]))


@pytest.mark.quick
def test_a_tie_to_rounding_is_shown_and_passes():
    theirs = outputs([[0, 0, 0], [1, 3, 2.99999], [2.5, 0, 2]])
    ours = outputs([[0, 0, 0], [1, 2.99999, 3], [2.5, 0, 2]])
    report = parity.compare("DIR", [ROW], [ours], [theirs], 1e-4)
    assert [d.token for d in report.divergences] == [0] and report.divergences[0].near_tie and report.passed
    assert "equal in 0 of 1 rows" in report.table() and "(a tie to rounding)" in report.table()


@pytest.mark.quick
@pytest.mark.parametrize("place", ["features", "logits"])
def test_a_nan_fails_and_is_null_in_json(place):
    broken = getattr(THEIRS, place).copy()
    broken[0, 0] = math.nan
    report = compare(dataclasses.replace(THEIRS, **{place: broken}))
    assert not report.passed
    raw = json.loads(report.to_json())
    assert raw[place] == {"absolute": None, "relative": None} and raw["passed"] is False


@pytest.mark.quick
def test_an_image_token_in_the_continuation_is_text():
    config = oracle.draw_config(np.random.default_rng(0))
    merge = config.vision.merge
    patches = np.ones((2 * merge**2, config.vision.patch_values), np.float32)
    row = parity_inputs.Row(
        "", np.asarray([9, oracle.START, oracle.IMAGE, oracle.IMAGE]), patches, ((1, merge, 2 * merge),)
    )
    longer = parity_inputs.Row("", np.arange(10, 20), patches[:0], ())
    batch = parity_inputs.lay_out([row, longer], config, [np.asarray([oracle.IMAGE, 30]), np.asarray([31])])
    assert batch.tokens.tolist()[0] == [9, 5, 7, 7, 7, 30, 0, 0, 0, 0, 0]
    assert batch.segments.tolist() == [[1] * 6 + [0] * 5, [1] * 11]
    assert batch.feature_index.tolist() == [[-1, -1, 0, 1, *[-1] * 7], [-1] * 11]
    assert batch.positions[:, 0, :6].tolist() == [[0, 1, 2, 2, 4, 5], [0, 1, 2, 2, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert batch.positions[:, 1].tolist() == [list(range(11))] * 3


# --- pictures and questions ---


def picture(path, size=(50, 37)):
    pixels = np.random.default_rng(0).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return str(path)


def test_a_picture_with_a_question(tmp_path):
    config = write(tmp_path / "hf")
    oracle.write_tokenizer(tmp_path / "hf")
    row = parity_inputs.image_row(str(tmp_path / "hf"), config, picture(tmp_path / "a.png"), np.random.default_rng(0))
    # 37 x 50 pixels are scaled up to at least 3136, in multiples of 8: 56 x 72 pixels, 14 x 18 patches, 7 x 9 tokens.
    assert row.grids == ((1, 14, 18),) and row.patches.shape == (252, 96) and row.name == "a.png"
    assert row.tokens[:65].tolist() == [oracle.START, *[oracle.IMAGE] * 63, oracle.END]
    assert len(row.tokens) == 65 + len(parity_inputs.QUESTION)
    report = parity.check_checkpoint(str(tmp_path / "hf"), str(tmp_path / "a.png"))
    assert report.passed and report.rows[-1] == "a.png"


def test_a_picture_without_tokenizer_files(tmp_path):
    config = write(tmp_path / "hf")
    Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 640}).save_pretrained(
        tmp_path / "hf"
    )
    row = parity_inputs.image_row(str(tmp_path / "hf"), config, picture(tmp_path / "a.png"), np.random.default_rng(0))
    assert math.prod(row.grids[0]) * 16 <= 640  # the directory's own limit of pixels
    assert (row.tokens == oracle.IMAGE).sum() == math.prod(row.grids[0]) // 4
    assert parity.check_checkpoint(str(tmp_path / "hf"), str(tmp_path / "a.png")).passed


def test_a_large_picture_is_scaled_to_256_tokens(tmp_path):
    config = write(tmp_path / "hf")
    image = picture(tmp_path / "a.png", size=(900, 300))
    row = parity_inputs.image_row(str(tmp_path / "hf"), config, image, np.random.default_rng(0))
    assert 220 < (row.tokens == oracle.IMAGE).sum() <= 256


def test_wrong_pictures_tokenizers_and_processors(tmp_path):
    config = write(tmp_path / "hf")
    directory, rng = tmp_path / "hf", np.random.default_rng(0)

    def message(image=None):
        with pytest.raises(InputError) as caught:
            parity_inputs.image_row(str(directory), config, image or picture(tmp_path / "a.png"), rng)
        return str(caught.value)

    assert "nowhere.png is not a picture" in message(str(tmp_path / "nowhere.png"))
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png is not a picture" in message(str(tmp_path / "text.png"))
    oracle.write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content[1].text }}")
    assert "the chat template writes no token 7 for an image" in message()
    oracle.write_tokenizer(directory)
    small = dataclasses.replace(config, text=dataclasses.replace(config.text, vocabulary=40))
    with pytest.raises(InputError, match=r"the tokenizer gives id \d+, the model has 40 rows"):
        parity_inputs.image_row(str(directory), small, picture(tmp_path / "a.png"), rng)
    (directory / "tokenizer.json").write_text("{")
    assert "the tokenizer of" in message()
    Qwen2VLImageProcessorPil(patch_size=14).save_pretrained(directory)
    assert "patch, temporal patch and merge sizes (14, 2, 2), config.json (4, 2, 2)" in message()


# --- the tool ---


def test_the_tool_on_a_directory_without_tokenizer_files(tmp_path):
    write(tmp_path / "hf", max_shard_size="100KB")
    done = run("--checkpoint", tmp_path / "hf", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "greedy continuation of 64 tokens: equal in 3 of 3 rows" in done.stdout
    raw = json.loads((tmp_path / "report.json").read_text())
    assert raw["passed"] is True and raw["positions"] == 0 and raw["divergences"] == []
    assert f"{raw['logits']['absolute']:.2e}" in done.stdout and f"{raw['features']['relative']:.2e}" in done.stdout


PERTURB = """
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.models.qwen2_5_vl.config import QWEN2, QWEN2_5
load = hf.load
def perturbed(directory):
    model = load(directory)
    up = model.language.layers.up
    up[...] = up[...].at[0].multiply(1.01)
    return model
hf.load = perturbed
"""


def test_the_tool_with_perturbed_weights(tmp_path):
    write(tmp_path / "hf")
    done = run("--checkpoint", tmp_path / "hf", "--json", tmp_path / "report.json", before=PERTURB)
    assert done.returncode == 1, done.stderr
    assert "the checkpoint DOES NOT read the same" in done.stdout
    raw = json.loads((tmp_path / "report.json").read_text())
    assert raw["passed"] is False and raw["logits"]["relative"] > raw["tolerance"] == 1e-4


def test_the_tool_refuses_in_one_sentence(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    done = run("--checkpoint", other)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: {other / 'config.json'}: model_type is 'llama', expected 'qwen2_5_vl' or 'qwen2_vl'\n"
    )

    write(tmp_path / "hf")
    done = run("--checkpoint", tmp_path / "hf", before="import sys; sys.modules['torch'] = None")
    assert done.returncode == 2
    sentence = "the comparison needs torch: install it with `pip install -e '.[test]'` in the repository"
    assert done.stderr.splitlines() == [f"error: {sentence}"]

    done = run("--checkpoint", tmp_path / "hf", "--json", tmp_path / "nowhere" / "report.json")
    assert done.returncode == 2 and done.stderr == f"error: --json: no folder {tmp_path / 'nowhere'}\n"
