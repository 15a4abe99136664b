import numpy as np
import pytest
from scipy import stats

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.bootstrap import interval, paired_interval, unpaired_interval


@pytest.mark.quick
def test_literal_values():
    # Two records: a resample has mean 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    assert interval([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert interval([0.0, 1.0], level=0.4) == (0.5, 0.5, 0.5)
    assert interval([0.25]) == (0.25, 0.25, 0.25)
    assert paired_interval([0.0, 1.0, 0.5, 1.0], [0.25, 1.25, 0.75, 1.25]) == (0.25, 0.25, 0.25)
    assert paired_interval([[0, 1], [1, 1]], [1, 1]) == (0.25, 0.0, 0.5)


@pytest.mark.quick
def test_a_normal_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 1000)
    estimate = interval(values)
    low, high = stats.norm.interval(0.95, values.mean(), values.std() / 1000**0.5)
    assert estimate.value == pytest.approx(values.mean(), abs=1e-12)
    # The end of 10,000 resamples is itself known to about 0.02 standard errors.
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


@pytest.mark.quick
def test_pairing_removes_what_records_have_in_common():
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 10, 200)
    estimate = paired_interval(difficulty, difficulty + generator.normal(0.5, 0.1, 200))
    assert 0.45 < estimate.low < 0.5 < estimate.high < 0.55


@pytest.mark.quick
def test_different_records_are_drawn_apart():
    assert unpaired_interval([0.5, 0.5, 0.5], [1.0]) == (0.5, 0.5, 0.5)
    generator = np.random.default_rng(0)
    first, second = generator.normal(1, 2, 500), generator.normal(1.5, 1, 300)
    estimate = unpaired_interval(first, second)
    deviation = (first.var() / 500 + second.var() / 300) ** 0.5
    assert estimate.value == pytest.approx(second.mean() - first.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * deviation, rel=0.05)


@pytest.mark.quick
def test_completions_of_one_record_count_as_one():
    values = np.random.default_rng(0).binomial(1, 0.5, 50).astype(float)
    assert interval(np.repeat(values[:, None], 8, axis=1)) == interval(values)
    before, after = np.zeros((50, 8)), np.repeat(values[:, None], 8, axis=1)
    assert paired_interval(before, after) == interval(values)


@pytest.mark.quick
def test_weights_give_the_reward_of_valid_completions():
    rewards = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    valid = np.array([[1, 1, 0], [1, 1, 0]])
    assert interval(rewards, weights=valid) == (0.75, 0.5, 1.0)
    # The second record has no valid completion: resamples of it alone say nothing.
    assert interval(rewards, weights=[[1, 1, 0], [0, 0, 0]]) == (0.5, 0.5, 0.5)
    assert paired_interval(rewards, rewards, before_weights=np.ones((2, 3)), after_weights=valid).value == 0.25


@pytest.mark.quick
def test_the_seed_decides():
    values = np.random.default_rng(0).exponential(size=40)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


@pytest.mark.parametrize("clusters", [False, True])
def test_the_interval_holds_the_truth_as_often_as_it_says(clusters):
    """400 samples from skewed distributions whose means are known."""
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        if clusters:  # each record its own chance of success, Beta(2, 3), 4 completions; the mean goes from 0.4 to 0.4
            before, after = (generator.binomial(1, np.repeat(generator.beta(2, 3, (80, 1)), 4, 1)) for _ in range(2))
            estimate = paired_interval(before, after, resamples=1000, seed=trial)
            held += estimate.low <= 0.0 <= estimate.high
        else:
            estimate = interval(generator.exponential(2.0, 80), resamples=1000, seed=trial)
            held += estimate.low <= 2.0 <= estimate.high
    # Standard error 1.1 points; the percentile interval of 80 skewed values holds a little less than it says.
    assert 0.91 <= held / 400 <= 0.98


@pytest.mark.quick
@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([], None, r"shape \[n\] or \[n, G\], n and G at least 1, got \(0,\)"),
        (np.zeros((2, 0)), None, r"got \(2, 0\)"),
        (0.5, None, r"got \(\)"),
        ([0.5, float("nan")], None, "needs finite numbers"),
        ([0.5, 1.0], [1.0], r"weights of shape \(1,\) for values of shape \(2,\)"),
        ([0.5, 1.0], [1.0, -1.0], "must not be negative"),
        ([0.5, 1.0], [0.0, 0.0], "one at least must be above 0"),
    ],
)
def test_wrong_input(values, weights, message):
    with pytest.raises(InputError, match=message):
        interval(values, weights=weights)


@pytest.mark.quick
def test_pairs_need_the_same_records():
    with pytest.raises(InputError, match="2 records before and 3 after"):
        paired_interval([0, 1], [0, 1, 1])
