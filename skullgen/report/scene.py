"""What Plotly turns in 3-D: the two surfaces of a pair, by marching cubes."""

import base64
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from skimage.measure import marching_cubes

from skullgen.report import render

SIDE = 48  # voxels a side of what is turned, at most


def scene(
    skull: Bool[np.ndarray, "D D D"], defect: Bool[np.ndarray, "D D D"], voxel_mm: float | int
) -> dict[str, Any]:
    """The surfaces of a pair, and an eye on the defect's own side."""
    azimuth, up = np.radians(render.look(render.direction(skull, defect)))
    up = max(up, 0.3)  # seen level, the axes' labels lie on one another
    eye = np.sin(azimuth) * np.cos(up), np.cos(azimuth) * np.cos(up), np.sin(up)
    meshes = [surface(volume, voxel_mm) for volume in (skull, defect)]
    return {"meshes": meshes, "eye": eye, "side": len(skull) * voxel_mm}


def surface(volume: Bool[np.ndarray, "D D D"], voxel_mm: float | int) -> dict[str, dict[str, str]]:
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
    points = (points - 1.5) * factor * voxel_mm
    return {
        **{name: _column(values, "f4") for name, values in zip("xyz", points.T, strict=True)},
        **{name: _column(values, "i4") for name, values in zip("ijk", faces.T, strict=True)},
    }


def _column(values, kind):
    data = base64.b64encode(values.astype(f"<{kind}").tobytes())
    return {"dtype": kind, "bdata": data.decode()}
