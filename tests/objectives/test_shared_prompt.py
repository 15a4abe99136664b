"""One row for a prompt and its completions against one row for each completion, and what may not change a gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from vlaa_jax.errors import InputError
from vlaa_jax.models.attention import Causal
from vlaa_jax.objectives.grpo import GRPOObjective, grpo_loss
from vlaa_jax.objectives.log_probabilities import token_log_probabilities
from vlaa_jax.objectives.shared_prompt import lay_out, longest_row, row_bucket, row_tokens
from vlaa_jax.processing.batches import Rows, pad_prompts
from vlaa_jax.training.grpo import Groups, Policy, Scored, group_loss, take_groups
from vlaa_jax.training.state import create_state
from vlaa_jax.training.updates import Updater

POLICY = Policy(temperature=0.8, dtype="float32", remat="none", chunk=64)
OBJECTIVE = GRPOObjective()
KL_COEFFICIENT = 0.05
P, G, C = 24, 3, 8
ROW = 45  # the longest: 24 + 21


@dataclasses.dataclass
class Case:
    prompts: list
    groups: Groups
    scored: Scored

    def rows(self, length=ROW):
        """All groups in one batch."""
        return take_groups(self.groups, self.scored, jnp.arange(4), length=length)


@pytest.fixture(scope="module")
def case() -> Case:
    """Four prompts: image first, image last, two images, none. Completions of 1 to 7 tokens."""
    rng = np.random.default_rng(0)
    parts = [[(1, 4, 6), 5], [9, (1, 2, 4)], [2, (1, 4, 4), 3, (1, 2, 2), 1], [6]]
    prompts = [tiny.prompt(rng, part) for part in parts]
    lengths = rng.integers(1, C, (4, G))
    lengths[0, 0], lengths[3, 2] = 1, C - 1
    shape = (4, G, C)
    tokens = rng.integers(10, tiny.SIZES.text.vocabulary, shape).astype(np.int32)
    near = lambda: (-6.5 + 0.3 * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731  log of one in 640
    mask = np.arange(C) < lengths[..., None]
    groups = Groups(pad_prompts(prompts, P, 5), None, jnp.asarray(tokens), jnp.asarray(lengths))
    advantage = rng.standard_normal((4, G)).astype(np.float32)
    scored = Scored(near(), near(), advantage, mask, None)
    return Case(prompts, groups, jax.tree.map(jnp.asarray, scored))


def replicated_loss(model, rows, starts, case):
    """The loss of rows that hold the prompt and one completion each."""
    features = model.vision(rows.vision, jnp.float32, "none")
    states = model(rows.tokens, rows.positions, Causal(rows.segments), features, rows.feature_index, remat="none")
    places = starts[:, None] - 1 + jnp.arange(C)
    states = jnp.take_along_axis(states, places[..., None], axis=1)
    tokens = case.groups.tokens.reshape(-1, C)
    values, _ = token_log_probabilities(states, model.language.head[...], tokens, temperature=0.8)
    scored = case.scored
    return grpo_loss(
        values.reshape(scored.mask.shape),
        scored.old,
        scored.reference,
        scored.advantages,
        scored.mask,
        objective=OBJECTIVE,
        kl_coefficient=KL_COEFFICIENT,
    )[0]


def replicate(case: Case):
    rows = []
    for b, prompt in enumerate(case.prompts):
        for g in range(G):
            after = prompt.positions.max() + 1 + np.arange(C)
            rows.append(
                dataclasses.replace(
                    prompt,
                    tokens=np.concatenate([prompt.tokens, np.asarray(case.groups.tokens[b, g])]),
                    positions=np.concatenate([prompt.positions, np.broadcast_to(after, (3, C))], axis=1),
                    feature_index=np.concatenate([prompt.feature_index, np.full(C, -1)]),
                )
            )
    # A token of a completion past its end is seen by nothing that counts: rows are causal.
    return pad_prompts(rows, P + C, 5), jnp.asarray([len(row.tokens) - C for row in rows])


def assert_equal_gradients(ours, theirs):
    """Largest difference at most 1e-5 of the leaf's largest value."""
    pairs = list(
        zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree_util.tree_leaves_with_path(theirs), strict=True)
    )
    for (path, a), (_, b) in pairs:
        largest = float(jnp.max(jnp.abs(b)))
        assert largest > 0, jax.tree_util.keystr(path)
        assert float(jnp.max(jnp.abs(a - b))) <= 1e-5 * largest, jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def updater():
    loss = functools.partial(group_loss, policy=POLICY, objective=OBJECTIVE)
    return Updater(loss, optax.sgd(1.0))


@pytest.fixture(scope="module")
def state():
    return create_state(tiny.model(), optax.sgd(1.0), freeze_vision=False)


def accumulate(updater, state, micro_batches):
    total = None
    for groups, scored in micro_batches:
        batch = (groups, scored, jnp.float32(KL_COEFFICIENT))
        total = updater.first(state, batch) if total is None else updater.add(state, total, batch)
    return total


@pytest.fixture(scope="module")
def whole(updater, state, case):
    """Loss sum and gradient of all groups in one batch."""
    return accumulate(updater, state, [case.rows()])


