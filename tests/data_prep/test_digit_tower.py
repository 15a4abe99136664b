import json

import jax
import numpy as np
import pytest
import tiny

from data_prep.digit_scenes import tower
from data_prep.digit_scenes.policy import write_policy
from vlaa_jax.errors import InputError
from vlaa_jax.models.qwen2_5_vl import hf, preset
from vlaa_jax.processing.images import ImageProcessor
from vlaa_jax.processing.vision_plan import WindowGeometry


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    config = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 56 * 56, "max_pixels": 448 * 448}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return ImageProcessor(folder)


@pytest.fixture(scope="module")
def batch(processor):
    return tower.draw_batch(np.random.default_rng(0), processor, WindowGeometry(2, 2))


def test_a_label_stands_where_the_ink_is(batch):
    pictures, labels = batch
    digit = (labels.classes >= 0) & (labels.classes < 10)
    assert set(labels.classes[digit]) == set(range(10))
    assert (digit.sum(1) <= 6).all()
    assert digit.sum() > 2 * len(digit), "two digits a picture at least, rarely two in one token"
    # The merge^2 patches of a token are neighbours; ink is dark.
    units = pictures.patches.reshape(*digit.shape, -1)
    darkest = units.min(-1)
    assert darkest[digit].mean() < darkest[labels.classes == 10].mean() - 0.5
    assert (darkest[digit] < -0.5).mean() > 0.95


def test_boxes_are_squares_whose_centre_lies_in_the_token(batch):
    pictures, labels = batch
    digit = (labels.classes >= 0) & (labels.classes < 10)
    x1, y1, x2, y2 = labels.boxes[digit].T + 3  # from the middle of 6 x 6 tokens to the upper left corner
    row, column = pictures.ids.reshape(*digit.shape, 4, 2)[:, :, 0][digit].T // 2
    np.testing.assert_array_equal(np.floor((x1 + x2) / 2), column)
    np.testing.assert_array_equal(np.floor((y1 + y2) / 2), row)
    np.testing.assert_allclose(x2 - x1, y2 - y1, atol=1e-5)
    assert 24 / 28 - 1e-5 <= (x2 - x1).min() and (x2 - x1).max() <= 40 / 28 + 1e-5
    assert not labels.boxes[~digit].any()
    pixels = labels.boxes[digit] * 28 + 84
    np.testing.assert_array_equal(labels.tens[digit], np.floor((pixels + 1e-3) / 10))
    assert not labels.tens[~digit].any() and labels.tens.max() <= 16


def test_slots_without_a_token_have_no_class(batch):
    pictures, labels = batch
    present = pictures.valid.reshape(*labels.classes.shape, -1)
    assert (present.all(-1) == present.any(-1)).all()
    assert ((labels.classes >= 0) == present.all(-1)).all()


def test_the_same_seed_draws_the_same_pictures(processor, batch):
    again = tower.draw_batch(np.random.default_rng(0), processor, WindowGeometry(2, 2))
    jax.tree.map(np.testing.assert_array_equal, again, batch)


def test_training_lowers_the_loss_and_touches_the_tower_only(processor, batch):
    start = tiny.model(seed=1)
    before = jax.tree.map(np.array, start)
    trained = tower.train_tower(jax.tree.map(np.array, before), processor, updates=25, seed=0)
    jax.tree.map(np.testing.assert_array_equal, trained.language, before.language)
    assert np.abs(trained.vision.patch_embedding[...] - before.vision.patch_embedding[...]).max() > 1e-3


def test_a_policy_folder_is_whole_and_is_not_overwritten(tmp_path):
    write_policy(tmp_path / "policy", tower_updates=0, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    model, encoder = hf.load(tmp_path / "policy"), ImageProcessor(tmp_path / "policy")
    assert model.config.vision == preset("demo").vision
    assert encoder.resize((112, 140)).resized == (112, 140)
    assert sum(path.stat().st_size for path in (tmp_path / "policy").iterdir()) < 12e6
    with pytest.raises(InputError, match="exists already: nothing was written"):
        write_policy(tmp_path / "policy", tower_updates=0)
