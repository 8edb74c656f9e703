"""Distances between sets of features, and likeness of volumes: known answers."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from skullgen.data import store
from skullgen.evaluation import distances, fidelity
from skullgen.evaluation.distances import Sample
from skullgen.report import tables
from tests.report import samples


def _sample(seed, skulls=40, each=1, spread=0.0, size=4):
    """Standard normal skulls; pairs of one differ by `spread`."""
    rng = np.random.default_rng(seed)
    places = np.repeat(rng.normal(size=(skulls, size)), each, axis=0)
    noise = spread * rng.normal(size=places.shape)
    return Sample(places + noise, np.repeat(np.arange(skulls), each))


def _moved(sample, by):
    return sample._replace(features=sample.features + by)


def test_mmd_is_that_of_every_comparison_of_two_skulls():
    a, b = _sample(0, skulls=3, each=2, spread=1), _sample(1, skulls=5)

    def mean(x, y, same):
        values = [
            (u @ v / 4 + 1) ** 3
            for u, i in zip(*x, strict=True)
            for v, j in zip(*y, strict=True)
            if not same or i != j
        ]
        return np.mean(values)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert distances.mmd(a, b, 10).mean == pytest.approx(expected)


def test_equal_sets_cannot_be_told_apart():
    mmd, right, found = [], [], []
    for seed in range(0, 40, 2):
        a, b = _sample(seed, 20, 3, 0.2), _sample(seed + 1, 20, 3, 0.2)
        mmd.append(distances.mmd(a, b, 200))
        right.append(distances.nearest_accuracy(a, b))
        found.append(list(distances.manifold(a, b).values()))
    means = [one.mean for one in mmd]
    assert abs(np.mean(means)) < 3 * np.std(means) / np.sqrt(len(mmd))  # unbiased
    assert np.mean([one.low <= 0 <= one.high for one in mmd]) >= 0.9
    assert np.mean(right) == pytest.approx(0.5, abs=0.05)
    assert (np.mean(found, axis=0) > 0.8).all()


def test_single_pairs_of_a_skull_give_one_half_whatever_n_is():
    values = [
        distances.nearest_accuracy(_sample(k, 4), _sample(k + 1, 4)) for k in range(0, 1000, 2)
    ]
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)  # n - 1 beside n would give .43


def test_a_shift_is_the_frechet_distance_and_is_seen_by_all():
    a, b = _sample(0, 400), _sample(1, 400)
    far = _moved(b, 3.0)
    assert distances.frechet(a.features, a.features + np.array([3, 0, 0, 4])) == pytest.approx(25)
    assert distances.frechet(a.features, far.features) == pytest.approx(4 * 9, rel=0.1)
    wide = a.features * 2  # (2 - 1)^2 of each variance
    assert distances.frechet(a.features, wide) == pytest.approx(
        np.trace(np.cov(a.features.T)) + a.features.mean(axis=0) @ a.features.mean(axis=0)
    )
    assert distances.mmd(a, far, 50).low > 1
    assert distances.nearest_accuracy(a, far) > 0.95
    assert all(value < 0.1 for value in distances.manifold(a, far).values())


def test_the_bias_of_a_frechet_distance_is_what_equal_sets_have():
    true, said = [], []
    for seed in range(0, 60, 2):
        a, b = _sample(seed, 30, 2, 0.3, size=8), _sample(seed + 1, 30, 2, 0.3, size=8)
        true.append(distances.frechet(a.features, b.features))
        said.append(distances.frechet_bias(b))
    assert np.mean(true) > 0.8 and np.mean(said) == pytest.approx(np.mean(true), rel=0.15)


def test_copies_are_nearer_than_real_ones():
    real = _sample(0, 30, 2, 0.3)
    copies = _moved(real, 1e-6)
    assert distances.nearest_accuracy(copies, real) < 0.05
    found = distances.manifold(copies, real)
    assert found["precision"] == found["recall"] == found["coverage"] == 1


def test_collapse_has_precision_and_neither_recall_nor_coverage():
    real = _sample(0, 60)
    mode = real.features[np.linalg.norm(real.features, axis=1).argmin()]
    mode = mode + 1e-3 * _sample(1, 60).features
    found = distances.manifold(Sample(mode, np.arange(60)), real)
    assert found["precision"] == 1 and found["recall"] < 0.1 and found["coverage"] < 0.5
    assert found["density"] > 1


def test_neighbours_by_hand():
    """On a line, k = 1; the pair at 0.1 is of the skull at 0: its ball reaches to 2, not to 0."""
    real = Sample(np.array([[0.0], [0.1], [2.0]]), np.array([0, 0, 1]))
    made = Sample(np.array([[-1.5], [3.0], [9.0]]), np.arange(3))
    found = distances.manifold(made, real, neighbours=1)  # reaches 2, 1.9, 1.9; made 4.5, 4.5, 6
    assert found == {
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "density": pytest.approx((2 + 1 + 0) / 3),
        "coverage": 1.0,
    }


def test_skulls_are_drawn_and_not_pairs():
    a, b = _sample(0, 12, 5, 0.01), _sample(1, 12, 5, 0.01)
    alone = [one._replace(skulls=np.arange(60)) for one in (a, b)]
    by_skull, by_pair = distances.mmd(a, b), distances.mmd(*alone)
    assert by_skull.high - by_skull.low > 1.3 * (by_pair.high - by_pair.low)
    weights = distances.draws(a.skulls, 50, np.random.default_rng(0))
    assert (weights.sum(axis=1) == 60).all() and (np.ptp(weights.reshape(50, 12, 5), 2) == 0).all()


def test_ms_ssim_of_one_scale_is_ssim_and_falls_with_change():
    rng = np.random.default_rng(0)
    a = np.zeros((2, 20, 20, 20), np.float32)
    a[:, 7:13, 7:13, 7:13] = rng.random((2, 6, 6, 6))
    b = a.copy()
    b[0] = 0.5 * a[1]
    found = distances.ms_ssim(a, b)
    options = dict(gaussian_weights=True, use_sample_covariance=False, data_range=1, full=True)
    expected = structural_similarity(a[0], b[0], **options)[1].mean()  # over all voxels, air too
    assert found == pytest.approx([expected, 1], rel=1e-4)
    large = rng.random((1, 44, 44, 44)).astype(np.float32)
    values = [float(distances.ms_ssim(large, (1 - t) * large + t / 2)[0]) for t in (0, 0.3, 0.9)]
    assert values[0] == pytest.approx(1) and values == sorted(values, reverse=True)


def _store(path, pairs, split, skulls):
    opened = store.create(path, store.Shape(len(pairs), 16, len(pairs)), {"names": []}, {})
    opened.write(0, store.pack(pairs), {"split": np.array(split), "skull": np.array(skulls)})
    return opened


def test_groups_are_compared_beside_half_of_the_training_skulls(tmp_path):
    """Twelve training skulls of two pairs, six unseen, and what a generator made of one."""
    real = samples.pairs(tmp_path / "any.zarr")
    rng = np.random.default_rng(0)
    pairs = np.stack(
        [np.roll(real[k % 6], rng.integers(-3, 4), axis=k // 6 % 3) for k in range(36)]
    )
    skulls, split = np.repeat(np.arange(18), 2), np.repeat([0, 2], [24, 12])
    real = _store(tmp_path / "real.zarr", pairs, split, skulls)
    one = np.repeat(pairs[:1], 20, axis=0)
    made = _store(tmp_path / "generated.zarr", one, [-1] * 20, [-1] * 20)
    mean = {"mean": lambda bits: store.unpack(bits, 16).mean(axis=(2, 3)).reshape(len(bits), -1)}
    alike = {"alike": lambda bits: np.ones((len(bits), 3))}
    found = fidelity.beside(real, {"generated": made}, mean | alike, (8.0, 0.08, 0.5))
    assert found["pairs"] == 12 and list(found["features"]) == ["mean", "PCA of the volumes"]
    groups = ("reference", "held_out", "generated", "augmentation")
    assert found["skulls"] == dict(zip(groups, (6, 6, 12, 12), strict=True))
    for part in found["features"].values():
        rows = part["groups"]
        assert rows["generated"]["recall"] <= 0.2 < rows["held_out"]["recall"]
        assert rows["generated"]["mmd"]["mean"] > rows["held_out"]["mmd"]["mean"]
    for channel in ("skull", "defect"):
        its = {name: one[channel] for name, one in found["variety"].items()}
        assert its["generated"]["dice"] > its["held_out"]["dice"]
        assert its["generated"]["ms_ssim"] > its["held_out"]["ms_ssim"]
    first, second = tables.distances(found)
    assert [row[0] for row in first.rows[:2]] == ["generated; mean", "held-out real; mean"]
    assert first.rows[1][1] == "6" and second.rows[0][0] == "training" and len(first.rows) == 6
    assert len(first.notes) == 2 and "is bias" in first.notes[0]
    few = fidelity.beside(real, {"generated": made}, {}, (0, 0, 0), source_rows=np.arange(8))
    assert few == {} and tables.distances(few) == []
