"""Surfaces that go on from the bone around a hole, on shells whose true ones are known."""

import numpy as np
import pytest

from skullgen.delivery import surfaces
from skullgen.evaluation import metrics

MIDDLE, STEP = np.array([60.0, 58.0, 20.0]), 4.0


def _shell(spacing=(1.5, 1.5, 1.5), degrees=22.0):
    """A vault with a hole: bone, what was cut, affine, distance, angle to the hole's middle."""
    affine = np.diag([*spacing, 1.0])
    shape = tuple(int(120 / s) for s in spacing)
    rays = np.moveaxis(np.indices(shape), 0, -1) * spacing - MIDDLE
    far = np.linalg.norm(rays, axis=-1)
    stretched = np.linalg.norm(rays / [1.0, 1.0, 1.2], axis=-1)
    towards = np.array([0.3, -0.2, 1.0]) / np.linalg.norm([0.3, -0.2, 1.0])
    angle = np.degrees(np.arccos(np.clip(rays @ towards / np.maximum(far, 1e-6), -1, 1)))
    whole = (stretched > 45) & (stretched <= 51) & (rays[..., 2] > 0)
    return whole & (angle >= degrees), whole & (angle < degrees), affine, far, angle


def _continued(piece, bone, affine, step=STEP):
    own = surfaces.chart(np.argwhere(piece), affine, MIDDLE)
    return surfaces.continued(own, piece, bone, step)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (1.0, 1.0, 3.0)])
@pytest.mark.parametrize("off", [-3.0, 5.0])
def test_a_thick_blob_beside_its_place_becomes_the_bone_that_was_cut(spacing, off):
    bone, cut, affine, far, angle = _shell(spacing)
    blob = (np.abs(far - np.median(far[cut]) - off) < 7) & (angle < 18) & ~bone
    assert metrics.dice(blob, cut) < 0.7
    made = _continued(blob, bone, affine)
    assert metrics.dice(made, cut) > 0.93 and not (made & bone).any()
    assert made.sum() == pytest.approx(cut.sum(), rel=0.08)


def test_of_an_opening_more_than_half_is_all_and_less_is_what_is_near():
    bone, cut, affine, far, angle = _shell()
    middle = np.median(far[cut])
    for degrees, filled in ((17, True), (9, False)):
        made = _continued((np.abs(far - middle) < 4) & (angle < degrees), bone, affine)
        assert (metrics.dice(made, cut) > 0.93) == filled
        assert filled or angle[made].max() < degrees + np.degrees(2 * STEP / middle)


def test_where_no_bone_is_around_the_nets_own_piece_stays():
    bone, cut, affine, _, _ = _shell()
    np.testing.assert_array_equal(_continued(cut, np.zeros_like(bone), affine), cut)
