import functools

import cc3d
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skullgen.core.errors import UserError
from skullgen.data.defects import KINDS, cut
from tests.conftest import SHARED

AXES = np.array([70.0, 88.0, 78.0])  # outer half axes of the synthetic vault, mm
THICK = 7.0
MIDDLE = np.array([97.0, 95.0, 92.0])  # of the vault, mm from the grid's corner


def head(voxel, size_mm=192.0):
    """A shell on a floor, with orbits and petrous lumps: bool [X, Y, Z]; places [X, Y, Z, 3]."""
    voxel = np.broadcast_to(np.asarray(voxel, float), 3)
    grids = [
        (np.arange(round(size_mm / v)) + 0.5) * v - m for v, m in zip(voxel, MIDDLE, strict=True)
    ]
    p = np.stack(np.meshgrid(*grids, indexing="ij"), -1)
    outer = (p / AXES) ** 2 @ np.ones(3) <= 1
    inner = (p / (AXES - THICK)) ** 2 @ np.ones(3) <= 1
    z = p[..., 2]
    bone = outer & ~inner & (z > -50) | outer & (np.abs(z + 46) < 5)
    for side in (-1, 1):
        bone |= outer & (np.linalg.norm(p - [side * 36, 0, -38], axis=-1) < 13)
        bone &= np.linalg.norm(p - [side * 30, 82, -40], axis=-1) > 17  # rims at -23 or so
    return bone, p


HEAD, POINTS = head(4.0)
FINE, FINE_POINTS = head(2.0)
OBLONG, _ = head((3.0, 2.0, 4.0))
DIRECTIONS = np.random.default_rng(0).standard_normal((20000, 3))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def along(volume, voxel, depths):
    """Values of a volume [N, depths] under the vault's outer surface, a row for each direction."""
    radius = 1 / np.linalg.norm(DIRECTIONS / AXES, axis=1)
    where = MIDDLE + DIRECTIONS[:, None] * (radius[:, None] - depths)[..., None]
    index = np.floor(where / voxel).astype(int)
    inside = ((index >= 0) & (index < volume.shape)).all(-1)
    index = np.clip(index, 0, np.array(volume.shape) - 1)
    return volume[tuple(np.moveaxis(index, -1, 0))] & inside


def hole_cm2(implant, voxel):
    """The outer surface of a hole: the ellipsoid's area element at each ray that it opens."""
    radius = 1 / np.linalg.norm(DIRECTIONS / AXES, axis=1)
    normal = DIRECTIONS * radius[:, None] / AXES**2
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    element = radius**2 / (normal * DIRECTIONS).sum(1) * 4 * np.pi / len(DIRECTIONS) / 100
    return element[along(implant, voxel, np.array([THICK / 2])).any(1)].sum()


def pieces(volume):
    labels = cc3d.connected_components(volume, connectivity=26)
    return np.bincount(labels.ravel())[1:]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@functools.cache
def fine(kind, seed):
    return cut(FINE, kind, seed, voxel_mm=2.0)


def check_pair(complete, defective, implant):
    assert implant.any()
    assert np.array_equal(defective | implant, complete)
    assert not (defective & implant).any()


@settings(max_examples=6, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(-(2**63), 2**64))
def test_exact_and_equal_for_any_seed(kind, seed):
    before, pair = HEAD.copy(), cut(HEAD, kind, seed, voxel_mm=4.0)
    check_pair(HEAD, *pair)
    assert np.array_equal(HEAD, before)
    assert np.array_equal(pair, cut(HEAD, kind, seed, voxel_mm=4.0))
    assert not np.array_equal(pair, cut(HEAD, kind, seed ^ 1, voxel_mm=4.0))


@pytest.mark.parametrize("kind", KINDS)
def test_area_is_what_was_asked_for(kind):
    for seed, area in enumerate([15.0, 90.0]):
        implant = cut(FINE, kind, seed, voxel_mm=2.0, area_cm2=(area, area))[1]
        assert hole_cm2(implant, 2.0) == pytest.approx(area, rel=0.1), (seed, area)


@pytest.mark.parametrize("kind", KINDS)
def test_areas_vary_within_the_range_and_only_random_2_is_of_two_pieces(kind):
    implants = [fine(kind, seed)[1] for seed in range(12 if kind == "random_2" else 6)]
    areas = [hole_cm2(implant, 2.0) for implant in implants]
    assert 0.85 * 10 < min(areas) and 1.5 * min(areas) < max(areas) < 1.15 * 150
    sizes = list(map(pieces, implants))
    assert {len(size) for size in sizes} == ({1, 2} if kind == "random_2" else {1})
    assert min(size.min() for size in sizes) * 8 >= 1000


def test_where_each_kind_lies():
    sides = {"frontoorbital": set(), "parietotemporal": set(), "random_1": set(), "random_2": set()}
    for seed in range(6):
        where = {kind: FINE_POINTS[fine(kind, seed)[1]] for kind in KINDS}
        right = (where["bilateral"][:, 0] > 0).mean()
        assert 0.25 < right < 0.75
        assert where["bilateral"].mean(0) @ [0, 1, 1] > 30  # frontal and high
        front = where["frontoorbital"]
        assert abs(front[:, 0].mean()) > 12
        assert front[:, 1].mean() > 50
        assert front[:, 2].min() < -10  # down to the rims
        side = where["parietotemporal"]
        assert abs(side[:, 0].mean()) > 40
        assert len(np.unique(np.sign(side[:, 0]))) == 1
        for kind, seen in sides.items():
            seen.add(np.sign(where[kind][:, 0].mean()))
    assert all(seen == {-1.0, 1.0} for seen in sides.values())


