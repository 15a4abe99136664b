"""Padding and packing: nothing is lost, cut or mixed up."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from vlaa_jax.errors import InputError
from vlaa_jax.models.attention import Causal
from vlaa_jax.models.qwen2_5_vl import ModelConfig, Qwen2_5_VL, TextConfig, VisionConfig
from vlaa_jax.processing.batches import assign_rows, bucket, buckets_in_use, pack, pad_prompts
from vlaa_jax.processing.encode import EncodedPrompt
from vlaa_jax.processing.positions import mrope_positions
from vlaa_jax.processing.vision_plan import WindowGeometry, plan

IMAGE = 7
GEOMETRY = WindowGeometry(merge=2, window_units=2)
VALUES = 3 * 2 * 4**2  # patches of 4 x 4 pixels


def make_prompt(seed, grids, text=3):
    """Text, then each image followed by text."""
    rng = np.random.default_rng(seed)
    words = lambda: rng.integers(10, 60, text).tolist()  # noqa: E731
    tokens = words()
    for grid in grids:
        tokens += [IMAGE] * GEOMETRY.tokens(grid) + words()
    tokens = np.asarray(tokens, np.int32)
    patches = rng.standard_normal((sum(int(np.prod(grid)) for grid in grids), VALUES)).astype(np.float32)
    vision, slots = plan(patches, grids, GEOMETRY)
    index = np.full(len(tokens), -1, np.int32)
    index[tokens == IMAGE] = slots
    return EncodedPrompt(tokens, mrope_positions(tokens == IMAGE, grids, merge=2), index, vision, ())


FIRST = make_prompt(1, [(1, 4, 6)])  # 6 image tokens, 2 windows; 12 tokens in all
SECOND = make_prompt(2, [(1, 2, 2), (1, 6, 4)])  # 1 + 6 image tokens, 1 + 2 windows; 16 tokens in all
PLAIN = make_prompt(3, [])


@pytest.mark.quick
def test_bucket():
    assert [bucket(size, (64, 16, 32), "it") for size in (0, 16, 17, 33, 64)] == [16, 16, 32, 64, 64]
    with pytest.raises(InputError, match="a prompt's length is 65, above the largest bucket 64"):
        bucket(65, (64, 16, 32), "a prompt's length")


@pytest.mark.quick
def test_buckets_in_use():
    assert buckets_in_use(np.array([40, 17, 20]), (64, 16, 32, 128), "it") == [32, 64]
    assert buckets_in_use(np.array([3]), (64, 16), "it") == [16]
    with pytest.raises(InputError, match="it is 65, above the largest bucket 64"):
        buckets_in_use(np.array([3, 65]), (64, 16), "it")


@pytest.mark.quick
def test_prompts_are_padded_on_the_right():
    rows = pad_prompts([PLAIN, FIRST], 14, 3)
    assert rows.tokens.shape == (2, 14) and rows.positions.shape == (3, 2, 14)
    assert rows.tokens[0].tolist() == [*PLAIN.tokens, *[0] * 11]
    assert rows.segments.tolist() == [[1] * 3 + [0] * 11, [1] * 12 + [0] * 2]
    assert rows.feature_index.tolist() == [[-1] * 14, [*FIRST.feature_index, -1, -1]]
    np.testing.assert_array_equal(rows.positions[:, 1, :12], FIRST.positions)
    assert rows.vision.frames.tolist() == [[0, 0, 0], [1, 1, 0]]
    with pytest.raises(InputError, match="a prompt has 12 tokens, but a row has room for 11: raise"):
        pad_prompts([PLAIN, FIRST], 11, 3)
    with pytest.raises(InputError, match="2 vision windows, but there is room for 1: raise"):
        pad_prompts([PLAIN, FIRST], 14, 1)


sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 6), st.integers(1, 20)), max_size=30)


@pytest.mark.quick
@hypothesis.given(sizes, st.booleans())
def test_every_example_is_in_one_row_that_holds_it(examples, bound_targets):
    lengths, windows, targets = ([example[axis] for example in examples] for axis in range(3))
    bounds = {"targets": targets, "row_targets": 20} if bound_targets else {}
    rows = assign_rows(lengths, windows, 20, 6, **bounds)
    assert sorted(i for row in rows for i in row) == list(range(len(examples)))
    for row in rows:
        assert row and sum(lengths[i] for i in row) <= 20 and sum(windows[i] for i in row) <= 6
        assert not bound_targets or sum(targets[i] for i in row) <= 20
    assert rows == assign_rows(lengths, windows, 20, 6, **bounds)
    # First fit: no row could have been left out.
    for later, row in enumerate(rows):
        for earlier in rows[:later]:
            assert not all(
                sum(values[i] for i in earlier) + values[row[0]] <= bound
                for values, bound in ((lengths, 20), (windows, 6), (targets if bound_targets else [0] * 30, 20))
            )


@pytest.mark.quick
def test_rows_by_hand():
    assert assign_rows([3, 9, 5, 2, 5], [1, 1, 1, 1, 1], 10, 9) == [[1], [2, 4], [0, 3]]
    assert assign_rows([3, 9, 5, 2, 5], [1, 1, 1, 1, 1], 10, 1) == [[1], [2], [4], [0], [3]]
    assert assign_rows([4, 4, 4], [0, 0, 0], 12, 9, targets=[3, 2, 1], row_targets=4) == [[0, 2], [1]]
    assert assign_rows([], [], 10, 9) == []


@pytest.mark.quick
@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((11, 1, 1), "an example has 11 tokens, but a row has room for 10: raise"),
        ((1, 10, 1), "an example has 10 vision windows, but a row has room for 9: raise"),
        ((1, 1, 8), "an example has 8 completion tokens, but a row has room for 7: raise"),
    ],
)
def test_an_example_larger_than_a_row_is_refused(example, message):
    lengths, windows, targets = ([1, size] for size in example)
    with pytest.raises(InputError, match=message):
        assign_rows(lengths, windows, 10, 9, targets=targets, row_targets=7)


NO_VISION = plan(np.zeros((0, VALUES), np.float32), [], GEOMETRY)[0]
ROOM = {"count": 2, "length": 40, "windows": 6, "targets": 8, "slots_per_window": 4, "no_vision": NO_VISION}


@pytest.mark.quick
def test_a_packed_row_by_hand():
    completions = np.asarray([20, 21, 22], np.int32), np.asarray([30, 31], np.int32)
    rows, goal = pack([[(FIRST, completions[0]), (SECOND, completions[1])]], **ROOM)
    joined = [*FIRST.tokens, 20, 21, 22, *SECOND.tokens, 30, 31]
    assert rows.tokens.tolist() == [[*joined, *[0] * 7], [0] * 40]
    assert rows.segments.tolist() == [[1] * 15 + [2] * 18 + [0] * 7, [0] * 40]
    after = [prompt.positions.max() + 1 for prompt in (FIRST, SECOND)]
    for axis in range(3):
        first = [*FIRST.positions[axis], *range(after[0], after[0] + 3)]
        second = [*SECOND.positions[axis], *range(after[1], after[1] + 2)]
        assert rows.positions[axis, 0, :33].tolist() == first + second
    # The first image fills windows 0 and 1 (slots 0 to 7), the others 2, 3 and 4.
    assert rows.vision.frames.tolist() == [[1, 1, 2, 3, 3, 0], [0] * 6]
    assert rows.feature_index[0, 3:9].tolist() == [0, 1, 4, 2, 3, 6]
    assert rows.feature_index[0, 18:19].tolist() == [8]
    assert rows.feature_index[0, 22:28].tolist() == [12, 13, 14, 15, 16, 17]
    assert (rows.feature_index >= 0).tolist() == (rows.tokens == IMAGE).tolist()
    assert goal.states.tolist() == [[11, 12, 13, 30, 31, 0, 0, 0], [0] * 8]
    assert goal.tokens.tolist() == [[20, 21, 22, 30, 31, 0, 0, 0], [0] * 8]
    assert goal.segments.tolist() == [[1, 1, 1, 2, 2, 0, 0, 0], [0] * 8]


@st.composite
def packed(draw):
    prompts = st.sampled_from([FIRST, SECOND, PLAIN, make_prompt(4, [(2, 2, 4)])])
    completion = st.lists(st.integers(10, 59), max_size=6).map(lambda ids: np.asarray(ids, np.int32))
    rows = draw(st.lists(st.lists(st.tuples(prompts, completion), max_size=4), min_size=1, max_size=3))
    hypothesis.assume(any(rows))
    return rows


@pytest.mark.quick
@hypothesis.given(packed())
@hypothesis.settings(deadline=None)
def test_targets_follow_the_state_that_predicts_them(rows):
    batch, goal = pack(rows, **ROOM | {"count": 4, "length": 100, "windows": 20, "targets": 24})
    for b, row in enumerate([*rows, *[[]] * (4 - len(rows))]):
        real = goal.segments[b] > 0
        np.testing.assert_array_equal(batch.tokens[b, goal.states[b, real] + 1], goal.tokens[b, real])
        # State and target belong to the same example.
        np.testing.assert_array_equal(batch.segments[b, goal.states[b, real]], goal.segments[b, real])
        np.testing.assert_array_equal(batch.segments[b, goal.states[b, real] + 1], goal.segments[b, real])
        assert (
            np.concatenate([np.zeros(0), *(completion for _, completion in row)]).tolist()
            == goal.tokens[b, real].tolist()
        )
        for segment, (prompt, completion) in enumerate(row, start=1):
            own = batch.segments[b] == segment
            assert batch.tokens[b, own].tolist() == [*prompt.tokens, *completion]
            slots = batch.feature_index[b, own][: len(prompt.tokens)]
            units = batch.vision.patches[b].reshape(-1, 4, VALUES)[slots[slots >= 0]]
            alone = prompt.vision.patches.reshape(-1, 4, VALUES)[prompt.feature_index[slots >= 0]]
            np.testing.assert_array_equal(units, alone)
        frames = [batch.vision.frames[b, slot // 4] for slot in batch.feature_index[b] if slot >= 0]
        names = len(set(frames))
        assert names == sum(int(prompt.vision.frames.max(initial=0)) for prompt, _ in row)
        assert (batch.vision.frames[b] > 0).sum() == sum(len(prompt.vision.frames) for prompt, _ in row)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("room", "message"),
    [
        ({"length": 32}, "a packed row has 33 tokens, but a row has room for 32: raise"),
        ({"targets": 4}, "a packed row has 5 completion tokens, but a row has room for 4: raise"),
        ({"windows": 4}, "5 vision windows, but there is room for 4: raise"),
    ],
)
def test_a_row_beyond_its_room_is_refused(room, message):
    row = [(FIRST, np.asarray([20, 21, 22], np.int32)), (SECOND, np.asarray([30, 31], np.int32))]
    with pytest.raises(InputError, match=message):
        pack([row], **ROOM | room)


@pytest.mark.quick
def test_no_row_is_dropped():
    example = (PLAIN, np.asarray([20], np.int32))
    with pytest.raises(ValueError, match="3 rows for a batch of 2"):
        pack([[example]] * 3, **ROOM)
    rows, _ = pack([[], [example]], **ROOM)
    assert rows.segments.sum(axis=1).tolist() == [0, 4]


@pytest.mark.quick
def test_a_process_whose_rows_are_all_empty_has_arrays_of_the_same_shapes():
    """It takes part in the last micro-batch of an epoch like the others."""
    empty = pack([[], []], **ROOM)
    full = pack([[(FIRST, np.asarray([20], np.int32))]], **ROOM)
    shapes = lambda batch: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)]  # noqa: E731
    assert shapes(empty) == shapes(full)
    assert not empty[0].segments.any() and not empty[1].segments.any() and (empty[0].feature_index == -1).all()


def test_a_packed_row_computes_what_separate_rows_do():
    """Neither images nor text of one example reach the other: the logits are those of each example alone."""
    config = ModelConfig(
        TextConfig(64, 32, 2, 4, 2, 48, (2, 1, 1)), VisionConfig(2, 16, 2, 24, 32, (1,), patch=4, window=16), IMAGE
    )
    model = jax.tree.map(
        lambda leaf: leaf * 2 if leaf.ndim > 2 else leaf, jax.jit(lambda: Qwen2_5_VL(config, nnx.Rngs(0)))()
    )
    examples = [
        (FIRST, np.asarray([20, 21, 22], np.int32)),
        (PLAIN, np.asarray([40], np.int32)),
        (SECOND, np.asarray([30, 31], np.int32)),
    ]

    @jax.jit
    def logits(model, rows, goal):
        features = model.vision(rows.vision, jnp.float32)
        states = model(rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index)
        everywhere = states @ model.language.head[...].T
        return everywhere, jnp.take_along_axis(everywhere, goal.states[..., None], axis=1)

    packed_rows, packed_goal = pack([[examples[0], examples[1], examples[2]], [examples[2]]], **ROOM)
    together, at_targets = logits(model, packed_rows, packed_goal)
    for segment, example in enumerate(examples, start=1):
        rows, goal = pack([[example]], **ROOM)
        alone, alone_at_targets = logits(model, rows, goal)
        own, itself = packed_rows.segments[0] == segment, rows.segments[0] == 1
        np.testing.assert_allclose(together[0, own], alone[0, itself], atol=1e-5)
        own, itself = packed_goal.segments[0] == segment, goal.segments[0] == 1
        np.testing.assert_allclose(at_targets[0, own], alone_at_targets[0, itself], atol=1e-5)
    # The comparison can fail: another picture gives other logits.
    blank = dataclasses.replace(FIRST, vision=jax.tree.map(np.zeros_like, FIRST.vision))
    rows, goal = pack([[(blank, examples[0][1])]], **ROOM)
    assert np.abs(logits(model, rows, goal)[0][0, 11] - together[0, 11]).max() > 1e-2
