"""Phantoms: published lengths, a closed vault, an open foramen, one piece, natural variation."""

import itertools
import pathlib

import numpy as np
import pytest
from scipy import ndimage

from skullgen.core.errors import UserError
from skullgen.data import phantom

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
SEEDS = range(12)
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
    step = phantom.SIDE / size
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


@pytest.mark.parametrize("seed", [0, 5])
def test_another_size_is_the_same_individual(skulls, seed):
    # A binary grid against block means of a finer one: equal but for voxels cut by a surface.
    coarse = phantom.skull(seed, 64)
    share = reduce(skulls[seed], 64)
    assert coarse[share == 1].mean() > 0.999 and coarse[share == 0].mean() < 0.001
    assert abs(coarse.mean() / skulls[seed].mean() - 1) < 0.03


def test_a_size_that_does_not_divide_the_other_gives_the_same_lengths():
    fine, odd = phantom.skull(2, 128), phantom.skull(2, 75)
    for axis in range(3):
        a, b = extent(fine, axis) * STEP, extent(odd, axis) * (phantom.SIDE / 75)
        assert np.abs(a - b).max() < 2 * phantom.SIDE / 75


def test_every_skull_sits_in_the_frame(skulls):
    for bone in skulls:
        vault = bone[:, :, int(48 / STEP) :]
        assert abs(extent(bone, 2)[1] * STEP - 125) < STEP
        assert abs(extent(vault, 0).mean() * STEP - 102.4) < 1.5 * STEP
        middle = bone[58:70, :, int(40 / STEP) :]
        assert abs(extent(middle, 1).mean() * STEP - 102.4) < 2 * STEP


def test_affine_puts_the_frame_around_the_origin():
    affine = phantom.affine(128)
    np.testing.assert_allclose(affine @ [-0.5, -0.5, -0.5, 1], [-102.4, -102.4, -102.4, 1])
    np.testing.assert_allclose(affine @ [127.5, 127.5, 127.5, 1], [102.4, 102.4, 102.4, 1])


def test_the_volume_has_the_lengths_drawn(skulls):
    for seed, bone in zip(SEEDS, skulls, strict=True):
        length, breadth, _ = phantom.lengths(seed)
        above = bone[:, :, int(40 / STEP) :]
        assert abs(np.ptp(extent(above, 0)) * STEP - breadth) < 2 * STEP
        assert abs(np.ptp(extent(above[58:70], 1)) * STEP - length) < 2 * STEP


def test_a_higher_skull_has_its_glabella_lower_in_the_frame(monkeypatch):
    # The frame fixes the vertex; greatest breadth moves down as the drawn height grows.
    monkeypatch.setattr(phantom, "SPREADS", np.zeros(3))

    def widest(height):
        monkeypatch.setattr(phantom, "MEANS", np.array([[180.0, 140.0, height]]))
        bone = phantom.skull(0)[:, :, 25:]
        return np.median(np.flatnonzero(bone.any(1).sum(0) == bone.any(1).sum(0).max()))

    assert widest(140.0) < widest(118.0)


def test_one_piece_of_bone(skulls):
    for bone in skulls:
        assert ndimage.label(bone)[1] == 1


def test_the_vault_is_closed_and_a_hole_in_it_would_be_seen(skulls):
    assert all(is_closed(bone) for bone in skulls)
    broken = skulls[0].copy()
    broken[63:65, 63:65, 70:] = False
    assert not is_closed(broken)


def test_the_vault_stays_closed_on_a_coarse_grid(skulls):
    assert all(is_closed(reduce(bone, 32) >= 0.25) for bone in skulls)
    assert sum(is_closed(reduce(bone, 32) >= 0.3) for bone in skulls) >= len(skulls) - 3


def test_the_foramen_magnum_is_open(skulls):
    # A straight line from the floor of the frame into the braincase, and bone around it.
    for seed, bone in zip(SEEDS, skulls, strict=True):
        y = int((102.4 - 23 * phantom.lengths(seed)[0] / 180) / STEP)
        assert not bone[62:66, y - 2 : y + 3, : int(60 / STEP)].any()
        below = bone[:, :, : int(20 / STEP)].any(2)
        hole, _ = ndimage.label(~below)
        assert hole[64, y] != hole[0, 0]


def test_lengths_have_the_published_means_spreads_and_correlations():
    drawn = np.array([phantom.lengths(seed) for seed in range(4000)])
    within = phantom.SPREADS[:, None] * phantom.CORRELATION * phantom.SPREADS
    between = np.cov(phantom.MEANS.T, bias=True)
    cov = within + between
    spread = np.sqrt(np.diag(cov))
    error = 4 / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - phantom.MEANS.mean(0)) < error * spread).all()
    np.testing.assert_allclose(drawn.std(0), spread, rtol=error)
    assert (np.abs(np.corrcoef(drawn.T) - cov / np.outer(spread, spread)) < error).all()


def test_bone_is_neither_scarce_nor_plenty(skulls):
    # Real heads on this frame: 0.024 to 0.050 without base and face, 0.054 to 0.058 with them.
    assert 0.035 < np.mean([bone.mean() for bone in skulls]) < 0.06


def test_thickness_of_the_vault(skulls):
    def along(bone, direction):
        point = [64, 64, 28] + np.arange(0, 62, 0.25)[:, None] * np.array(direction)
        return bone[tuple(point.astype(int).T)].sum() * 0.25 * STEP

    up = [along(bone, (0, 0, 1)) for bone in skulls]
    side = [along(bone, (1, 0, 0)) for bone in skulls]
    back = [along(bone, (0, -0.96, -0.28)) for bone in skulls]
    assert 4 < np.mean(up) < 9 and 3 < np.mean(side) < 7 and 7 < np.mean(back) < 18
    assert np.mean(side) < np.mean(up) < np.mean(back)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="seed -1"):
        phantom.skull(-1)
    with pytest.raises(UserError, match="size 8"):
        phantom.skull(0, 8)
    with pytest.raises(UserError, match="size 8"):
        phantom.affine(8)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real skulls (../shared/data) are not here")
def test_phantoms_vary_at_least_as_much_as_real_skulls(skulls):
    import nibabel as nib

    files = sorted((SHARED / "skulls").glob("*.nii.gz"))[::2]
    real = [reduce(np.asarray(nib.load(file).dataobj) > 0, 128) >= 0.5 for file in files]
    assert mean_dice(skulls) <= mean_dice(real)
    coarse = [[reduce(v, 32) >= 0.3 for v in group] for group in (skulls, real)]
    assert mean_dice(coarse[0]) <= mean_dice(coarse[1])