@pytest.mark.parametrize("kind", KINDS)
def test_full_thickness_and_nothing_deeper(kind):
    lowest = -19 if kind == "frontoorbital" else -35  # above the orbits, above the petrous lumps
    for seed in (0, 1):
        defective, implant = fine(kind, seed)
        depths = np.arange(0.5, THICK + 12, 0.5)
        opened, rest = along(implant, 2.0, depths), along(defective, 2.0, depths)
        high = DIRECTIONS[:, 2] * 75 > lowest
        middle = opened[:, 2:14:3].all(1) & high
        walls = middle & rest.any(1)  # rays meet the saw's walls askew at the hole's edge only
        assert middle.sum() > 100
        assert walls.sum() < 0.06 * middle.sum()
        outside = (FINE_POINTS / (AXES - THICK - 6)) ** 2 @ np.ones(3) > 1
        assert not (implant & ~outside & (FINE_POINTS[..., 2] > lowest)).any()
        if kind != "frontoorbital":
            floor = (np.abs(FINE_POINTS[..., 2] + 46) < 5) & ~outside
            assert not (implant & floor).any()
        if kind in ("frontoorbital", "parietotemporal"):
            across = np.sign(FINE_POINTS[implant][:, 0].mean())
            assert not (implant & (FINE_POINTS[..., 0] * across < -25)).any()


@pytest.mark.parametrize("seed, kind", list(enumerate(KINDS)))
def test_the_same_defect_at_another_voxel_size(seed, kind):
    implant = fine(kind, seed)[1]
    coarse = cut(HEAD, kind, seed, voxel_mm=4.0)[1].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert dice(implant, coarse) > 0.75
    squeezed = cut(OBLONG, kind, seed, voxel_mm=(3.0, 2.0, 4.0))
    check_pair(OBLONG, *squeezed)
    assert hole_cm2(squeezed[1], (3.0, 2.0, 4.0)) == pytest.approx(hole_cm2(implant, 2.0), rel=0.12)


def test_framing_memory_order_and_a_table_do_not_matter():
    implant = fine("parietotemporal", 5)[1]
    padding = ((6, 0), (0, 9), (3, 3))
    larger = np.pad(FINE, padding)
    larger[:, 2:5, :8] = True  # a table under the head, and specks in the air
    larger[4:7, 60, 60] = larger[50, 50, -1] = True
    defective, moved = cut(np.asfortranarray(larger), "parietotemporal", 5, voxel_mm=2.0)
    check_pair(larger, defective, moved)
    assert dice(moved[6:, :-9, 3:-3], implant) > 0.9
    assert defective[larger & ~np.pad(FINE, padding)].all()


def test_pinholes_do_not_stop_a_hole():
    holed = FINE.copy()
    holed[(np.random.default_rng(1).random(FINE.shape) < 0.03)] = False
    pair = cut(holed, "parietotemporal", 2, voxel_mm=2.0)
    check_pair(holed, *pair)
    assert dice(pair[1], fine("parietotemporal", 2)[1]) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_unusable_skulls(kind):
    speck = np.zeros((20, 20, 20), bool)
    speck[10, 10, 10] = True
    for volume in (np.zeros((20, 20, 20), bool), speck, np.ones((40, 40, 40), bool)):
        with pytest.raises(UserError):
            cut(volume, kind, 0, voxel_mm=4.0)


@pytest.mark.parametrize(
    ("kind", "area", "words"),
    [
        ("occipital", (10, 150), "kind is 'occipital': choose one of bilateral"),
        ("random_1", (5000, 6000), "area_cm2 is .*: the vault offers"),
    ],
)
def test_mistakes(kind, area, words):
    with pytest.raises(UserError, match=words):
        cut(HEAD, kind, 0, voxel_mm=4.0, area_cm2=area)


def test_a_part_that_is_missing_cannot_be_cut():
    behind = HEAD & (POINTS[..., 1] < 10)
    with pytest.raises(UserError, match="frontoorbital"):
        cut(behind, "frontoorbital", 0, voxel_mm=4.0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="real skulls (../shared/data) are not here")
@pytest.mark.parametrize("name", ["skulls/brainweb_18", "ct/visible_human_male"])
def test_real_skulls(name):
    image = nibabel.load(SHARED / f"{name}.nii.gz")
    skull, voxel = np.asarray(image.dataobj) > 0, np.array(image.header.get_zooms())
    first, last = (f(np.flatnonzero(skull.any((1, 2)))) for f in (np.min, np.max))
    middle = (first + last) / 2
    for seed, kind in enumerate(KINDS):
        defective, implant = cut(skull, kind, seed, voxel_mm=voxel)
        check_pair(skull, defective, implant)
        assert len(pieces(implant)) == 1 or kind == "random_2"
        x, y, _ = np.nonzero(implant)
        if kind == "bilateral":
            assert 0.2 < (x > middle).mean() < 0.8
        if kind == "parietotemporal":
            assert len(np.unique(x > middle)) == 1
        if kind == "frontoorbital":
            front = np.flatnonzero(skull.any((0, 2))).max()
            assert abs(x.mean() - middle) > 10 and y.max() > front - 40
        if seed == 1:
            small = cut(skull[::2, ::2, ::2], kind, seed, voxel_mm=2 * voxel)[1]
            assert dice(small, implant[::2, ::2, ::2]) > 0.85
