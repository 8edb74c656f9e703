"""Braincases in mm, vaults cut by the field of view, CTs off Hounsfield units."""

import math

import numpy as np
import pytest

from skullgen.core.errors import UserError
from skullgen.data import grids, heads, phantom, volumes
from tests.conftest import SHARED

SIDE = 64
GRID = phantom.affine(SIDE)


def _spaced(affine, x, y, z):
    return affine @ np.diag([x, y, z, 1.0])


def _shell(radii=(70.0, 90.0, 80.0), voxel=2.0, wall=6.0):
    """An ellipsoid of bone with a floor at 60 mm under its middle, and its affine."""
    at = np.indices((100, 110, 90)).T @ np.eye(3) * voxel - np.array([100.0, 110.0, 75.0])
    at = at.transpose(2, 1, 0, 3)
    outer, inner = (((at / (np.array(radii) - off)) ** 2).sum(-1) < 1 for off in (0.0, wall))
    return outer & ~inner & (at[..., 2] > -60), np.diag([voxel] * 3 + [1.0])


def _real(name):
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent")
    path = SHARED / f"{name}.nii.gz"
    return volumes.in_ras(volumes.read(path, bone_hu=300 if name.endswith("hu") else 0))


def _refusal(mask, affine):
    with pytest.raises(UserError) as error:
        heads.check(mask, affine)
    return str(error.value)


def test_an_ellipsoid_s_lengths_are_known():
    mask, affine = _shell()
    breadth, length, height = heads.lengths(mask, np.full(3, 2.0))
    assert (breadth, length) == pytest.approx((140, 180), abs=3)
    assert height == pytest.approx(80, rel=0.05)
    whole = heads.lengths(*heads._piece(mask, affine))
    assert whole == (breadth, length, height)


def test_height_stays_where_the_vertex_is_lost():
    mask, _ = _shell()
    top = np.flatnonzero(mask.any(axis=(0, 1)))[-1]
    mask[:, :, top - 10 :] = False
    assert heads.lengths(mask, np.full(3, 2.0))[2] == pytest.approx(80, rel=0.06)


@pytest.mark.parametrize("factor", [0.65, 0.8, 1.0, 1.1])  # newborn (93 x 117 mm) to large
def test_heads_of_all_sizes_pass(factor):
    mask, affine = _shell()
    heads.check(mask, _spaced(affine, *[factor] * 3))


@pytest.mark.parametrize("radii", [(58, 100, 80), (82, 80, 80), (70, 90, 70), (70, 90, 95)])
def test_narrow_round_low_and_high_heads_pass(radii):
    heads.check(*_shell(radii))


def test_a_lost_front_or_side_is_no_other_voxel_size():
    mask, affine = _shell()
    for hole in (np.s_[:, 80:, 40:], np.s_[70:, :, 40:], np.s_[:, :30, 40:]):
        defective = mask.copy()
        defective[hole] = False
        heads.check(defective, affine)


@pytest.mark.parametrize(
    ("factors", "why"),
    [
        ((1, 1, 1 / 2), "height / size 0.2"),
        ((1, 1, 1 / 2.5), "height / size 0."),
        ((1, 1, 1 / 3), "height / size 0.1"),
        ((1, 1, 1 / 5), "height / size 0.1"),
        ((1, 1, 3.0), "height / size 1."),
        ((2, 2, 1), "circumference 100"),
        ((2, 1, 0.5), "circumference 7"),
        ((0.5, 1.1, 1), "breadth / length 0.3"),
        ((0.1, 0.1, 0.1), "circumference 5"),
        ((0.5, 0.5, 0.5), "circumference 25"),
        ((1.25, 1.25, 1.25), "circumference 62"),
    ],
)
def test_another_voxel_size_is_refused_with_the_mm(factors, why):
    mask, affine = _shell((70, 91, 80))
    message = _refusal(mask, _spaced(affine, *factors))
    assert why in message and "check the voxel size" in message and "mm broad" in message


def test_the_mm_of_a_refusal_are_those_measured():
    mask, affine = _shell()
    breadth, length, height = heads.lengths(*heads._piece(mask, _spaced(affine, 1, 1, 0.4)))
    words = f"{breadth:.0f} mm broad, {length:.0f} long, {height:.0f} high over its middle"
    assert words in _refusal(mask, _spaced(affine, 1, 1, 0.4))
    assert height == pytest.approx(0.4 * 80, rel=0.1)


