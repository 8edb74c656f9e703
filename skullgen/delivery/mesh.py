"""Solids in mm for STL files: marching cubes, smoothed, of the volume of the voxels."""

from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Bool, Float
from skimage.measure import marching_cubes

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import grids

PASSES = 20  # of Taubin's filter, by turns inwards and outwards


def solid(mask: Bool[np.ndarray, "X Y Z"], affine: Float[np.ndarray, "4 4"]) -> trimesh.Trimesh:
    """The closed surface of a mask in RAS mm, watertight, wound outwards.

    Marching cubes, then Taubin's filter (1995, lambda 0.5, mu -0.53), then moved along its normals
    until it holds the volume of the voxels. affine: of either hand.
    """
    sides = grids.box(mask)
    part = np.pad(mask[sides], 1)
    if not part.any():
        raise UserError("no surface: the mask is empty")
    # At 0.5 marching cubes would leave holes where voxels touch by an edge.
    points, faces, _, _ = marching_cubes(np.float32(part), 0.49)
    points = points + [side.start - 1 for side in sides]
    points = points @ affine[:3, :3].T + affine[:3, 3]
    surface = trimesh.Trimesh(points, faces, process=False)
    if surface.volume < 0:
        surface.invert()
    trimesh.smoothing.filter_taubin(surface, 0.5, 0.53, PASSES)
    most = np.linalg.norm(affine[:3, :3], axis=0).min() / 6  # specks do not blow up
    volume = np.count_nonzero(part) * abs(np.linalg.det(affine[:3, :3]))
    for _ in range(3):
        step = np.clip((volume - surface.volume) / surface.area, -most, most)
        surface.vertices = surface.vertices + surface.vertex_normals * step
    return surface


def write_stl(path: Path, solid: trimesh.Trimesh) -> None:
    """Writes a mesh in RAS mm as binary STL in LPS mm: what DICOM's world and 3D Slicer expect."""
    lps = trimesh.Trimesh(solid.vertices * [-1, -1, 1], solid.faces, process=False)
    head = b"skullgen, mm, SPACE=LPS".ljust(80)
    files.replace(path, head + lps.export(file_type="stl")[len(head) :])
