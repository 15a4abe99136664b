import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.errors import InputError
from vlaa_jax.objectives.accumulation import merge_metrics, summarise
from vlaa_jax.objectives.prm import step_loss, step_loss_denominator

pytestmark = pytest.mark.quick

# Two questions. The first has three labels, one of them of two records; the second has two that are no pair.
LN3 = float(np.log(3))  # its sigmoid is 3/4
LOGITS = jnp.array([[[LN3, 0.0], [-LN3, jnp.nan]], [[0.0, jnp.inf], [LN3, jnp.nan]]])
VALUES = jnp.array([[[1.0, 0.5], [0.25, 0.0]], [[0.5, 0.0], [0.6, 0.0]]])
WEIGHTS = jnp.array([[[1.0, 2.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])

# Of the pairs of the first question: (1, 0.5) twice, (1, 0.25), (0.5, 0.25) twice; differences ln 3, 2 ln 3, ln 3.
SURPRISE_1, SURPRISE_2 = float(np.log1p(1 / 3)), float(np.log1p(1 / 9))


def softplus(z):
    return np.log1p(np.exp(z))


@pytest.mark.parametrize(
    ("loss", "total", "denominator"),
    [
        # (1/4)^2 + 2 * 0 + 0; 0; (3/4 - 0.6)^2
        ("mse", 0.0625 + 0.0225, 6),
        (
            "cross_entropy",
            (softplus(LN3) - LN3)
            + 2 * np.log(2)
            + (softplus(-LN3) + 0.25 * LN3)
            + np.log(2)
            + softplus(LN3)
            - 0.6 * LN3,
            6,
        ),
        ("pairwise", (4 * SURPRISE_1 + SURPRISE_2) / 5, 1),
    ],
)
def test_losses_by_hand(loss, total, denominator):
    found, metrics = step_loss(LOGITS, VALUES, WEIGHTS, loss=loss, pair_gap=0.25)
    assert float(found) == pytest.approx(total, rel=1e-5)
    assert float(step_loss_denominator(VALUES, WEIGHTS, loss=loss, pair_gap=0.25)) == denominator
    assert summarise(metrics) == {
        "squared_error": pytest.approx(0.085 / 6, rel=1e-5),
        "score": pytest.approx((0.75 + 2 * 0.5 + 0.25 + 0.5 + 0.75) / 6),
        "pairs_in_order": 1.0,
    }


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "pairwise"])
def test_gradients_against_torch(loss):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, values = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.random((2, 3, 4)).astype(np.float32)
    weights = rng.integers(0, 3, (2, 3, 4)).astype(np.float32)
    ours = jax.grad(lambda z: step_loss(z, values, weights, loss=loss, pair_gap=0.25)[0])(logits)

    z = torch.tensor(logits, requires_grad=True)
    v, w = torch.tensor(values), torch.tensor(weights)
    if loss == "mse":
        total = (w * (z.sigmoid() - v) ** 2).sum()
    elif loss == "cross_entropy":
        total = torch.nn.functional.binary_cross_entropy_with_logits(z, v, weight=w, reduction="sum")
    else:
        total = 0
        for row in range(2):
            surprises, count = 0, 0
            flat = [x[row].reshape(-1) for x in (z, v, w)]
            for i in range(12):
                for j in range(12):
                    if flat[1][i] - flat[1][j] >= 0.25:
                        pairs = flat[2][i] * flat[2][j]
                        surprises = surprises - pairs * torch.nn.functional.logsigmoid(flat[0][i] - flat[0][j])
                        count = count + pairs
            total = total + surprises / count
    total.backward()
    assert np.abs(z.grad.numpy()).max() > 1e-3
    np.testing.assert_allclose(ours, z.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "pairwise"])
def test_an_update_is_the_same_however_it_is_cut(loss):
    options = {"loss": loss, "pair_gap": 0.25}
    whole, metrics = step_loss(LOGITS, VALUES, WEIGHTS, **options)
    parts = [step_loss(LOGITS[i : i + 1], VALUES[i : i + 1], WEIGHTS[i : i + 1], **options) for i in range(2)]
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(whole))
    assert summarise(merge_metrics(parts[0][1], parts[1][1])) == pytest.approx(summarise(metrics))
    denominators = [step_loss_denominator(VALUES[i : i + 1], WEIGHTS[i : i + 1], **options) for i in range(2)]
    assert sum(map(float, denominators)) == float(step_loss_denominator(VALUES, WEIGHTS, **options))


def test_what_has_no_weight_has_no_gradient():
    for loss in ("mse", "cross_entropy", "pairwise"):
        options = {"loss": loss, "pair_gap": 0.25}
        gradient = jax.grad(lambda z, options=options: step_loss(z, VALUES, WEIGHTS, **options)[0])(LOGITS)
        assert np.isfinite(gradient).all() and (np.asarray(gradient)[np.asarray(WEIGHTS) == 0] == 0).all()


def test_values_a_gap_apart_are_a_pair_in_float32_too():
    values = jnp.array([[[0.65, 0.4]]], jnp.float32)
    assert float(step_loss_denominator(values, jnp.ones((1, 1, 2)), loss="pairwise", pair_gap=0.25)) == 1
    assert float(step_loss_denominator(values, jnp.ones((1, 1, 2)), loss="pairwise", pair_gap=0.26)) == 0


def test_refusals_of_the_loss():
    with pytest.raises(InputError, match=r"config\.objective\.loss is 'hinge': expected one of mse, cross_entropy"):
        step_loss(LOGITS, VALUES, WEIGHTS, loss="hinge", pair_gap=0.25)
    with pytest.raises(InputError, match="differ"):
        step_loss(LOGITS, VALUES[:1], WEIGHTS, loss="mse", pair_gap=0.25)
