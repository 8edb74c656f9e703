"""Framing, exact reduction and enlarging: known answers, equivalences, real skulls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from skullgen.core.errors import UserError
from skullgen.data import grids, phantom, volumes
from tests.conftest import SHARED


def _grid(voxel, corner):
    """The affine of a grid whose outer corner lies at `corner` mm."""
    voxel = np.broadcast_to(np.asarray(voxel, float), 3)
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = np.asarray(corner, float) + voxel / 2
    return affine


def _brute(mask, affine, target, size):
    """Every pair of voxels, the volume of their intersection, one at a time."""
    step, goal = np.diag(affine)[:3], np.diag(target)[:3]
    out = np.zeros((size,) * 3)
    for there in np.ndindex(*out.shape):
        low = target[:3, 3] + (np.array(there) - 0.5) * goal
        for here in np.argwhere(mask):
            start = affine[:3, 3] + (here - 0.5) * step
            overlap = np.minimum(low + goal, start + step) - np.maximum(low, start)
            out[there] += np.prod(np.maximum(overlap, 0)) / np.prod(goal)
    return out


@settings(max_examples=12, deadline=None)
@given(
    st.tuples(*[st.floats(0.4, 2.5)] * 3),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.floats(0.5, 3),
    st.permutations(range(3)),
    st.integers(0, 99),
)
def test_reduce_equals_brute_force(step, corner, goal, order, seed):
    mask = np.random.default_rng(seed).random((5, 4, 6)) < 0.4
    mask = np.ascontiguousarray(mask.transpose(order)).transpose(np.argsort(order))
    affine, target = _grid(step, corner), _grid(goal, (-2.0, -1.0, 0.5))
    got = grids.reduce(mask, affine, target, 4)
    assert got.dtype == np.float32
    # Edges that nearly coincide are snapped by at most a thousandth of a voxel.
    np.testing.assert_allclose(got, _brute(mask, affine, target, 4), atol=2e-3 * max(step) / goal)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_reduce_equals_block_means_bit_for_bit(factor, noise):
    size = 6
    side = size * factor
    mask = np.random.default_rng(factor).random((side,) * 3) < 0.5
    voxel = np.float32(0.4) if noise else 0.4
    affine = _grid(float(voxel), (-102.4 + noise,) * 3)
    got = grids.reduce(mask, affine, _grid(0.4 * factor, (-102.4,) * 3), size)
    counts = mask.reshape(size, factor, size, factor, size, factor).sum((1, 3, 5))
    np.testing.assert_array_equal(got, counts.astype(np.float32) / np.float32(factor**3))


def test_of_nothing_and_of_what_lies_outside_is_empty():
    empty = np.zeros((4, 4, 4), bool)
    target = _grid(1.0, (100, 100, 100))
    assert not grids.reduce(empty, np.eye(4), target, 4).any()
    assert not grids.reduce(~empty, np.eye(4), target, 4).any()
    assert not grids.enlarge(~empty, target, np.eye(4), (5, 5, 5)).any()


def test_grids_that_are_not_parallel_are_refused():
    turned = np.eye(4)[[1, 0, 2, 3]]
    with pytest.raises(ValueError, match="parallel"):
        grids.reduce(np.ones((4, 4, 4), bool), np.eye(4), turned, 4)
    with pytest.raises(ValueError, match="parallel"):
        grids.enlarge(np.ones((4, 4, 4)), turned, np.eye(4), (4, 4, 4))


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_enlarge_equals_scipys_zoom(factor, threshold):
    share = np.random.default_rng(1).integers(0, 65, (7, 7, 7)) / 64
    share = ndimage.uniform_filter(share, 2).astype(np.float32)
    zoomed = ndimage.zoom(share.astype(float), factor, order=1, mode="nearest", grid_mode=True)
    model, native = _grid(1.6, (-5, 0, 5)), _grid(1.6 / factor, (-5, 0, 5))
    got = grids.enlarge(share, model, native, (7 * factor,) * 3, threshold=threshold)
    clear = np.abs(zoomed - threshold) > 1e-6
    np.testing.assert_array_equal(got[clear], (zoomed > threshold)[clear])
    assert clear.mean() > 0.98 and got.any() and not got.all()


@pytest.mark.parametrize(("size", "count"), [(4, 24), (6, 19), (6, 23), (4, 29)])
def test_ties_are_not_bone_at_ratios_that_float32_rounds(size, count):
    # The weights in whole numbers, 2 * count in all: ties are ties.
    low, rest = np.divmod((2 * np.arange(count) + 1) * size - count, 2 * count)
    weights = np.zeros((count, size), int)
    np.add.at(weights, (range(count), np.maximum(low, 0)), 2 * count - rest)
    np.add.at(weights, (range(count), np.minimum(low + 1, size - 1)), rest)
    model, native = _grid(count / size, (0, 0, 0)), _grid(1.0, (0, 0, 0))
    for seed in range(20):
        mask = np.random.default_rng(seed).random((size,) * 3) < 0.5
        exact = np.einsum("ai,bj,ck,ijk->abc", *[weights] * 3, mask, optimize=True)
        got = grids.enlarge(mask, model, native, (count,) * 3)
        np.testing.assert_array_equal(got, 2 * exact > (2 * count) ** 3)


def test_a_tie_of_exactly_one_half_is_not_bone_despite_float32_headers():
    share = np.zeros((4, 4, 4), np.float32)
    share[1:3] = 0.5
    share[2] = 1
    model, native = _grid(1.6, (-3.2,) * 3), _grid(float(np.float32(0.4)), (-3.2,) * 3)
    got = grids.enlarge(share, model, native, (16, 16, 16))
    assert got[:, 8, 8].tolist() == [6 <= x < 12 for x in range(16)]


def test_enlarge_leaves_what_lies_outside_of_the_cube_empty():
    share = np.ones((4, 4, 4), np.float32)
    got = grids.enlarge(share, _grid(2.0, (0, 0, 0)), _grid(1.0, (-3, -3, -3)), (20, 14, 9))
    expected = np.zeros((20, 14, 9), bool)
    expected[3:11, 3:11, 3:9] = True
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.25, 0.4, 0.5, 0.75]))
def test_split_share_partitions_the_complete_skull(seed, threshold):
    draw = np.random.default_rng(seed)
    complete = draw.integers(0, 65, (4, 4, 4))
    implant = draw.integers(0, complete + 1)
    parts = [(part / 64).astype(np.float32) for part in (complete, implant)]
    defective, piece = grids.split_share(*parts, threshold)
    np.testing.assert_array_equal(defective | piece, complete / 64 >= threshold)
    assert not (defective & piece).any()
    np.testing.assert_array_equal(piece, (complete / 64 >= threshold) & (implant * 2 > complete))


def _skull(voxel=1.6, shape=(130, 140, 140), centre=(100.0, 110.0, 90.0), bowl=True):
    """A hollow ellipsoid of a head's size, closed or open below, in a grid from corner 0."""
    spots = [(np.arange(n) + 0.5) * voxel for n in shape]
    at = [(s - c) / r for s, c, r in zip(spots, centre, (70.0, 90.0, 75.0), strict=True)]
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(*at, indexing="ij")))
    mask = (radius <= 1) & (radius >= 0.9)
    if bowl:
        mask[:, :, spots[2] < centre[2] - 45] = False
    return mask, _grid(voxel, (0, 0, 0))


