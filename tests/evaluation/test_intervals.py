"""Intervals by hand, their coverage, and the share of a headroom."""

import numpy as np
import pytest
from scipy import stats

from skullgen.evaluation import intervals


@pytest.mark.parametrize(("count", "level"), [(2, 0.95), (5, 0.9), (9, 0.95)])
def test_few_skulls_have_a_t_interval(count, level):
    values = np.random.default_rng(count).random(count)
    mean, low, high, kind = intervals.interval(values, level)
    expected = stats.t.interval(level, count - 1, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected) and mean == pytest.approx(values.mean())
    assert kind == "t over skulls"
    assert intervals.interval(values[:1]) == (values[0], None, None, "none")


@pytest.mark.parametrize("count", [10, 37, 3000])
def test_many_skulls_are_bootstrapped(count):
    values = np.random.default_rng(count).exponential(size=count)
    mean, low, high, kind = first = intervals.interval(values, seed=3)
    assert kind == "bootstrap over skulls" and low < mean < high
    assert intervals.interval(values, seed=3) == first != intervals.interval(values, seed=4)
    rng = np.random.default_rng(0)
    other = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=rng)
    noise = 0.06 * values.std() / np.sqrt(count)  # of two seeds' quantiles
    assert (low, high) == pytest.approx(tuple(other.confidence_interval), abs=3 * noise)


def test_seeds_that_agree_leave_the_interval_of_skulls():
    """Of values that are the same for every seed, and of those without any difference of skulls."""
    values = np.array([0.1, 0.4, 0.7])
    crossed = intervals.interval(np.repeat(values[:, None], 3, axis=1))
    assert intervals.interval(values[:, None]) == intervals.interval(values)
    assert crossed[:3] == pytest.approx(intervals.interval(values)[:3])
    seeds = intervals.interval(np.repeat(values[None], 5, axis=0))
    assert seeds[:3] == pytest.approx(intervals.interval(values)[:3])


@pytest.mark.parametrize(("skull", "seed", "rest"), [(1, 1, 0.3), (1, 0, 1), (0.2, 1, 0.2)])
def test_nine_of_ten_intervals_and_more_hold_the_truth(skull, seed, rest):
    """An interval over skulls alone misses what another seed would give."""
    rng, hits, alone = np.random.default_rng(0), 0, 0
    for _ in range(400):
        values = skull * rng.normal(size=(6, 1)) + seed * rng.normal(size=(1, 3))
        values = values + rest * rng.normal(size=(6, 3))
        _, low, high, _ = intervals.interval(values)
        hits += low <= 0 <= high
        _, low, high, _ = intervals.interval(values.mean(1))
        alone += low <= 0 <= high
    assert hits >= 0.9 * 400 and (hits > alone or not seed)


def test_a_share_is_one_at_the_ceiling_and_half_halfway():
    rng = np.random.default_rng(1)
    room = 0.2 + 0.02 * rng.normal(size=(8, 3))
    whole = intervals.share(room, room)
    assert whole[:3] == pytest.approx((1, 1, 1), abs=2e-3)
    noise = 0.01 * rng.normal(size=(8, 3))
    half = intervals.share(0.5 * room + noise, room)
    assert half.low < 0.5 < half.high and half.high - half.low < 0.3
    assert half.mean == pytest.approx(0.5, abs=0.05)


def test_within_noise_nothing_can_be_told_apart():
    rng = np.random.default_rng(2)
    assert intervals.share(rng.normal(size=8), 0.01 + 0.1 * rng.normal(size=8)) is None
    assert intervals.share(np.ones(1), np.ones(1)) is None
