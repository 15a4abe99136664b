"""Supervised fine-tuning: which examples an update holds, and that packing changes nothing."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vlaa_jax.objectives.sft import sft_loss_denominator
from vlaa_jax.training import sft_data
from vlaa_jax.training.loop import train
from vlaa_jax.training.run_folder import RunFolder, without_volatile
from vlaa_jax.training.sft_task import SFTTask


@pytest.fixture(scope="module")
def packed(folder):
    return SFTTask(tiny.config("sft", folder))


def ids(data, number):
    return data.update(number).ids


def test_an_update_holds_its_examples_and_the_last_of_an_epoch_what_is_left(packed):
    data = packed._data
    assert data.updates_per_epoch == 3
    for epoch in (0, 1):
        parts = [ids(data, 3 * epoch + i) for i in range(3)]
        assert [len(part) for part in parts] == [10, 10, 6]
        assert sorted(name for part in parts for name in part) == [f"sft-{i:06d}" for i in range(26)]
    assert ids(data, 0) != ids(data, 3)
    # However they are packed: every example is a segment of some row.
    update = data.update(0)
    segments = [int(rows.segments.max(axis=1).sum()) for rows, _ in update.micro_batches]
    assert sum(segments) == 10
    assert max(int(rows.segments.max()) for rows, _ in update.micro_batches) > 1


def test_the_order_is_that_of_the_seed(packed, folder):
    again = SFTTask(tiny.config("sft", folder))
    assert [ids(again._data, i) for i in range(4)] == [ids(packed._data, i) for i in range(4)]
    other = SFTTask(tiny.config("sft", folder, seed=1))
    assert ids(other._data, 0) != ids(packed._data, 0)


def test_the_position_is_the_number_of_the_update(packed):
    stream = packed._data.updates(2)
    for number in (2, 3, 4):
        update, expected = next(stream), packed._data.update(number)
        assert update.ids == expected.ids
        for left, right in zip(
            jax.tree.leaves(update.micro_batches), jax.tree.leaves(expected.micro_batches), strict=True
        ):
            np.testing.assert_array_equal(left, right)


def accumulate(task, update):
    total, denominator = None, jnp.float32(0)
    for batch in update.micro_batches:
        denominator += sft_loss_denominator(task._loss.weights(batch[1]))
        total = task._updater.first(task.state, batch) if total is None else task._updater.add(task.state, total, batch)
    return float(total.loss), float(denominator), total.gradient


def test_packing_changes_neither_loss_nor_gradient(packed, folder, monkeypatch):
    together = packed._data.update(0)
    assert max(int(rows.segments.max()) for rows, _ in together.micro_batches) > 1
    monkeypatch.setattr(sft_data, "assign_rows", lambda lengths, *_, **__: [[place] for place in range(len(lengths))])
    index = packed._data._index
    longest = int((index.prompt + index.completion).max())
    alone = SFTTask(tiny.config("sft", folder, updates__row_tokens=longest, updates__rows=5, updates__row_windows=8))
    update = alone._data.update(0)
    assert all(int(rows.segments.max()) == 1 for rows, _ in update.micro_batches)
    loss, denominator, gradient = accumulate(packed, together)
    loss_alone, denominator_alone, gradient_alone = accumulate(alone, update)
    assert denominator == denominator_alone
    np.testing.assert_allclose(loss, loss_alone, rtol=1e-5)
    leaves = zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(gradient_alone), strict=True)
    for (path, ours), theirs in leaves:
        largest = float(jnp.max(jnp.abs(theirs)))
        assert largest > 0 and float(jnp.max(jnp.abs(ours - theirs))) <= 1e-5 * largest, jax.tree_util.keystr(path)


def test_a_resumed_run_repeats_the_same_steps(packed, folder):
    """Runs last in this file: it trains the module's task."""
    workdir = folder / "sft-run"
    train(packed, workdir, recorded=packed.config, command="python launch/tpu_train.py")
    whole = [without_volatile(row) for row in RunFolder(workdir).metrics()]
    assert [row["step"] for row in whole] == [0, 1, 2, 3, 4] and len({row["loss"] for row in whole[1:]}) == 4
    (workdir / "report.html").unlink()
    shutil.rmtree(workdir / "checkpoints" / "4")
    again = SFTTask(packed.config)
    train(again, workdir, recorded=packed.config, command="python launch/tpu_train.py")
    assert [without_volatile(row) for row in RunFolder(workdir).metrics()] == whole
    assert again.numbers == packed.numbers