def test_what_is_no_head_is_refused():
    assert "no bone" in _refusal(np.zeros((8, 8, 8), bool), np.eye(4))
    for shape in ((1, 1, 1), (40, 2, 1), (200, 200, 3), (30, 30, 180)):
        assert "check the voxel size" in _refusal(np.ones(shape, bool), np.eye(4))


def test_a_table_apart_from_the_skull_changes_nothing():
    mask, affine = _shell()
    before = heads.lengths(*heads._piece(mask, affine))
    mask[:, :4] = True
    assert heads.lengths(*heads._piece(mask, affine)) == before


def test_fine_voxels_are_measured_as_coarse_ones():
    mask, affine = _shell()
    fine = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    same = heads.lengths(*heads._piece(fine, _spaced(affine, 0.5, 0.5, 0.5)))
    assert same == pytest.approx(heads.lengths(*heads._piece(mask, affine)), abs=2.1)


def test_a_grid_that_ends_at_the_bone_cuts_nothing():
    for mask, affine in (_shell(), (phantom.skull(0, SIDE), GRID)):
        assert heads.cut(mask, affine) is None
        assert heads.cut(mask[grids.box(mask)], affine) is None


@pytest.mark.parametrize(("name", "axis", "way"), heads.SIDES)
def test_each_side_of_a_vault_that_is_cut_is_named(name, axis, way):
    mask, affine = _shell()
    bone = np.moveaxis(mask[grids.box(mask)], axis, 0)[::way]

    def without(mm):
        return heads.cut(np.moveaxis(bone[mm // 2 :][::way], 0, axis), affine)

    assert without(2) is None
    for mm in (16, 20, 30, 50):
        assert f"the {name} of the vault" in without(mm)


def test_the_opening_of_a_cut_vault_is_its_area():
    mask, affine = _shell((80, 80, 80), wall=6)
    top = np.flatnonzero(mask.any(axis=(0, 1)))[-1]
    message = heads.cut(mask[:, :, : top + 1 - 10], affine)
    area = float(message.split("(")[1].split(" ")[0])
    assert area == pytest.approx(math.pi * (74**2 - 60**2), rel=0.15)


def test_a_scan_may_end_in_the_base_and_beside_the_bone():
    mask, affine = _shell()
    low = grids.box(mask)[2].start
    assert heads.cut(mask[:, :, low + 15 :], affine) is None  # 30 mm of the base are lost
    assert heads.cut(mask[:, :, : grids.box(mask)[2].stop + 1], affine) is None


def test_an_empty_diploe_on_the_border_is_no_opening():
    mask, affine = _shell(wall=10)
    hollow, _ = _shell((66, 86, 76), wall=2)
    top = np.flatnonzero(mask.any(axis=(0, 1)))[-1]
    assert heads.cut((mask & ~hollow)[:, :, : top - 1], affine) is None


@pytest.mark.parametrize("name", ["skulls/brainweb_41", "ct/visible_human_male"])
def test_real_skulls_pass_and_their_mutations_do_not(name):
    mask, affine = _real(name)
    heads.check(mask, affine)
    bone = mask[grids.box(mask)]
    assert heads.cut(mask, affine) is heads.cut(bone, affine) is None
    for factors in ((1, 1, 0.5), (1, 1, 1 / 3), (1.5, 1.5, 1), (0.5,) * 3, (0.1,) * 3, (2,) * 3):
        assert "check the voxel size" in _refusal(mask, _spaced(affine, *factors))
    for mm in (10, 20, 30, 50):
        assert "cuts the top" in heads.cut(bone[:, :, : -round(mm / 0.8)], affine)


def test_all_real_skulls_pass():
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent")
    names = ["ct/visible_human_second", "ct/cranium_real_defect_hu", "skulls/brainweb_53"]
    for name in [*names, "native/brainweb_45_half_mm"]:
        heads.check(*_real(name))
        assert heads.cut(*_real(name)) is None


@pytest.mark.slow
def test_phantoms_pass_and_at_half_the_slice_distance_do_not():
    refused = 0
    for seed in range(1000):
        mask = phantom.skull(seed, SIDE, (phantom.USUAL, phantom.VARIED)[seed % 2])
        heads.check(mask, GRID)
        try:
            heads.check(mask, _spaced(GRID, 1, 1, 0.5))
        except UserError:
            refused += 1
    assert refused > 950


def _ct(seed=0, noise=25.0):
    """A head in HU: air, skin, bone, brain, and a sinus in it."""
    at = np.indices((48, 56, 44)).transpose(1, 2, 3, 0) * 4.0 - [94.0, 110.0, 86.0]
    draw, far = np.random.default_rng(seed), np.linalg.norm(at / [1, 1.25, 1], axis=-1)
    hu = np.select([far < 66, far < 73, far < 82], [40.0, 900.0, 40.0], AIR)
    hu[far < 12] = AIR
    bone = (far >= 66) & (far < 73)
    hu[bone] = np.clip(draw.gamma(3, 250, bone.sum()) + 250, 300, 2200)
    hu += noise * draw.standard_normal(hu.shape)
    return np.maximum(hu, -1024), far > 86


AIR = -1000.0


def _says(values, bone_hu=300.0, scale=(1.0, 0.0)):
    return heads.hounsfield(np.asarray(values), scale, bone_hu)


@pytest.mark.parametrize("pad", [-3024, -2000, -1024, -1000, 0])
def test_ct_in_hounsfield_units_passes_however_it_is_padded(pad):
    hu, outside = _ct()
    for bone_hu in (150.0, 300.0):
        assert _says(np.where(outside, pad, hu).astype(np.int16), bone_hu) is None
    rows = np.arange(len(hu)) < 8
    assert _says(np.where(rows[:, None, None], pad, hu)) is None


@pytest.mark.parametrize("low", [-1000, -200, -100, 0])
def test_ct_cut_to_some_hounsfield_units_passes(low):
    hu, _ = _ct()
    for high in (300, 1000, 2000):
        assert _says(np.clip(hu, low, high), 250.0) is None


def test_ct_of_a_dry_skull_or_of_bone_alone_passes():
    hu, _ = _ct()
    for rest in (AIR, 0):
        assert _says(np.where(hu > 250, hu, rest)) is None
    assert _says(np.where(hu > 250, hu, AIR) + 1024, 700.0) is None


@pytest.mark.parametrize("noise", [0.0, 25.0, 100.0])
@pytest.mark.parametrize("offset", [1000, 1024, 32768])
def test_an_offset_is_recognised_unless_bone_hu_or_the_header_fits_it(offset, noise):
    hu, _ = _ct(noise=noise)
    values = np.maximum(hu + offset, 0).astype(np.uint16)
    message, whole = _says(values), max(offset, 1024)
    assert f"with {whole} added" in message
    assert f"set bone_hu to {whole + 300} instead of 300" in message
    assert f"set bone_hu to {whole + 150} " in _says(values, 150.0)
    assert _says(values, 300.0 + offset) is None
    assert _says(values, 300.0, (1.0, float(-offset))) is None


@pytest.mark.parametrize("pad", [-3024, -2000, -1024, -1000, 0])
def test_an_offset_is_recognised_however_the_ct_is_padded(pad):
    hu, outside = _ct()
    rows = (np.arange(len(hu)) < 8)[:, None, None]
    for padded in (outside, rows):
        assert "with 1024 added" in _says(np.where(padded, pad, hu + 1024).astype(np.int16))


def test_a_rescale_that_was_done_twice_is_recognised():
    assert "with -1024 added" in _says(_ct()[0], 300.0, (1.0, -1024.0))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_a_scaled_ct_gets_its_bone_hu(top):
    hu, _ = _ct()
    values = (hu + 1024) / 4095 * top
    values = np.rint(values).astype(np.uint8) if top > 1 else values
    message = _says(values)
    bone = float(message.split("set bone_hu to ")[1].split(" ")[0])
    assert bone / top * 4095 - 1024 == pytest.approx(300, abs=40)
    assert _says(values, bone) is None
    assert "instead of" in _says(values, 0.2 * top)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_a_windowed_ct_is_to_be_exported_again_unless_bone_hu_fits(top):
    for low, high in ((-160, 240), (-500, 1000)):
        values = np.clip((_ct()[0] - low) / (high - low), 0, 1) * top
        assert "export the CT again" in _says(values)
        assert _says(values, 0.9 * top) is None


def test_masks_and_empty_volumes_are_not_judged():
    hu, _ = _ct()
    soft = np.clip((hu - 100) / 400, 0, 1)
    for values in (hu > 300, np.zeros((4, 4, 4)), np.full((4, 4, 4), np.nan), soft):
        assert _says(np.asarray(values, np.float32), 0.5) is None


def test_a_ct_is_not_copied():
    import tracemalloc

    values = np.zeros((256, 256, 256), np.int16)
    tracemalloc.start()
    assert _says(values) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * values.nbytes
