"""Our model against transformers' on random weights: features, positions, logits, greedy text."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import safetensors.numpy
import torch

from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import hf
from vlaa_jax.models.qwen2_5_vl.config import QWEN2, QWEN2_5
from vlaa_jax.objectives.log_probabilities import token_log_probabilities
from vlaa_jax.processing.positions import mrope_positions
from vlaa_jax.processing.vision_plan import WindowGeometry, pad_windows, plan


def our_batch(config, rows, *, left):
    """Tokens, mask, positions, vision arrays and feature indices of padded rows of (tokens, patches, grids)."""
    geometry = WindowGeometry(config.vision.merge, config.vision.window_units)
    length = max(len(tokens) for tokens, _, _ in rows)
    shape = (len(rows), length)
    tokens, index = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    segments, positions = np.zeros(shape, np.int32), np.zeros((3, *shape), np.int32)
    plans = []
    for b, (row, patches, grids) in enumerate(rows):
        at = slice(length - len(row), length) if left else slice(0, len(row))
        is_vision = np.isin(row, [oracle.IMAGE, oracle.VIDEO])
        arrays, slots = plan(patches, grids, geometry)
        plans.append(arrays)
        tokens[b, at], segments[b, at] = row, 1
        index[b, at][is_vision] = slots
        positions[:, b, at] = mrope_positions(
            is_vision,
            grids,
            merge=config.vision.merge,
            tokens_per_second=config.vision.tokens_per_second,
            seconds_per_grid=[1.0] * len(grids),
        )
    vision = pad_windows(plans, max(1, *[len(p.frames) for p in plans]))
    return tokens, segments, positions, vision, index


def their_inputs(config, rows, batch, *, video=False):
    tokens, segments = batch[:2]
    patches = np.concatenate([patches for _, patches, _ in rows])
    grids = np.asarray([grid for _, _, grids in rows for grid in grids])
    inputs = {
        "input_ids": torch.tensor(tokens).long(),
        "attention_mask": torch.tensor(segments).long(),
        "mm_token_type_ids": torch.tensor((tokens == oracle.IMAGE) + 2 * (tokens == oracle.VIDEO)),
    }
    if len(grids):
        inputs["pixel_values" + ("_videos" if video else "")] = torch.tensor(patches)
        inputs[("video" if video else "image") + "_grid_thw"] = torch.tensor(grids)
    return inputs


def forward(model, batch):
    tokens, segments, positions, vision, index = batch

    @jax.jit
    def run(model, tokens, segments, positions, vision, index):
        features = model.vision(vision, jnp.float32)
        states = model(tokens, positions, Causal(segments), features, index)
        return features, states @ model.language.head[...].T

    return run(model, tokens, segments, positions, vision, index)


@pytest.mark.parametrize(
    ("model_type", "seed"), [*((QWEN2_5, seed) for seed in range(6)), *((QWEN2, seed) for seed in range(2))]
)
def test_logits_features_and_positions_equal_transformers(tmp_path, model_type, seed):
    rng = np.random.default_rng(seed)
    config = oracle.draw_config(rng, model_type=model_type)
    theirs = oracle.random_checkpoint(tmp_path / "hf", config, seed)
    ours = hf.load(tmp_path / "hf")
    grid = lambda: (1, *(config.vision.merge * rng.integers(1, 9, 2)).tolist())  # noqa: E731
    rows = []
    for images in (int(rng.integers(1, 5)), 0, 2):
        grids = [grid() for _ in range(images)]
        rows.append((*oracle.random_row(rng, config, grids), grids))
    batch = our_batch(config, rows, left=bool(seed % 2))
    inputs = their_inputs(config, rows, batch)
    with torch.no_grad():
        expected_positions, _ = theirs.model.get_rope_index(
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        expected_features = theirs.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        expected = theirs(**inputs).logits.numpy()
    _, segments, positions, _, index = batch
    real = segments > 0
    np.testing.assert_array_equal(positions[:, real], expected_positions.numpy()[:, real])
    features, logits = forward(ours, batch)
    taken = np.concatenate([np.asarray(features)[b][index[b][index[b] >= 0]] for b in range(len(rows))])
    np.testing.assert_allclose(taken, expected_features.numpy(), atol=1e-4)
    assert np.abs(np.asarray(logits) - expected)[real].max() <= 1e-4


def test_gradients_of_qwen2_vl_equal_transformers(tmp_path):
    rng = np.random.default_rng(2)
    config = oracle.draw_config(rng, tied=False, model_type=QWEN2)
    theirs = oracle.random_checkpoint(tmp_path / "hf", config, 2)
    grids = [(1, 6, 10), (1, 2, 4)]
    rows = [(*oracle.random_row(rng, config, grids), grids)]
    batch = our_batch(config, rows, left=False)
    targets = rng.integers(10, config.text.vocabulary, len(rows[0][0]))

    @jax.jit
    @jax.grad
    def gradient(model, targets):
        states = model(*batch[:1], batch[2], Causal(batch[1]), model.vision(batch[3], jnp.float32), batch[4])
        return -token_log_probabilities(states[0], model.language.head[...], targets)[0].sum()

    ours = gradient(hf.load(tmp_path / "hf"), targets)
    hf.save(ours, tmp_path / "gradient", hf.new_layout(ours, np.float32))
    found = safetensors.numpy.load_file(tmp_path / "gradient" / "model.safetensors")
    logits = theirs(**their_inputs(config, rows, batch)).logits[0]
    torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum").backward()
    expected = {hf.published_name(name): weight.grad.numpy() for name, weight in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= 1e-4 * np.abs(values).max(), name


@pytest.mark.parametrize(("model_type", "pace"), [(QWEN2_5, 2), (QWEN2, 1)])
def test_video_equals_transformers_at_our_positions(tmp_path, model_type, pace):
    rng = np.random.default_rng(11)
    config = oracle.draw_config(rng, model_type=model_type)
    theirs = oracle.random_checkpoint(tmp_path / "hf", config, 11)
    grids = [(3, 6, 10)]
    rows = [(*oracle.random_row(rng, config, grids, video=True), grids)]
    batch = our_batch(config, rows, left=False)
    positions = batch[2]
    # Text after the video goes on at max + 1, as the weights were trained; transformers 5.23 starts it earlier.
    run = np.flatnonzero(rows[0][0] == oracle.VIDEO)
    assert positions[0, 0, run[-1] + 1] == positions[:, 0, run].max() + 1
    assert positions[0, 0, run].tolist() == [positions[0, 0, run[0]] + pace * t for t in range(3) for _ in range(15)]
    inputs = their_inputs(config, rows, batch, video=True)
    with torch.no_grad():
        expected = theirs(**inputs, position_ids=torch.tensor(positions).long()).logits.numpy()
    _, logits = forward(hf.load(tmp_path / "hf"), batch)
    assert np.abs(np.asarray(logits) - expected).max() <= 1e-4
