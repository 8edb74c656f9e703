"""Solids in mm for STL files: marching cubes, smoothed, of the volume of the voxels."""

from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Float, Shaped
from skimage.measure import marching_cubes

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import grids

PASSES = 20  # of Taubin's filter, by turns inwards and outwards


def solid(
    share: Shaped[np.ndarray, "X Y Z"], affine: Float[np.ndarray, "4 4"], level: float = 0.5
) -> trimesh.Trimesh:
    """The closed surface of a mask or share in RAS mm, watertight, wound outwards.

    Marching cubes, then Taubin's filter (1995, lambda 0.5, mu -0.53), then moved along its normals
    until it holds the volume of the voxels. affine: of either hand. level: 0 to 1; inside is above.
    """
    sides = grids.box(share > level)
    part = np.pad(np.asarray(share[sides], np.float32), 1)
    inside = part > level
    if not inside.any():
        raise UserError(f"no surface: no voxel is above {level:g}")
    # Values next to the level would give triangles of no area, which readers weld to holes; at
    # the middle of a mask's values, marching cubes would leave holes where voxels touch by an edge.
    part = np.where(inside, np.maximum(part, level + 0.03), np.minimum(part, level - 0.03))
    points, faces, _, _ = marching_cubes(part, level - 0.01)
    points = points + [side.start - 1 for side in sides]
    points = points @ affine[:3, :3].T + affine[:3, 3]
    surface = trimesh.Trimesh(points, faces, process=False)
    if surface.volume < 0:
        surface.invert()
    trimesh.smoothing.filter_taubin(surface, 0.5, 0.53, PASSES)
    most = np.linalg.norm(affine[:3, :3], axis=0).min() / 6  # specks do not blow up
    volume = np.count_nonzero(inside) * abs(np.linalg.det(affine[:3, :3]))
    for _ in range(3):
        step = np.clip((volume - surface.volume) / surface.area, -most, most)
        surface.vertices = surface.vertices + surface.vertex_normals * step
    return surface


def write_stl(path: Path, solid: trimesh.Trimesh) -> None:
    """Writes a mesh in RAS mm as binary STL in LPS mm: what DICOM's world and 3D Slicer expect."""
    lps = trimesh.Trimesh(solid.vertices * [-1, -1, 1], solid.faces, process=False)
    head = b"skullgen, mm, SPACE=LPS".ljust(80)
    files.replace(path, head + lps.export(file_type="stl")[len(head) :])
