"""Surfaces by marching cubes: what Plotly turns in 3-D, and solids in mm for STL files."""

import base64

import numpy as np
from scipy import ndimage
from skimage.measure import marching_cubes

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import grids
from skullgen.report import render

SIDE = 48  # voxels a side of what is turned, at most
PASSES = 20  # of Taubin's filter, by turns inwards and outwards


def scene(skull, defect, voxel_mm):
    """The two surfaces of a pair, bool [D, D, D] in RAS, and an eye on the defect's own side."""
    azimuth, up = np.radians(render.look(render.direction(skull, defect)))
    up = max(up, 0.3)  # seen level, the axes' labels lie on one another
    eye = np.sin(azimuth) * np.cos(up), np.cos(azimuth) * np.cos(up), np.sin(up)
    meshes = [surface(volume, voxel_mm) for volume in (skull, defect)]
    return {"meshes": meshes, "eye": eye, "side": len(skull) * voxel_mm}


def surface(volume, voxel_mm):
    """A volume's surface, as Plotly's Mesh3d takes it, in mm from the frame's corner.

    More than 48 voxels a side are averaged in blocks first.
    """
    factor = -(-len(volume) // SIDE)
    shares = np.pad(np.asarray(volume, np.float32), (0, -len(volume) % factor))
    side = len(shares) // factor
    shares = shares.reshape(side, factor, side, factor, side, factor).mean((1, 3, 5))
    # Smoothing and level of `render`, at which a plate of one voxel stays whole.
    shares = ndimage.gaussian_filter(np.pad(shares, 2), 0.75 / factor)
    points, faces = np.zeros((0, 3)), np.zeros((0, 3))
    if shares.max() > 0.25:
        points, faces, _, _ = marching_cubes(shares, 0.25)
    columns = {"xyz": ((points - 1.5) * factor * voxel_mm, "f4"), "ijk": (faces, "i4")}
    return {
        name: {
            "dtype": kind,
            "bdata": base64.b64encode(column.astype(f"<{kind}").tobytes()).decode(),
        }
        for names, (values, kind) in columns.items()
        for name, column in zip(names, values.T, strict=True)
    }


def solid(share, affine, level=0.5):
    """The closed surface of a mask or share, smoothed without shrinking: a `trimesh.Trimesh`.

    Marching cubes, then Taubin's filter (1995, lambda 0.5, mu -0.53), then moved along its normals
    until it holds the volume of the voxels.

    Args:
      share: [X, Y, Z], bool or 0 to 1; outside of it there is none.
      affine: [4, 4] voxel -> RAS mm, of either hand.
      level: what is above it is inside, 0 to 1.

    Returns:
      The mesh in RAS mm, watertight, wound outwards. Raises UserError where nothing is inside.
    """
    import trimesh

    sides = grids.box(np.asarray(share) > level)
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
    made = trimesh.Trimesh(points, faces, process=False)
    if made.volume < 0:
        made.invert()
    trimesh.smoothing.filter_taubin(made, 0.5, 0.53, PASSES)
    most = np.linalg.norm(affine[:3, :3], axis=0).min() / 6  # specks do not blow up
    wanted = np.count_nonzero(inside) * abs(np.linalg.det(affine[:3, :3]))
    for _ in range(3):
        step = np.clip((wanted - made.volume) / made.area, -most, most)
        made.vertices = made.vertices + made.vertex_normals * step
    return made


def write_stl(path, solid):
    """Writes a mesh in RAS mm (`solid`) as binary STL in LPS mm, atomically.

    STL has no field for its axes. LPS is what DICOM's world takes it to be, and 3D Slicer, which
    also reads `SPACE=LPS` in the header: there it lies on the NRRD and NIfTI files of the same
    pair. For RAS, as nibabel has it, turn the signs of x and y. Raises UserError for a full disk.
    """
    columns = [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")]
    rows = np.zeros(len(solid.faces), columns)
    rows["normal"] = solid.face_normals * [-1, -1, 1]
    rows["corners"] = solid.triangles * [-1, -1, 1]
    head = b"skullgen, mm, SPACE=LPS".ljust(80) + np.uint32(len(rows)).tobytes()
    files.replace(path, head + rows.tobytes())
