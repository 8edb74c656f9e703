"""Donors and transplants: known places, exact pieces, and one defect on other skulls."""

import cc3d
import numpy as np
import pytest

from skullgen.core.errors import UserError
from skullgen.data import defects, grids, phantom, transplant
from skullgen.evaluation import metrics

SIZE, AFFINE = 32, phantom.affine(128)


@pytest.fixture(scope="module")
def skulls():
    return [phantom.skull(seed, 128) for seed in range(3)]


def _donor(skull, kind, affine=AFFINE):
    _, implant = defects.cut(skull, kind, 1, voxel_mm=1.6)
    frame = grids.frame(skull, AFFINE, SIZE)
    return implant, transplant.donor(np.argwhere(implant), affine, frame, SIZE)


def _transplant(skull, donor, seed=0):
    vault = transplant.vault(skull, AFFINE, grids.frame(skull, AFFINE, SIZE))
    return transplant.transplant(vault, donor, seed)


@pytest.mark.parametrize("kind", defects.KINDS)
def test_a_defect_carried_onto_its_own_skull_is_itself(kind, skulls, monkeypatch):
    monkeypatch.setattr(transplant, "TURN_DEGREES", (0, 0, 0))
    monkeypatch.setattr(transplant, "SMALLEST", 1.0)
    implant, donor = _donor(skulls[0], kind)
    plain = next(s for s in range(9) if np.random.default_rng([s, 0]).choice([-1, 1]) == 1)
    seeds = range(plain, plain + 9)  # one of them is not mirrored
    assert max(metrics.dice(_transplant(skulls[0], donor, seed), implant) for seed in seeds) > 0.9


@pytest.mark.parametrize("kind", ["frontoorbital", "random_2"])
def test_a_transplant_is_bone_of_its_skull_in_one_piece_and_the_same_again(kind, skulls):
    implant, donor = _donor(skulls[0], kind)
    pieces = [_transplant(skull, donor, seed) for skull in skulls[1:] for seed in (0, 1)]
    for piece, skull in zip(pieces, [skulls[1]] * 2 + [skulls[2]] * 2, strict=True):
        assert not (piece & ~skull).any()
        assert cc3d.connected_components(piece, connectivity=26).max() == 1
        assert 0.3 < piece.sum() / implant.sum() < 3
    assert not np.array_equal(pieces[0], pieces[1])
    assert np.array_equal(_transplant(skulls[1], donor, 0), pieces[0])


def test_a_donor_is_where_its_hole_is_whatever_its_voxels(skulls):
    implant, donor = _donor(skulls[0], "parietotemporal")
    frame = grids.frame(skulls[0], AFFINE, SIZE)
    middle = (np.linalg.inv(frame) @ AFFINE @ [*np.argwhere(implant).mean(0), 1])[:3]
    away = (middle + 0.5) * grids.FIELD_MM / SIZE - transplant.MIDDLE
    assert donor.middle @ away / np.linalg.norm(away) > np.cos(np.deg2rad(4))
    assert not donor.several
    coarse = grids.reduce(implant, AFFINE, frame, SIZE) > 0.5
    of_model = transplant.donor(np.argwhere(coarse), frame, frame, SIZE)
    assert of_model.middle @ donor.middle > np.cos(np.deg2rad(3))
    one, other = (own.field < 0 for own in (donor, of_model))
    assert 2 * (one & other).sum() > 0.8 * (one.sum() + other.sum())


def test_what_lies_below_the_vault_is_no_donor(skulls):
    floor = np.zeros_like(skulls[0])
    floor[60:68, 60:68, :3] = True
    with pytest.raises(UserError, match="below the vault"):
        transplant.donor(np.argwhere(floor), AFFINE, grids.frame(skulls[0], AFFINE, SIZE), SIZE)
