"""Intervals of means: over skulls, over seeds, and of the share of a headroom.

Skulls and seeds are what was drawn; cases of a skull are alike. Shapes: `n` skulls, `k` seeds.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

BOOTSTRAP_SKULLS = 10  # fewer than this have a t interval
RESAMPLES = 10_000
WIDEST = 50.0  # of a share: an end beyond it says nothing

Values = Float[np.ndarray, " n"] | Float[np.ndarray, "n k"]


class Interval(NamedTuple):
    """A mean, the ends of its 95 % interval (None of a single value), and the interval's kind."""

    mean: float
    low: float | None
    high: float | None
    kind: str


def interval(values: Values, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of one number a skull, or a skull and seed.

    One seed: from ten skulls on the percentile bootstrap, from two to nine a t interval. Several:
    both crossed and random, variance `(MS_skulls + max(0, MS_seeds - MS_rest)) / n k`, the quantile
    that of t with Satterthwaite's degrees of freedom.
    """
    values, tail = np.asarray(values, float), (1 - level) / 2
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Interval(mean, None, None, "none")
    if values.ndim == 2:
        variance, degrees = _crossed(values)
        half = special.stdtrit(degrees, 1 - tail) * np.sqrt(variance) if variance else 0.0
        return Interval(mean, float(mean - half), float(mean + half), "t over skulls and seeds")
    if count < BOOTSTRAP_SKULLS:
        half = special.stdtrit(count - 1, 1 - tail) * values.std(ddof=1) / np.sqrt(count)
        return Interval(mean, float(mean - half), float(mean + half), "t over skulls")
    draws = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    low, high = np.quantile(values[draws].mean(axis=1), [tail, 1 - tail])
    return Interval(mean, float(low), float(high), "bootstrap over skulls")


def _crossed(values):
    """The variance of the mean of values [n, k] of random skulls and seeds, and its degrees."""
    n, k = values.shape
    skulls, seeds = (values.mean(axis) - values.mean() for axis in (1, 0))
    rest = values - values.mean() - skulls[:, None] - seeds
    squares = [k * skulls @ skulls / (n - 1), n * seeds @ seeds / (k - 1)]
    squares.append((rest**2).sum() / ((n - 1) * (k - 1)))
    if squares[1] <= squares[2]:  # seeds differ by no more than chance
        return squares[0] / (n * k), n - 1
    parts = np.array(squares) * [1, 1, -1] / (n * k)
    degrees = n - 1, k - 1, (n - 1) * (k - 1)
    return parts.sum(), parts.sum() ** 2 / (parts**2 / degrees).sum()


def share(gain: Values, headroom: Values) -> Interval | None:
    """The share of a headroom that a gain closes, by Fieller; None where that is within noise."""
    gain, headroom = np.asarray(gain, float), np.asarray(headroom, float)
    room = interval(headroom)
    if room.low is None or room.low <= 0:
        return None
    middle = float(gain.mean()) / room.mean

    def possible(value):
        rest = interval(gain - value * headroom)
        return rest.low <= 0 <= rest.high

    ends = [_end(possible, middle, sign) for sign in (-1, 1)]
    return Interval(middle, *ends, f"{room.kind}, Fieller")


def _end(possible: Callable[[float], bool], middle: float, sign: int) -> float:
    """The last value on one side of `middle` that is possible, to 0.0005."""
    inside, step = middle, 0.05
    while possible(inside + sign * step) and step < WIDEST:
        step *= 2
    low, high = 0.0, step
    while high - low > 5e-4 and possible(middle):
        half = (low + high) / 2
        low, high = (half, high) if possible(inside + sign * half) else (low, half)
    return middle + sign * low
