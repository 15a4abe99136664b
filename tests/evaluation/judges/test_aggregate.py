import numpy as np
import pytest

from vlaa_jax.evaluation.judges.aggregate import AGGREGATIONS, aggregate, aggregations, fill

pytestmark = pytest.mark.quick

STEPS = [np.array([0.5, 0.25, 1.0, 0.75]), np.array([0.4])]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [0.625, 0.4]),
        ("last", [0.75, 0.4]),
        ("last-2", [0.875, 0.4]),
        ("last-4", [0.625, 0.4]),
        ("last-8", [0.625, 0.4]),
        ("min", [0.25, 0.4]),
        ("product", [0.09375, 0.4]),
    ],
)
def test_aggregates(how, expected):
    np.testing.assert_allclose(aggregate(STEPS, how), expected, rtol=1e-12)
    assert set(AGGREGATIONS) == {"mean", "last", "last-2", "last-4", "last-8", "min", "product"}


def test_the_means_of_the_paper():
    """ViLBench prints 0.759, 0.820 and 0.891 beside these step scores (Figure 5)."""
    steps = [(0.793, 0.758, 0.719, 0.766), (0.785, 0.859, 0.816), (0.922, 0.914, 0.922, 0.805)]
    np.testing.assert_allclose(aggregate([np.array(own) for own in steps], "mean"), [0.759, 0.820, 0.891], atol=5e-4)


def test_a_score_that_is_unknown_spoils_what_reads_it():
    scores = [np.array([np.nan, 0.5, 0.25])]
    known = {how: aggregate(scores, how)[0] for how in AGGREGATIONS}
    assert {how for how, value in known.items() if np.isnan(value)} == {"mean", "last-4", "last-8", "min", "product"}
    assert known["last"] == 0.25 and known["last-2"] == 0.375


def test_unread_responses_have_the_mean_of_their_question():
    np.testing.assert_array_equal(fill(np.array([1.0, np.nan, 4.0, np.nan])), [1.0, 2.5, 4.0, 2.5])
    np.testing.assert_array_equal(fill(np.full(3, np.nan)), [0.0, 0.0, 0.0])


def test_what_says_nothing_is_left_out():
    assert aggregations([STEPS], whole=True) == ("last",)
    assert aggregations([STEPS], whole=False) == tuple(AGGREGATIONS)
    negative = [STEPS, [np.array([np.nan, -0.1])]]
    assert aggregations(negative, whole=False) == tuple(how for how in AGGREGATIONS if how != "product")
