"""Solids for STL: closed, of the voxels' volume and place, whatever the mask's shape."""

import numpy as np
import pytest
import trimesh

from skullgen.core.errors import UserError
from skullgen.delivery import mesh

LEFT = np.diag([-0.8, 0.9, 1.5, 1.0])  # left-handed, with oblong voxels
LEFT[:3, 3] = 10, 20, -30


def _ball(side, radius):
    grid = np.mgrid[:side, :side, :side] - (side - 1) / 2
    return (grid**2).sum(0) < radius**2


SHELL = _ball(24, 10) & ~_ball(24, 8.5)
PLATE = np.zeros((12, 12, 12), bool)
PLATE[2:10, 3:11, 6] = True  # one voxel thick
NOISE = np.random.default_rng(0).random((12, 12, 12)) < 0.4  # corners and edges that touch


@pytest.mark.parametrize("affine", [np.eye(4), LEFT], ids=["cubic", "left-handed"])
@pytest.mark.parametrize(
    "mask", [_ball(24, 10), SHELL, PLATE, NOISE], ids="ball shell plate noise".split()
)
def test_a_solid_is_closed_and_holds_the_volume_of_its_voxels(mask, affine):
    solid = mesh.solid(mask, affine)
    assert solid.is_watertight and solid.is_winding_consistent
    wanted = mask.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert solid.volume == pytest.approx(wanted, rel=0.01)
    ends = np.argwhere(mask)
    corners = np.stack([ends.min(0) - 0.5, ends.max(0) + 0.5]) @ affine[:3, :3].T + affine[:3, 3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    assert (np.abs(solid.bounds - np.sort(corners, axis=0)) < 0.75 * spacing).all()


def test_smoothing_takes_the_stairs_and_leaves_the_ball():
    solid = mesh.solid(_ball(24, 10), np.eye(4))
    distance = np.linalg.norm(solid.vertices - 11.5, axis=1)
    assert distance.std() < 0.15  # of marching cubes alone, 0.25
    assert distance.mean() == pytest.approx(10, abs=0.1)


def test_an_empty_mask_has_no_surface():
    with pytest.raises(UserError, match="the mask is empty"):
        mesh.solid(np.zeros((3, 3, 3), bool), np.eye(4))


def test_a_speck_stays_in_its_voxel():
    speck = np.zeros((5, 5, 5), bool)
    speck[2, 2, 2] = True
    solid = mesh.solid(speck, np.eye(4))
    assert solid.is_watertight and np.abs(solid.bounds - 2).max() < 0.6


def test_an_stl_file_is_whole_in_lps_and_says_so(tmp_path):
    solid = mesh.solid(NOISE, LEFT)
    mesh.write_stl(tmp_path / "a.stl", solid)
    assert b"SPACE=LPS" in (tmp_path / "a.stl").read_bytes()[:80]
    read = trimesh.load(tmp_path / "a.stl")
    assert read.is_watertight and len(read.faces) == len(solid.faces)
    assert read.volume == pytest.approx(solid.volume, rel=1e-4)
    np.testing.assert_allclose(read.centroid * [-1, -1, 1], solid.centroid, atol=1e-3)
    np.testing.assert_allclose(
        read.triangles.reshape(-1, 3) * [-1, -1, 1], solid.triangles.reshape(-1, 3), atol=1e-4
    )