def _framed(mask, affine, size=32):
    """The cube's centre left-right and front-back, and the height of 125 mm above its floor."""
    model = grids.frame(mask, affine, size)
    corner = (model @ [-0.5, -0.5, -0.5, 1])[:3]
    half = grids.FIELD_MM / 2
    return corner + np.array([half, half, grids.VERTEX_MM]), model


@pytest.mark.parametrize(("voxel", "size"), [(0.8, 16), (1.6, 128)])
def test_frame_of_a_known_head(voxel, size):
    shape = tuple(int(n * 1.6 / voxel) for n in (130, 140, 140))
    mask, affine = _skull(voxel, shape)
    at, model = _framed(mask, affine, size)
    np.testing.assert_allclose(at, [100, 110, 165], atol=voxel)
    np.testing.assert_allclose(model[:3, :3], np.eye(3) * 204.8 / size)


def test_frame_follows_the_affine_and_the_grid():
    mask, affine = _skull()
    at, _ = _framed(mask, affine)
    moved = affine.copy()
    moved[:3, 3] += (10, -20, 30)
    np.testing.assert_allclose(_framed(mask, moved)[0], at + np.array([10, -20, 30]))
    padded = np.pad(mask, ((3, 0), (5, 2), (1, 4)))
    np.testing.assert_allclose(_framed(padded, affine)[0], at + 1.6 * np.array([3, 5, 1]))
    angle = np.deg2rad(15)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    _, model = _framed(mask, affine)
    np.testing.assert_allclose(grids.frame(mask, tilt @ affine, 32), tilt @ model, atol=1e-9)