def test_loss_and_gradient_equal_the_replicated_form(case, whole):
    rows, starts = replicate(case)
    loss, gradient = jax.jit(jax.value_and_grad(lambda m: replicated_loss(m, rows, starts, case)))(tiny.model())
    np.testing.assert_allclose(float(whole.loss), float(loss), rtol=1e-5)
    assert_equal_gradients(whole.gradient, gradient)


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param([([3, 1], ROW, 1), ([0, 2], ROW, 1)], id="micro-batches and order"),
        pytest.param([([2, 0], 64, 1), ([1, 3], ROW, 1)], id="longer rows and order"),
        pytest.param([([2, 0, 1, 3], 1030, 1)], id="completions that begin at even places"),
        pytest.param([([2, 0, 1, 3], 31, 3)], id="a row for each completion"),
    ],
)
def test_the_cut_into_micro_batches_and_buckets_leaves_the_gradient(updater, state, case, whole, cut):
    parts = [
        take_groups(case.groups, case.scored, jnp.asarray(chosen), length=length, parts=parts)
        for chosen, length, parts in cut
    ]
    total = accumulate(updater, state, parts)
    np.testing.assert_allclose(float(total.loss), float(whole.loss), rtol=1e-5)
    assert_equal_gradients(total.gradient, whole.gradient)


def test_what_stands_in_the_padding_changes_nothing(updater, state, case, whole):
    """Tokens past a completion's end and past the prompt's, and log-probabilities there, NaN included."""
    mask = np.asarray(case.scored.mask)
    prompts = case.groups.prompts
    noise = np.random.default_rng(1).integers(10, 600, prompts.tokens.shape)
    prompts = dataclasses.replace(prompts, tokens=np.where(prompts.segments > 0, prompts.tokens, noise))
    groups = dataclasses.replace(
        case.groups, prompts=prompts, tokens=jnp.where(mask, case.groups.tokens, case.groups.tokens[..., ::-1])
    )
    hidden = lambda values: jnp.where(mask, values, jnp.nan)  # noqa: E731
    scored = dataclasses.replace(case.scored, old=hidden(case.scored.old), reference=hidden(case.scored.reference))
    total = accumulate(updater, state, [take_groups(groups, scored, jnp.arange(4), length=ROW)])
    np.testing.assert_allclose(float(total.loss), float(whole.loss), rtol=1e-6)
    assert_equal_gradients(total.gradient, whole.gradient)


def test_metrics_do_not_depend_on_the_cut(updater, state, case, whole):
    parts = [take_groups(case.groups, case.scored, jnp.asarray(chosen), length=ROW) for chosen in ([0, 1], [2, 3])]
    total = accumulate(updater, state, parts)
    for left, right in zip(jax.tree.leaves(total.metrics), jax.tree.leaves(whole.metrics), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def test_the_share_of_real_tokens(whole, case):
    """Prompts of 11, 11, 11 and 6 tokens in rows of 45."""
    share = whole.metrics["real_token_share"]
    assert [len(prompt.tokens) for prompt in case.prompts] == [11, 11, 11, 6]
    assert np.asarray(case.groups.lengths).tolist() == [[1, 4, 2], [2, 7, 7], [7, 3, 6], [7, 1, 7]]
    assert float(share.total) == 39 + 54 and float(share.weight) == 180


@pytest.mark.quick
def test_what_a_row_needs():
    prompts, lengths = np.asarray([5, 9]), np.asarray([[3, 1], [2, 8]])
    assert row_tokens(prompts, lengths, 64).tolist() == [9, 19]
    assert row_tokens(prompts, lengths, 2000).tolist() == [6 + 4 + 2, 10 + 2 + 8]  # in steps of 2
    assert row_bucket(prompts, lengths, (2000, 18, 19)) == 19
    assert row_bucket(prompts, lengths, (2000, 18)) == 2000
    with pytest.raises(InputError, match="take 19 tokens, above the largest bucket 18"):
        row_bucket(prompts, lengths, (18, 7))
    # 2048 + 4 * 1024 tokens fit as they are; 4,097 tokens or more begin at multiples of 16: 1,000 takes 1,008.
    assert longest_row(2048, 4, 1024) == 6144
    assert longest_row(1000, 4, 1000) == 5056


@pytest.mark.quick
def test_the_layout_by_hand():
    prompts = Rows(
        tokens=np.asarray([[11, 12, 13, 0]]),
        segments=np.asarray([[1, 1, 1, 0]]),
        positions=np.asarray([[[0, 1, 1, 0]], [[0, 1, 2, 0]], [[0, 1, 3, 0]]]),
        feature_index=np.asarray([[-1, 6, -1, -1]]),
        vision=None,
    )
    completions, lengths = np.asarray([[[21, 22, 99], [31, 98, 97]]]), np.asarray([[2, 1]])
    found = lay_out(jax.tree.map(jnp.asarray, prompts), None, jnp.asarray(completions), jnp.asarray(lengths), 8)
    assert found.rows.tokens.tolist() == [[11, 12, 13, 21, 22, 31, 0, 0]]
    assert found.rows.segments.tolist() == [[1, 1, 1, 2, 2, 3, 0, 0]]
    assert found.rows.positions[2].tolist() == [[0, 1, 3, 4, 5, 4, 0, 0]]
    assert found.rows.positions[0].tolist() == [[0, 1, 1, 4, 5, 4, 0, 0]]
    assert found.rows.feature_index.tolist() == [[-1, 6, -1, -1, -1, -1, -1, -1]]
    assert found.places[0, 0, :2].tolist() == [3, 4] and found.places[0, 1, 0] == 5
