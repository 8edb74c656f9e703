"""The official definitions by hand, and every shortcut against the brute force that it replaces."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from skullgen.evaluation import metrics

voxels = st.tuples(*[st.sampled_from([0.4, float(np.float32(0.4)), 1.0, 2.5, 3.2])] * 3)


def _blocks(shape, *sides):
    mask = np.zeros(shape, bool)
    for side in sides:
        mask[side] = True
    return mask


def _random(seed, shape, *shares):
    draw = np.random.default_rng(seed)
    return [draw.random(shape) < share for share in shares]


def test_dice_by_hand():
    left, right = _blocks((4, 4, 4), np.s_[:2]), _blocks((4, 4, 4), np.s_[1:])
    assert metrics.dice(left, right) == 2 * 16 / (32 + 48)
    assert metrics.dice(left, left) == 1
    assert metrics.dice(left, ~left) == metrics.dice(left & False, left & False) == 0


def test_boundary_dice_by_hand():
    # A wall at x = 0 and voxels of 2 mm: the band of 10 mm ends with x = 5.
    shape, wall = (16, 3, 3), _blocks((16, 3, 3), np.s_[0])
    truth, prediction = _blocks(shape, np.s_[3:10]), _blocks(shape, np.s_[4:13])
    assert metrics.boundary_dice(prediction, truth, wall, 2.0) == 2 * 2 / (2 + 3)
    assert metrics.boundary_dice(prediction, truth, wall, (2.0, 9.0, 0.1)) == 2 * 2 / (2 + 3)
    assert metrics.boundary_dice(prediction, truth, wall, 2.0, band_mm=7.9) == 0
    # Bone that the prediction covers is in the band, however thick the skull is.
    inside = _blocks(shape, np.s_[0:5])
    assert metrics.boundary_dice(inside, truth, _blocks(shape, np.s_[:3]), 20.0) == 0
    assert metrics.boundary_dice(inside, inside, _blocks(shape, np.s_[:5]), 20.0) == 1


@pytest.mark.parametrize("voxel", [0.4, float(np.float32(0.4)), 0.4 * (1 - 1e-8)])
def test_ten_millimetres_are_in_the_band_despite_float32_headers(voxel):
    skull, last, beyond = (_blocks((40, 3, 3), np.s_[x, 1, 1]) for x in (0, 25, 26))
    assert metrics.boundary_dice(last, last, skull, voxel) == 1
    assert metrics.boundary_dice(beyond, beyond, skull, voxel) == 0


@settings(max_examples=30)
@given(voxels, st.floats(0.3, 9), st.sampled_from([0, 0.01, 0.1, 0.5]), st.integers(0, 999))
def test_boundary_dice_equals_brute_force(voxel, band, share, seed):
    shape = (9, 7, 8)
    prediction, truth, skull = _random(seed, shape, 0.05, 0.08, share)
    cut = np.s_[seed % 5 :, : 3 + seed % 4]
    prediction[cut], truth[cut] = False, False
    near = np.zeros(shape, bool)
    for at in np.argwhere(prediction | truth):
        bone = np.argwhere(skull)
        distance = np.sqrt((((bone - at) * voxel) ** 2).sum(axis=1))
        near[tuple(at)] = (distance <= band * (1 + 1e-6)).any()
    expected = metrics.dice(prediction & near, truth & near)
    assert metrics.boundary_dice(prediction, truth, skull, voxel, band) == expected


def test_hd95_by_hand():
    first, second = _blocks((9, 5, 6), np.s_[2]), _blocks((9, 5, 6), np.s_[5])
    assert metrics.hd95(first, second, 1.0) == 3
    assert metrics.hd95(first, second, (0.5, 4, 7)) == 1.5
    turned = first.transpose(2, 0, 1), second.transpose(2, 0, 1)
    assert metrics.hd95(*turned, (7, 0.5, 4)) == 1.5
    assert metrics.hd95(first, first, 1.0) == 0
    one, two = _blocks((7, 1, 1), np.s_[1]), _blocks((7, 1, 1), np.s_[1], np.s_[5])
    # Distances 0 | 0, 4: place 1.9 of three; the worse direction alone would be 3.8.
    assert metrics.hd95(one, two, 1.0) == metrics.hd95(two, one, 1.0) == pytest.approx(3.6)
    mask = _blocks((3, 4, 12), np.s_[1])  # of nothing it is the diagonal
    for pair in ((mask & False, mask), (mask, mask & False), (mask & False,) * 2):
        assert metrics.hd95(*pair, 1.0) == 13
        assert metrics.hd95(*pair, (4, 3, 0)) == pytest.approx(np.sqrt(288))


@settings(max_examples=30)
@given(voxels, st.floats(0.02, 0.9), st.floats(0.02, 0.9), st.integers(0, 999))
def test_hd95_equals_brute_force(voxel, share, other, seed):
    shape = (7, 5, 6)
    points = []
    masks = [part | _blocks(shape, np.s_[3, 2, 2]) for part in _random(seed, shape, share, other)]
    for mask in masks:
        inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1))
        points.append(np.argwhere(mask & ~inner) * voxel)
    between = cdist(*points)
    together = np.concatenate([between.min(axis=0), between.min(axis=1)])
    assert metrics.hd95(*masks, voxel) == pytest.approx(np.percentile(together, 95), abs=1e-9)


def _weights(count, size):
    """Exact weights, whole numbers [count, size] that add up to 2 * count in every row."""
    out = np.zeros((count, size), int)
    for k in range(count):
        low, rest = divmod((2 * k + 1) * size - count, 2 * count)
        out[k, max(low, 0)] += 2 * count - rest
        out[k, min(low + 1, size - 1)] += rest
    return out


def _enlarged(values, count, level):
    """`values` int [D, D, D], interpolated in whole numbers, and `> level`."""
    weights = _weights(count, values.shape[0])
    values = np.einsum("ai,bj,ck,ijk->abc", weights, weights, weights, values, optimize=True)
    return values > level * (2 * count) ** 3


@settings(max_examples=80)
@given(
    st.integers(1, 7),
    st.integers(1, 29),
    st.sampled_from([2, 5, 8, 12]),
    st.integers(0, 9999),
)
def test_upsampled_dice_equals_brute_force(size, count, threshold, seed):
    """Ties are common on purpose: shares of sixteenths, thresholds among them."""
    draw = np.random.default_rng(seed)
    truth = draw.random((size,) * 3) < 0.4
    levels = np.where(draw.random((size,) * 3) < 0.6, 0, draw.integers(0, 17, (size,) * 3))
    probability = (levels / 16).astype(np.float32)
    got = metrics.upsampled_dice(probability, truth, count, threshold / 16)
    prediction = _enlarged(levels, count, threshold)
    assert got == metrics.dice(prediction, _enlarged(2 * truth, count, 1))


def test_upsampled_dice_of_perfect_and_empty_predictions():
    (truth,) = _random(0, (8, 8, 8), 0.3)
    for count in (8, 11, 32):
        assert metrics.upsampled_dice(truth, truth, count) == 1
        assert metrics.upsampled_dice(truth * 0.9, truth, 8) == 1
        assert metrics.upsampled_dice(truth & False, truth, count) == 0
        assert metrics.upsampled_dice(truth & False, truth & False, count) == 0


def test_512_voxels_a_side_take_little_memory():
    truth = _blocks((128,) * 3, np.s_[64:, 20:100, 100:106])
    probability = ndimage.uniform_filter(truth.astype(np.float32), 3)
    probability[5::40, 5::40, 5::40] = 1  # specks all over the grid
    tracemalloc.start()
    value = metrics.upsampled_dice(probability, truth, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.8 < value < 1 and peak < 25e6


MODEL = np.diag([2.0, 2.0, 2.0, 1.0])
FINE = np.array([[0.5, 0, 0, -0.75], [0, 1, 0, -0.5], [0, 0, 2, 0], [0, 0, 0, 1.0]])


def _native(seed=0):
    """Probabilities and truth at 8^3, and a native truth of [32, 16, 8] voxels in the same cube."""
    draw = np.random.default_rng(seed)
    truth = ndimage.binary_dilation(draw.random((8, 8, 8)) < 0.02)
    probability = np.clip(truth * 0.5 + 0.55 * draw.random((8, 8, 8)), 0, 1).astype(np.float32)
    native = truth.repeat(4, axis=0).repeat(2, axis=1)
    return probability, truth, np.roll(native, 1, axis=0)


def test_native_scores_of_an_upsampled_truth():
    probability, truth, _ = _native()
    affine = np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = -0.75
    native = _enlarged(2 * truth, 32, 1)
    got = metrics.native_scores(probability, truth, MODEL, (native, affine), 0.6)
    expected = metrics.upsampled_dice(probability, truth, 32, 0.6)
    assert got["ceiling_native"] == 1 and got["dice_native"] == expected < 1


def test_native_scores_by_hand():
    truth = _blocks((4, 4, 4), np.s_[0:2])
    # The grid begins 3 voxels before the cube and reaches as far beyond it: these are missed.
    affine = np.diag([1.0, 2, 2, 1])
    affine[0, 3] = -3.5
    native = _blocks((14, 4, 4), np.s_[0:8])
    got = metrics.native_scores(truth & False, truth, MODEL, (native, affine))
    assert got["ceiling_native"] == 2 * 4 / (4 + 8) and got["dice_native"] == 0
    assert got["hd95_native_mm"] == pytest.approx(np.sqrt(14**2 + 8**2 + 8**2))
    shifted = metrics.native_scores(truth, truth, MODEL, (native[::-1], affine))
    # Bone at x 3..6 against 6..13.
    assert shifted["dice_native"] == 2 * 1 / (4 + 8)


@settings(max_examples=30)
@given(
    st.permutations(range(3)),
    st.tuples(*[st.booleans()] * 3),
    st.floats(-180, 180),
)
def test_native_scores_do_not_depend_on_the_order_of_the_axes(order, flips, angle):
    probability, truth, native = _native()
    expected = metrics.native_scores(probability, truth, MODEL, (native, FINE))
    assert 0.3 < expected["dice_native"] < 0.95 and expected["ceiling_native"] < 1
    turn = np.eye(4)[:, [*order, 3]]
    data, affine = native.transpose(order), FINE @ turn
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += (data.shape[axis] - 1) * affine[:3, axis]
        affine[:3, axis] *= -1
        data = np.flip(data, axis)
    # Both grids lie askew in the scanner.
    tilt, angle = np.eye(4), np.deg2rad(angle)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    got = metrics.native_scores(probability, truth, tilt @ MODEL, (data, tilt @ affine))
    assert got == pytest.approx(expected, abs=1e-12)
