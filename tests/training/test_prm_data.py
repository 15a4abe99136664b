"""Process records as rows: what an update holds, and that rows change neither loss nor gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.shared_prompt import row_tokens
from vlaa_jax.processing.records import ProcessRecord
from vlaa_jax.processing.shards import RecordSource, write_records
from vlaa_jax.processing.steps import split_steps
from vlaa_jax.training.prm_data import deal_rows
from vlaa_jax.training.prm_index import LabelledQuestion, LabelledSolution, open_questions
from vlaa_jax.training.prm_task import PRMTask


@pytest.fixture(scope="module")
def task(folder):
    return PRMTask(tiny.config("prm", folder))


@pytest.fixture(scope="module")
def records(folder):
    source = RecordSource(folder / "processes", ProcessRecord)
    return [source[i] for i in range(len(source))]


def question(tokens: list[int], prompt: int) -> LabelledQuestion:
    one = np.ones(1)
    solutions = (LabelledSolution(str(i), i, size, one, one) for i, size in enumerate(tokens))
    return LabelledQuestion("q", prompt, 0, tuple(solutions))


@pytest.mark.quick
@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(1, 400), st.integers(1, 5))
def test_every_solution_is_in_one_row_that_holds_it(tokens, prompt, most):
    rows = deal_rows(question(tokens, prompt), length=1024, most=most)
    assert sorted(solution.place for row in rows for solution in row.solutions) == list(range(len(tokens)))
    for row in rows:
        lengths = np.asarray([[solution.tokens for solution in row.solutions]])
        assert 1 <= len(row.solutions) <= most
        assert row.tokens(1024) == row_tokens(np.asarray([prompt]), lengths, 1024)[0] <= 1024


def test_an_update_holds_its_questions_and_an_epoch_all_records_once(task, records):
    data = task._data
    ids = {record.id.rpartition("/")[0] for record in records}
    assert data.updates_per_epoch == 3 and len(ids) == 7
    for epoch in (0, 1):
        updates = [data.update(3 * epoch + i) for i in range(3)]
        assert [len(update.ids) for update in updates] == [3, 3, 1]
        assert {name for update in updates for name in update.ids} == ids
        labels = [labels for update in updates for _, labels in update.micro_batches]
        assert sum(label.weights.sum() for label in labels) == len(records)
        total = sum((label.weights * label.values).sum() for label in labels)
        assert total == pytest.approx(sum(record.value for record in records))
    assert data.update(0).ids != data.update(3).ids
    assert [PRMTask(task.config)._data.update(i).ids for i in range(2)] == [data.update(i).ids for i in range(2)]


def test_the_position_of_a_reward_model_is_the_number_of_the_update(task):
    stream = task._data.updates(2)
    for number in (2, 3, 4):
        update, expected = next(stream), task._data.update(number)
        assert update.ids == expected.ids
        for left, right in zip(
            jax.tree.leaves(update.micro_batches), jax.tree.leaves(expected.micro_batches), strict=True
        ):
            np.testing.assert_array_equal(left, right)


def test_the_ends_are_those_of_the_steps(task, records):
    """The label of a process is at the place of its own last token."""
    solutions, labels = task._data.update(0).micro_batches[0]
    by_tokens = {}
    for record in records:
        tokens, _ = task.encoder.solution(split_steps(record.process))
        by_tokens.setdefault(tuple(tokens), []).append(record.value)
    seen = 0
    for place in zip(*np.nonzero(labels.weights), strict=True):
        b, g, _ = place
        prefix = tuple(solutions.tokens[b, g, : solutions.ends[place] + 1])
        assert labels.values[place] in by_tokens[prefix]
        seen += 1
    assert seen > 10 and (solutions.lengths[0] > 0).sum() == 2


def gradient(task, micro_batches):
    total, denominator = None, jnp.float32(0)
    for batch in micro_batches:
        denominator += task._loss.denominator(batch[1])
        total = task._updater.first(task.state, batch) if total is None else task._updater.add(task.state, total, batch)
    return float(total.loss), float(denominator), total.gradient


def test_spreading_a_question_over_rows_changes_neither_loss_nor_gradient(task):
    update = task._data.update(0)
    questions = [rows[0].question for rows in task._rows.of_question if rows[0].question.id in update.ids]
    spread = [row for question in questions for row in deal_rows(question, length=384, most=1)]
    assert len(spread) == 2 * len(questions) == 6
    batches = [task._rows.batch(shape, rows) for shape, rows in task._rows.micro_batches(spread)]
    loss, denominator, together = gradient(task, update.micro_batches)
    loss_apart, denominator_apart, apart = gradient(task, batches)
    assert denominator == denominator_apart > 20
    assert loss_apart == pytest.approx(loss, rel=1e-5)
    leaves = zip(jax.tree_util.tree_leaves_with_path(together), jax.tree.leaves(apart), strict=True)
    for (path, ours), theirs in leaves:
        largest = float(jnp.max(jnp.abs(theirs)))
        assert float(jnp.max(jnp.abs(ours - theirs))) <= 1e-5 * largest, jax.tree_util.keystr(path)
    assert float(jnp.abs(together.reward_head.weight[...]).max()) > 0


def test_an_outcome_model_learns_from_whole_solutions_alone(folder, records):
    task = PRMTask(tiny.config("prm", folder, model__kind="outcome"))
    whole = [record for record in records if "</answer>" in record.process]
    assert len(whole) == 14 < len(records)
    updates = [task._data.update(i) for i in range(task._data.updates_per_epoch)]
    batches = [batch for update in updates for batch in update.micro_batches]
    assert sum(labels.weights.sum() for _, labels in batches) == len(whole)
    for solutions, labels in batches:
        assert labels.values.shape[2] == 1
        np.testing.assert_array_equal(solutions.ends[..., 0], solutions.lengths - 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"process": " \n"}, "its process is blank"),
        ({"process": "Step 1: <|im_end|>"}, "a completion's text holds the special token"),
        ({"process": "Step 1: " + "7 " * 300}, r"\d+ tokens in 1 steps, above config.updates.longest_solution \(144\)"),
        ({"question": "What else?"}, "its question or pictures are not those of"),
        ({"images": ()}, "its question or pictures are not those of"),
    ],
)
def test_records_that_cannot_be_used(folder, records, tmp_path, change, problem):
    bad = dataclasses.replace(records[3], **change)
    write_records(
        tmp_path / "bad", {"train": [*records[:3], bad, *records[4:]]}, kind=ProcessRecord, name="bad", version="1.0.0"
    )
    config = tiny.config("prm", folder, data__train=str(tmp_path / "bad"))
    encoder = encoder_of(folder)
    with pytest.raises(
        InputError, match=rf"^config.data.train: 1 of {len(records)} records cannot be used \({bad.id}: .*{problem}"
    ):
        open_questions(config, "train", encoder)
    config.data.skip_bad = True
    _, index = open_questions(config, "train", encoder)
    weights = sum(int(s.weights.sum()) for q in index.questions for s in q.solutions)
    assert weights == len(records) - 1 and list(index.problems) == [bad.id]


def test_a_question_without_a_record_is_gone_and_none_left_is_refused(folder, records, tmp_path):
    encoder = encoder_of(folder)
    config = tiny.config("prm", folder, updates__longest_prompt=20, data__skip_bad=True)
    with pytest.raises(
        InputError, match=r"^config.data.train: no usable record .*above config.updates.longest_prompt \(20\)"
    ):
        open_questions(config, "train", encoder)
    config = tiny.config("prm", folder, data__train=f"{folder / 'scenes'}:sft")
    with pytest.raises(InputError, match=r"a record with the fields .* where a ProcessRecord has"):
        open_questions(config, "train", encoder)
    with pytest.raises(InputError, match=r"config.model.kind is 'dense': expected one of process, outcome"):
        PRMTask(tiny.config("prm", folder, model__kind="dense"))


@functools.cache
def encoder_of(folder):
    from vlaa_jax.training import settings

    return settings.load_encoder(tiny.config("prm", folder))


def test_a_process_that_occurs_twice_is_averaged_and_counted(folder, records, tmp_path):
    again = [dataclasses.replace(record, id=f"{record.id}b", value=0.5) for record in records[:2]]
    write_records(tmp_path / "twice", {"train": [*records, *again]}, kind=ProcessRecord, name="twice", version="1.0.0")
    config = tiny.config("prm", folder, data__train=str(tmp_path / "twice"))
    _, index = open_questions(config, "train", encoder_of(folder))
    assert index.repeated == 2 and "2 records with a process that occurs more than once" in index.describe()
    first = index.questions[0].solutions[0]
    assert first.weights[:3].tolist() == [2, 2, 1]
    assert first.values[0] == pytest.approx((records[0].value + 0.5) / 2)


def test_shuffled_values_stay_with_their_question(folder):
    values = {}
    for shuffled in (False, True):
        config = tiny.config("prm", folder, data__shuffled=shuffled, data__evaluation=f"{folder / 'processes'}:train")
        for field in ("train", "evaluation"):
            _, index = open_questions(config, field, encoder_of(folder))
            values[shuffled, field] = {
                question.id: np.concatenate([s.values[s.weights > 0] for s in question.solutions])
                for question in index.questions
            }
    moved = 0
    for name, own in values[False, "train"].items():
        other = values[True, "train"][name]
        np.testing.assert_array_equal(np.sort(own), np.sort(other))
        np.testing.assert_array_equal(own, values[True, "evaluation"][name])
        moved += not np.array_equal(own, other)
    assert moved > 3
