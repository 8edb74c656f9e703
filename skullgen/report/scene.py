"""What Plotly turns in 3-D: the two surfaces of a pair, by marching cubes."""

import base64
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.measure import marching_cubes

from skullgen.report import render
from skullgen.report.render import Volume

SIDE = 48  # voxels a side of what is turned, at most


def scene(skull: Volume, defect: Volume, voxel_mm: float | int) -> dict[str, Any]:
    """The surfaces of a pair, and an eye on the defect's own side."""
    azimuth, up = np.radians(render.look(render.direction(skull, defect)))
    up = max(up, 0.3)  # seen level, the axes' labels lie on one another
    eye = np.sin(azimuth) * np.cos(up), np.cos(azimuth) * np.cos(up), np.sin(up)
    meshes = [surface(volume, voxel_mm) for volume in (skull, defect)]
    return {"meshes": meshes, "eye": eye, "side": len(skull) * voxel_mm}


def surface(volume: Volume, voxel_mm: float | int) -> dict[str, dict[str, str]]:
    """A volume's surface, as Plotly's Mesh3d takes it, in mm from the frame's corner.

    More than 48 voxels a side are averaged in blocks first.
    """
    factor = -(-len(volume) // SIDE)
    # Smoothing and level of `render`, at which a plate of one voxel stays whole.
    field = ndimage.gaussian_filter(np.pad(render.shares(volume, SIDE), 2), render.SIGMA / factor)
    points, faces = np.zeros((0, 3)), np.zeros((0, 3))
    if field.max() > render.LEVEL:
        points, faces, *_ = marching_cubes(field, render.LEVEL)
    points = (points - 1.5) * factor * voxel_mm
    columns = {name: values.astype("<f4") for name, values in zip("xyz", points.T, strict=True)}
    columns |= {name: values.astype("<i4") for name, values in zip("ijk", faces.T, strict=True)}
    return {
        name: {"dtype": values.dtype.str[1:], "bdata": base64.b64encode(values).decode()}
        for name, values in columns.items()
    }
