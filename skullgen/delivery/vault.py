"""The vault of a skull with a hole: closed, so that the hole moves no frame; and what covers it.

Skulls and implants are in RAS order; `affine`: voxel -> RAS mm.
"""

import functools

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.interpolate import RBFInterpolator
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from skullgen.data import grids
from skullgen.data.grids import FIELD_MM, VERTEX_MM, Affine, Cells, Mask

MIDDLE_MM = 60.0  # the braincase's middle below the vertex
SIDE = 96  # voxels along the frame on which holes are sought
RAYS = 6000  # from the middle, evenly over the sphere: 2.6 degrees apart
APART = np.sqrt(4 * np.pi / RAYS)
LOWEST = -0.1  # the sine of the lowest ray's elevation: above the orbits
LEAST = 6  # rays through an opening, about 1 cm^2; less is a pinhole or a suture


def middle(frame: Affine, size: int) -> Float[np.ndarray, " 3"]:
    """The braincase's middle, RAS mm, of the grid `frame` of `size` voxels a side."""
    place = np.array([FIELD_MM / 2, FIELD_MM / 2, VERTEX_MM - MIDDLE_MM]) / FIELD_MM * size - 0.5
    return (frame @ [*place, 1])[:3]


def caps(skull: Mask, affine: Affine) -> tuple[Cells, Affine]:
    """What closes the holes of a skull's vault, as far out as the bone around them bends, crudely.

    A thin-plate spline over the directions from the braincase's middle gives the distance of the
    outer surface. The caps, 6 mm thick, are for `grids.frame`, which a hole at the vertex or at the
    widest place moves by 10 mm; they are on a frame of `SIDE` voxels a side.
    """
    (frame, reach), (rays, voxels, ray, far) = _view(skull, affine), _rays()
    hole, cells = reach == 0, np.zeros(SIDE**3, bool)
    if hole.any() and not hole.all():
        # A ray beside a hole may have met only the inside of the rim.
        whole = KDTree(rays[hole]).query(rays)[0] > 1.5 * APART
        reach[hole] = RBFInterpolator(rays[whole], reach[whole], smoothing=1e-3)(rays[hole])
        within = (far <= reach[ray]) & (far > reach[ray] - 3 * FIELD_MM / SIDE)
        cells[voxels] = hole[ray] & within
    return cells.reshape((SIDE,) * 3), frame


def covered(skull: Mask, affine: Affine, implant: Mask) -> float | None:
    """The share of the vault's openings that an implant covers, or None where there is none.

    Of the directions from the braincase's middle, above the orbits, in which `caps` finds no
    bone, without pinholes (`LEAST`): those in which the implant lies.
    """
    frame, reach = _view(skull, affine)
    openings = _rays()[0][reach == 0]
    if len(openings):
        tree = KDTree(openings)
        _, patch = connected_components(tree.sparse_distance_matrix(tree, 1.6 * APART))
        openings = openings[np.bincount(patch)[patch] >= LEAST]
    if not len(openings):
        return None
    steps = np.arange(0, FIELD_MM, max(0.25, np.linalg.norm(affine[:3, :3], axis=0).min() / 2))
    way = openings @ (frame[:3, :3] / np.linalg.norm(frame[:3, :3], axis=0)).T
    here, back = middle(frame, SIDE), np.linalg.inv(affine)
    met = np.zeros(len(way), bool)
    for step in steps:
        voxel = np.rint((here + step * way) @ back[:3, :3].T + back[:3, 3]).astype(int)
        inside = np.flatnonzero(((voxel >= 0) & (voxel < implant.shape)).all(1))
        met[inside] |= implant[tuple(voxel[inside].T)]
    return float(met.mean())


def _view(skull, affine):
    """A skull from its braincase's middle: a frame of SIDE voxels, and of each of `_rays` along it
    how far out it meets bone, in mm (0: nowhere).
    """
    frame, (rays, voxels, ray, far) = grids.frame(skull, affine, SIDE), _rays()
    labels, _ = ndimage.label(grids.reduce(skull, affine, frame, SIDE) > 0.1, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    bone = (labels == 1 + np.argmax(sizes[1:])).ravel()[voxels]
    reach = np.zeros(len(rays))
    np.maximum.at(reach, ray[bone], far[bone])
    return frame, reach


@functools.cache
def _rays():
    """Rays evenly over the sphere (Fibonacci's spiral), none below the lowest.

    And of the frame's voxels above that: flat indices, nearest rays, and how far out they are.
    """
    number = np.arange(RAYS) + 0.5
    z, turn = 1 - 2 * number / RAYS, np.pi * (1 + 5**0.5) * number
    rays = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1)
    rays = rays[z > LOWEST]
    places = (np.indices((SIDE,) * 3).reshape(3, -1).T + 0.5) * (FIELD_MM / SIDE)
    places -= FIELD_MM / 2, FIELD_MM / 2, VERTEX_MM - MIDDLE_MM
    far = np.linalg.norm(places, axis=1)
    high = np.flatnonzero(places[:, 2] > LOWEST * far)
    return rays, high, KDTree(rays).query(places[high] / far[high, None])[1], far[high]
