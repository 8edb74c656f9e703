"""Phantoms: published lengths, a closed vault, an open foramen, one piece, natural variation."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from skullgen.data import phantom
from tests.conftest import SHARED

SEEDS = range(8)
STEP = 1.6  # mm a voxel at 128


@pytest.fixture(scope="module")
def skulls():
    return [phantom.skull(seed) for seed in SEEDS]


def reduce(volume, size):
    block = volume.shape[0] // size
    return volume.reshape(size, block, size, block, size, block).mean((1, 3, 5))


def extent(volume, axis):
    other = tuple(a for a in range(3) if a != axis)
    return np.flatnonzero(volume.any(other))[[0, -1]] + [0, 1]


def is_closed(bone, cap=50.0):
    """Whether water outside cannot reach the braincase when all below `cap` mm is solid."""
    size = bone.shape[0]
    step = phantom.FIELD_MM / size
    solid = bone.copy()
    solid[:, :, : int(np.ceil(cap / step))] = True
    labels, _ = ndimage.label(~solid)
    inside = labels[size // 2, size // 2, int(75 / step)]
    assert inside and labels[0, 0, -1]
    return inside != labels[0, 0, -1]


def mean_dice(volumes):
    pairs = itertools.combinations(volumes, 2)
    return np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs])


def test_a_seed_is_one_individual_and_another_seed_another(skulls):
    assert skulls[3].dtype == bool and skulls[3].shape == (128, 128, 128)
    assert np.array_equal(phantom.skull(3), skulls[3])
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(skulls, 2))


def test_another_size_is_the_same_individual(skulls):
    # A binary grid against block means of a finer one: equal but for voxels cut by a surface.
    coarse, share = phantom.skull(5, 64), reduce(skulls[5], 64)
    assert coarse[share == 1].mean() > 0.999 and coarse[share == 0].mean() < 0.001
    assert abs(coarse.mean() / skulls[5].mean() - 1) < 0.03
    odd = phantom.skull(2, 75)
    for axis in range(3):
        a, b = extent(skulls[2], axis) * STEP, extent(odd, axis) * (phantom.FIELD_MM / 75)
        assert np.abs(a - b).max() < 2 * phantom.FIELD_MM / 75


def test_every_skull_is_one_piece_of_the_lengths_drawn_that_sits_in_the_frame(skulls):
    for seed, bone in zip(SEEDS, skulls, strict=True):
        assert ndimage.label(bone)[1] == 1
        length, breadth, _ = phantom.individual(seed)[1]
        above = bone[:, :, int(40 / STEP) :]
        wide, long = extent(above, 0) * STEP, extent(above[58:70], 1) * STEP
        assert abs(np.ptp(wide) - breadth) < 2 * STEP and abs(np.ptp(long) - length) < 2 * STEP
        assert abs(wide.mean() - 102.4) < 2 * STEP and abs(long.mean() - 102.4) < 2 * STEP
        assert abs(extent(bone, 2)[1] * STEP - 125) < STEP


def test_affine_puts_the_frame_around_the_origin():
    corners = np.array([[-0.5, 127.5]] * 3 + [[1, 1]])
    expected = [[-102.4, 102.4]] * 3 + [[1, 1]]
    np.testing.assert_allclose(phantom.affine(128) @ corners, expected)


def test_the_vault_is_closed_on_a_coarse_grid_too_and_a_hole_in_it_would_be_seen(skulls):
    assert all(is_closed(bone) and is_closed(reduce(bone, 32) >= 0.25) for bone in skulls)
    broken = skulls[0].copy()
    broken[63:65, 63:65, 70:] = False
    assert not is_closed(broken)


def test_the_foramen_magnum_is_open(skulls):
    # A straight line from the floor of the frame into the braincase, and bone around it.
    for seed, bone in zip(SEEDS, skulls, strict=True):
        y = int((102.4 - 23 * phantom.individual(seed)[1][0] / 180) / STEP)
        assert not bone[62:66, y - 2 : y + 3, : int(60 / STEP)].any()
        below = bone[:, :, : int(20 / STEP)].any(2)
        hole, _ = ndimage.label(~below)
        assert hole[64, y] != hole[0, 0]


def test_lengths_have_the_published_means_spreads_and_correlations():
    drawn = np.array([phantom.individual(seed)[1] for seed in range(4000)])
    within = phantom.SPREADS[:, None] * phantom.CORRELATION * phantom.SPREADS
    between = np.cov(phantom.MEANS.T, bias=True)
    cov = within + between
    spread = np.sqrt(np.diag(cov))
    error = 4 / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - phantom.MEANS.mean(0)) < error * spread).all()
    np.testing.assert_allclose(drawn.std(0), spread, rtol=error)
    assert (np.abs(np.corrcoef(drawn.T) - cov / np.outer(spread, spread)) < error).all()


def test_thickness_of_the_vault(skulls):
    # Real heads on this frame: 0.024 to 0.050 without base and face, 0.054 to 0.058 with them.
    assert 0.035 < np.mean([bone.mean() for bone in skulls]) < 0.06

    def along(bone, direction):
        point = [64, 64, 28] + np.arange(0, 62, 0.25)[:, None] * np.array(direction)
        return bone[tuple(point.astype(int).T)].sum() * 0.25 * STEP

    up = [along(bone, (0, 0, 1)) for bone in skulls]
    side = [along(bone, (1, 0, 0)) for bone in skulls]
    back = [along(bone, (0, -0.96, -0.28)) for bone in skulls]
    assert 4 < np.mean(up) < 9 and 3 < np.mean(side) < 7 and 7 < np.mean(back) < 18
    assert np.mean(side) < np.mean(up) < np.mean(back)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real skulls (../shared/data) are not here")
def test_phantoms_vary_at_least_as_much_as_real_skulls(skulls):
    import nibabel as nib

    files = sorted((SHARED / "skulls").glob("*.nii.gz"))[::2]
    real = [reduce(np.asarray(nib.load(file).dataobj) > 0, 128) >= 0.5 for file in files]
    assert mean_dice(skulls) <= mean_dice(real)
    coarse = [[reduce(v, 32) >= 0.3 for v in group] for group in (skulls, real)]
    assert mean_dice(coarse[0]) <= mean_dice(coarse[1])
