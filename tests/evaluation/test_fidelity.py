"""Dice and the yardsticks of generated pairs, by hand and by brute force."""

import numpy as np
import pytest

from skullgen.core.errors import UserError
from skullgen.data import store
from skullgen.evaluation import fidelity, metrics

SIZE = 8


def test_dice_matrix_equals_dice():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, SIZE, SIZE, SIZE, 2)) < 0.4, rng.random((5, SIZE, SIZE, SIZE, 2)) < 0.2
    b[2, ..., 1] = False
    matrix = fidelity.dice_matrix(store.pack(a), store.pack(b), SIZE)
    for channel, i, j in np.ndindex(matrix.shape):
        expected = metrics.dice(a[i, ..., channel], b[j, ..., channel])
        assert matrix[channel, i, j] == pytest.approx(expected, rel=1e-6)


def test_mean_pair_keeps_the_likeliest_voxels_and_the_occupancy():
    pairs = np.zeros((4, SIZE, SIZE, SIZE, 2), bool)
    pairs[:, :2, :2, :2, 0] = True  # all have these 8
    pairs[0, 4, 4, :4, 0] = True  # one in four has these 4: a mean of 9 voxels
    pairs[:3, 6, 6, 6, 1] = True
    pairs[3, 7, 7, 7, 1] = True
    mean = store.unpack(fidelity.mean_pair(store.pack(pairs), SIZE), SIZE)[0]
    assert mean[..., 0].sum() == 9 and mean[:2, :2, :2, 0].all()
    assert mean[..., 1].sum() == 1 and mean[6, 6, 6, 1]


def _store(path, pairs, split):
    shape = store.Shape(len(pairs), pairs.shape[1], len(pairs))
    opened = store.create(path, shape, {"names": []}, {})
    columns = {"split": np.array(split), "removed": np.zeros((len(pairs), 3))}
    opened.write(0, store.pack(pairs), columns)
    return opened


def test_fidelity_by_hand(tmp_path):
    """Cubes at known places: every number can be counted."""

    def cube(x, y):
        pair = np.zeros((SIZE, SIZE, SIZE, 2), bool)
        pair[x : x + 2, :2, :2, 0] = True
        pair[4:6, y : y + 2, 4:6, 1] = True
        return pair

    empty = cube(0, 0)
    empty[..., 1] = False
    pairs = np.stack([cube(0, 0), cube(4, 4), cube(1, 0)])
    real = _store(tmp_path / "real.zarr", pairs, [0, 0, 2])
    generated = _store(tmp_path / "generated.zarr", np.stack([cube(0, 0), empty]), [-1, -1])
    result = fidelity.fidelity(real, generated)
    skull, defect = result["skull"], result["defect"]
    assert skull["nearest_training_dice"]["generated"] == 1
    assert skull["nearest_training_dice"]["held_out"] == 0.5
    assert defect["nearest_training_dice"]["generated"] == 0.5
    assert defect["nearest_training_dice"]["held_out"] == 1
    assert skull["pairwise_dice"] == {"generated": 1, "training": 0}
    assert skull["occupancy"]["training"] == pytest.approx(8 / SIZE**3)
    assert result["removed"]["empty_defects"] == 0.5
    closest = result["copies"]["skull"]["closest"][0]  # the whole skull of training pair 0
    assert (closest["generated"], closest["training"], closest["dice"]) == (0, 0, 1)
    other = fidelity.fidelity(real, generated, source_rows=np.array([1]))
    assert other["skull"]["nearest_training_dice"]["generated"] == 0
    assert other["copies"]["pair"]["closest"][0]["training"] == 1
    small = _store(tmp_path / "4.zarr", np.ones((2, 4, 4, 4, 2), bool), [0, 0])
    with pytest.raises(UserError, match="not of the size"):
        fidelity.fidelity(small, generated)


def test_copies_by_hand():
    """Four bars of 8 voxels; a generated pair that is a training pair, and one between."""
    size = 4

    def pair(skull, defect):
        out = np.zeros((size, size, size, 2), bool)
        out.reshape(-1, 2)[skull, 0] = True
        out.reshape(-1, 2)[defect, 1] = True
        return out

    train = store.pack(np.stack([pair(range(8), range(8, 12)), pair(range(20, 28), range(28, 32))]))
    unseen = store.pack(np.stack([pair(range(6), range(6, 9))]))
    other, copy = pair(range(20, 30), range(30, 32)), pair(range(8), range(8, 12))
    generated = store.pack(np.stack([other, copy]))
    near = fidelity.copies(train, unseen, generated, size, ["a", "b"])
    # Complete skulls: 12 voxels of training, 9 unseen, all shared; generated 0 is b, cut elsewhere.
    assert near["skull"]["held_out"] == pytest.approx([2 * 9 / 21])
    assert near["skull"]["generated"] == pytest.approx([1, 1])
    assert near["skull"]["limit"] == pytest.approx(2 * 9 / 21)
    assert near["skull"]["share_above"] == 1
    assert near["pair"]["held_out"] == pytest.approx([2 * 7 / 21])  # 6 of skull and 1 of defect
    assert near["pair"]["generated"] == pytest.approx([2 * 10 / 24, 1])
    first = near["pair"]["closest"][0]
    assert first == {"generated": 1, "training": 0, "name": "a", "dice": 1}
    none = fidelity.copies(train, unseen[:0], generated, size, ["a", "b"])
    assert none["skull"]["limit"] is None and none["skull"]["share_above"] is None
