"""How far apart two sets of pairs are, in features, and how varied one set is, for small samples.

Pairs of one skull are alike: within a set no pair is compared with another of its own skull, and
what is resampled is skulls. Shapes: `n` and `m` pairs, `F` features, `D` voxels a side.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage, stats
from scipy.spatial.distance import cdist

from skullgen.evaluation.intervals import Interval

NEIGHBOURS = 5  # equal sets then have a coverage of .97, at any n (Naeem et al. 2020, equation 7)
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of Wang et al. 2003, finest first
WINDOW = 11  # voxels: a scale that is smaller is not used

Skulls = Int[np.ndarray, " n"]


class Sample(NamedTuple):
    """Pairs by their features, and the number of each one's skull; of two skulls or more."""

    features: Float[np.ndarray, "n F"]
    skulls: Skulls


def apart(skulls: Skulls) -> Bool[np.ndarray, "n n"]:
    """Which pairs are of different skulls."""
    return skulls[:, None] != skulls


def mmd(a: Sample, b: Sample, resamples: int = 1000, seed: int = 0) -> Interval:
    """Squared MMD, unbiased, with KID's kernel (x.y / F + 1)^3 (Binkowski et al. 2018, section 4).

    The interval: 95 % percentile bootstrap over the skulls of both sets; of equal sets too wide.
    """
    rng = np.random.default_rng(seed)
    u, v = (np.vstack([np.ones(len(s.skulls)), draws(s.skulls, resamples, rng)]) for s in (a, b))
    everything = np.ones((len(a.skulls), len(b.skulls)))
    values = _mean(a, a, u, u, apart(a.skulls)) + _mean(b, b, v, v, apart(b.skulls))
    values -= 2 * _mean(a, b, u, v, everything)
    low, high = np.nanquantile(values[1:], [0.025, 0.975])  # NaN: a draw of one skull only
    return Interval(float(values[0]), float(low), float(high), "bootstrap over skulls")


def _mean(a, b, u, v, allowed):
    """The kernel's mean over allowed comparisons, with weights u [R, n] and v [R, m]: [R]."""
    kernel = (a.features @ b.features.T / a.features.shape[1] + 1) ** 3
    total, count = (((u @ x) * v).sum(axis=1) for x in (kernel * allowed, allowed))
    return np.divide(total, count, out=np.full(len(u), np.nan), where=count > 0)


def draws(skulls: Skulls, count: int, rng: np.random.Generator) -> Int[np.ndarray, "count n"]:
    """How often each pair is there, when as many skulls are drawn with replacement."""
    names, number = np.unique(skulls, return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)[:, number]


def manifold(a: Sample, b: Sample, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi 2019), density, coverage (Naeem 2020) of `a` beside `b`.

    A ball reaches to the k-th neighbour of another skull; k: neighbours, or what small sets have.
    """
    k = min(neighbours, *(int(apart(s.skulls).sum(axis=1).min()) for s in (a, b)))
    reach_a, reach_b = (np.sort(_within(s), axis=1)[:, k - 1] for s in (a, b))
    across = cdist(a.features, b.features)
    inside = across <= reach_b
    return {
        "precision": float(inside.any(axis=1).mean()),
        "recall": float((across <= reach_a[:, None]).any(axis=0).mean()),
        "density": float(inside.sum(axis=1).mean() / k),
        "coverage": float(inside.any(axis=0).mean()),
    }


def _within(sample):
    """Distances within a set; to pairs of the same skull infinite."""
    far = cdist(sample.features, sample.features)
    return np.where(apart(sample.skulls), far, np.inf)


def nearest_accuracy(a: Sample, b: Sample) -> float:
    """Leave-one-out accuracy of 1-NN that tells `a` from `b`: .5 of equal sets, less of copies.

    A pair has fewer possible neighbours in its own set, whose own skull does not count. The other
    set is cut down to as many: the mean over all such choices (Lopez-Paz & Oquab 2017 have n - 1
    beside n, which is below .5 of equal sets). Of few skulls it stays below: .45 of six.
    """
    across, right = cdist(a.features, b.features), []
    for sample, other in ((a, across), (b, across.T)):
        nearer = (other < _within(sample).min(axis=1, keepdims=True)).sum(axis=1)
        own, there = apart(sample.skulls).sum(axis=1), other.shape[1]
        right.append(stats.hypergeom.pmf(0, there, nearer, np.minimum(own, there)).mean())
    return float(np.mean(right))


def frechet(a: Float[np.ndarray, "n F"], b: Float[np.ndarray, "m F"]) -> float:
    """The Frechet distance (squared, as FID) of two Gaussians; biased upwards in small sets."""
    mean, own = a.mean(axis=0) - b.mean(axis=0), [np.atleast_2d(np.cov(x.T)) for x in (a, b)]
    roots = np.linalg.eigvals(own[0] @ own[1]).real.clip(0)
    spread = sum(np.trace(one) for one in own) - 2 * np.sqrt(roots).sum()
    return float(mean @ mean + spread)


def frechet_bias(sample: Sample, count: int = 20, seed: int = 0) -> float:
    """About what `frechet` gives of two sets that are equal, with as many skulls and pairs as this.

    The mean of random halves by skull, halved, since the bias goes as 1 / n: of 27 and 57 drawn
    skulls 2 to 5 % too little, of six a third.
    """
    names, rng, x = np.unique(sample.skulls), np.random.default_rng(seed), sample.features
    picks = [rng.permutation(names)[: len(names) // 2] for _ in range(count)]
    halves = [np.isin(sample.skulls, pick) for pick in picks]
    return float(np.mean([frechet(x[half], x[~half]) for half in halves]) / 2)


def ms_ssim(
    a: Float32[np.ndarray, "n D D D"], b: Float32[np.ndarray, "n D D D"]
) -> Float32[np.ndarray, " n"]:
    """Multi-scale structural similarity (Wang et al. 2003) of volumes between 0 and 1, in turn.

    As many of its five scales as have 11 voxels a side, their weights made one; beyond the grid
    is air. Most of a volume is air in both: that raises it, as it raises everyone's.
    """
    most = 1 + int(np.log2(max(a.shape[-1], WINDOW) / WINDOW))
    weights = np.array(SCALES[:most]) / sum(SCALES[:most])
    result = np.ones(len(a), np.float32)
    for scale, weight in enumerate(weights, 1):
        mean_a, mean_b, square_a, square_b, both = map(_blur, (a, b, a * a, b * b, a * b))
        both, product = both - mean_a * mean_b, mean_a * mean_b
        spread = square_a + square_b - mean_a**2 - mean_b**2
        value = (2 * both + 0.03**2) / (spread + 0.03**2)
        if scale == len(weights):
            value *= (2 * product + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        result *= value.mean(axis=(1, 2, 3)).clip(0) ** weight
        a, b = (ndimage.uniform_filter(x, (1, 2, 2, 2))[:, 1::2, 1::2, 1::2] for x in (a, b))
    return result


def _blur(x):
    """Gaussian means of x [n, D, D, D], of standard deviation 1.5 voxels, in a window of 11."""
    kernel = ndimage.gaussian_filter1d(np.eye(x.shape[-1]), 1.5, truncate=3.5, mode="constant")
    for _ in range(3):  # each turn takes the next axis to the end
        x = np.moveaxis(x, 1, -1) @ kernel.astype(np.float32)
    return x
