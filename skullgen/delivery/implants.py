"""Implants at a skull's own grid: a net's answer made to fit, and what it measures.

Arrays are [X, Y, Z] in RAS order; an affine [4, 4] maps voxel centres to RAS mm.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from skimage.measure import perimeter

from skullgen.data import grids
from skullgen.data.grids import Affine, Mask
from skullgen.delivery import surfaces, vault

Share = Float[np.ndarray, "D D D"]
Point = Float[np.ndarray, " 3"]
PIXEL_MM = surfaces.PIXEL_MM  # of the outline, by which contact is judged


def fit(
    probability: Share, frame: Affine, skull: Mask, affine: Affine, settings: ConfigDict
) -> Mask:
    """A net's answer at a skull's own grid: outside of the bone, and only pieces that touch it.

    Their surfaces go on from those of the bone (`surfaces`). settings: `config.predict`.
    """
    spacing, step = np.linalg.norm(affine[:3, :3], axis=0), np.linalg.norm(frame[:3, 0])
    answer = grids.enlarge(probability, frame, affine, skull.shape, threshold=settings.threshold)
    answer &= ~skull
    middle, implant = vault.middle(frame, len(probability)), np.zeros_like(answer)
    for piece in _pieces(answer, spacing, settings.dust_mm3):
        sides = _around(piece, np.ceil((surfaces.RING_MM + step) / spacing).astype(int))
        own = surfaces.chart(np.argwhere(piece[sides]), _part(affine, sides), middle)
        implant[sides] |= surfaces.continued(own, piece[sides], skull[sides], step)
    if not implant.any():
        return implant
    sides = _around(implant, 2)
    touch, near = np.zeros_like(implant), _grown(skull[sides])
    for piece in _pieces(implant[sides], spacing, settings.dust_mm3):
        if (piece & near).any():
            touch[sides] |= piece
    return touch


def _pieces(mask, spacing, least):
    """The connected pieces of a mask, of `least` mm^3 or more."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel()) * np.prod(spacing)
    sizes[0] = 0
    return (labels == number for number in np.flatnonzero(sizes >= max(least, 1e-9)))


def _part(affine, sides):
    """The affine of a part of a grid."""
    here = affine.copy()
    here[:3, 3] = (affine @ [*(side.start for side in sides), 1])[:3]
    return here


def _around(mask, margin):
    sides = zip(grids.box(mask), np.broadcast_to(margin, 3).tolist(), strict=True)
    return tuple(slice(max(0, side.start - more), side.stop + more) for side, more in sides)


def _grown(mask):
    return ndimage.binary_dilation(mask, np.ones((3, 3, 3)))


def measure(implant: Mask, skull: Mask, affine: Affine, middle: Point) -> dict[str, Any]:
    """What an implant and each connected piece of it measure (docs/formats.md), to 0.001.

    middle: the braincase's, in RAS mm, from which outlines are seen.
    """
    sides = _around(implant, 2)
    part, here = np.ascontiguousarray(implant[sides]), _part(affine, sides)
    touch = part & _grown(skull[sides])
    labels, count = ndimage.label(part)
    pieces = [_piece(labels == k, touch, here, middle) for k in range(1, count + 1)]
    pieces.sort(key=lambda piece: -piece["volume_ml"])
    rims = [piece["rim_mm"] for piece in pieces]
    contact = np.average([piece["rim_contact"] for piece in pieces], weights=rims)
    return {
        "volume_ml": round(sum(piece["volume_ml"] for piece in pieces), 3),
        "extent_mm": max(piece["extent_mm"] for piece in pieces),
        "rim_contact": round(float(contact), 3),
        "pieces": pieces,
    }


def _piece(mask, touch, affine, middle):
    points = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    corners = points[:, None] + np.indices((2, 2, 2)).reshape(3, -1).T - 0.5
    corners = corners.reshape(-1, 3) @ affine[:3, :3].T
    rim, share = _rim(mask, touch, affine, middle)
    numbers = {
        "volume_ml": np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3])) / 1e3,
        "extent_mm": pdist(corners[ConvexHull(corners).vertices]).max(),
        "rim_mm": rim,
        "rim_contact": share,
    }
    return {name: round(float(number), 3) for name, number in numbers.items()}


def _rim(piece, touch, affine, middle):
    """A piece's outline, seen from the middle of the head: length in mm, and share with contact."""
    points = np.argwhere(piece)
    pixel = max(PIXEL_MM, 1.5 * np.linalg.norm(affine[:3, :3], axis=0).max())
    across, _ = surfaces.chart(points, affine, middle).place(points)
    cells = np.floor((across - across.min(0)) / pixel).astype(int) + 2
    seen = np.zeros(cells.max(0) + 3, bool)
    meets = seen.copy()
    seen[tuple(cells.T)] = True
    meets[tuple(cells[touch[tuple(points.T)]].T)] = True
    seen = ndimage.binary_fill_holes(ndimage.binary_closing(seen, np.ones((3, 3))))
    outline = seen & ~ndimage.binary_erosion(seen)
    near = ndimage.binary_dilation(meets, np.ones((3, 3)))
    contact = np.count_nonzero(outline & near) / np.count_nonzero(outline)
    return max(4, perimeter(seen)) * pixel, contact