SPECKS = tuple(np.random.default_rng(0).integers(0, 130, (40, 3)).T)


@pytest.mark.parametrize(
    ("bone", "places"),
    [
        pytest.param(True, [SPECKS, np.s_[1:3, 1:3, -3:]], id="specks"),
        pytest.param(True, [np.s_[5:125, 2:4, :]], id="table"),
        pytest.param(True, [np.s_[45:80, 100:135, 0:24]], id="face"),
        pytest.param(True, [np.s_[62, 68, 95:139], np.s_[100:129, 68, 60]], id="wire"),
        pytest.param(False, [np.s_[:, :, :70]], id="no-base"),
        pytest.param(True, [np.s_[50:70, 50:75, :30]], id="neck"),
    ],
)
def test_frame_is_not_moved_by(bone, places):
    mask, affine = _skull()
    at, _ = _framed(mask, affine)
    for place in places:
        mask[place] = bone
    moved, _ = _framed(mask, affine)
    # A vault that ends above its widest part is a smaller ring of the same centre.
    np.testing.assert_allclose(moved, at, atol=1.7)


def test_a_vault_that_does_not_fit_and_an_empty_mask_are_refused():
    mask, affine = _skull()
    with pytest.raises(UserError, match=r"2\d\d\.\d mm long"):
        grids.frame(mask, affine @ np.diag([1, 1.4, 1, 1]), 32)
    with pytest.raises(UserError, match="no bone"):
        grids.frame(mask & False, affine, 32)


SLOW = [pytest.param(512, 4, thick, marks=pytest.mark.slow) for thick in (12, 20)]


@pytest.mark.parametrize(("side", "ratio", "thick"), [(128, 2, 6), (128, 2, 10), *SLOW])
def test_round_trip_of_a_shell_keeps_its_shape(side, ratio, thick):
    at = ((np.arange(side) - (side - 1) / 2) ** 2).astype(np.float32)
    radius = np.sqrt(at[:, None, None] + at[:, None] + at)
    outer = 0.41 * side
    mask = (radius < outer) & (radius > outer - thick)
    native, model = _grid(0.4, (0, 0, 0)), _grid(0.4 * ratio, (0, 0, 0))
    share = grids.reduce(mask, native, model, side // ratio)
    back = grids.enlarge(share, model, native, mask.shape)
    assert 2 * np.sum(back & mask) >= 0.94 * (back.sum() + mask.sum())


@pytest.mark.skipif(not SHARED.is_dir(), reason="real skulls (../shared/data) are not here")
def test_frames_of_real_skulls_agree_with_their_cubes():
    for name in ("brainweb_06", "brainweb_41", "brainweb_50"):
        skull = volumes.in_ras(volumes.read(SHARED / "skulls" / f"{name}.nii.gz"))
        at, _ = _framed(skull.data, skull.affine)
        np.testing.assert_allclose(at, [0, 0, 22.6], atol=2)


def test_a_field_of_too_many_cells_is_framed_on_coarser_ones(monkeypatch):
    skull, affine = phantom.skull(3, 128), phantom.affine(128)
    exact = grids.frame(skull, affine, 16)
    monkeypatch.setattr(grids, "MAX_CELLS", 64**3)
    coarse = grids.frame(skull, affine, 16)
    moved = np.abs(coarse - exact)[:3, 3]
    assert 0 < moved.max() <= 2 * 204.8 / 128
