"""Implants whose surfaces go on from the bone around a hole, on a chart of directions.

A net on a coarse grid says where a hole is; how thick an implant is there, and how bent, the bone
around the hole says better (thin-plate splines over a hole: Carr et al. 1997, 10.1109/42.552059).
Masks are [X, Y, Z] in RAS order; an affine [4, 4] maps voxel centres to RAS mm.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage
from scipy.interpolate import RBFInterpolator

from skullgen.data.grids import Affine, Mask

PIXEL_MM = 2.0  # of maps, at least
RING_MM = 15.0  # of bone around a hole, by which its surfaces go on
WINDOW_MM = 12.0  # of bone about a net's answer, along the rays: not the face, or the other side
SMOOTH = 100.0, 3000.0  # smoothing of the spline of the bone's middle, and of its thickness
POINTS, LEAST = 500, 20  # pixels of bone that a spline goes by: at most, at least

Points = Int[np.ndarray, "n 3"]


class Chart(NamedTuple):
    """Directions from the head's middle about those of a piece, azimuthal equidistant.

    axes: rows, the chart's two and the one through its centre. radius: where its lengths are mm.
    pixel: of maps on it, mm.
    """

    affine: Affine
    middle: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "3 3"]
    radius: float
    pixel: float

    def place(self, points: Points) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Where voxels lie on it, and how far from the middle, in mm."""
        rays = points @ self.affine[:3, :3].T + self.affine[:3, 3] - self.middle
        far = np.linalg.norm(rays, axis=1)
        across = rays @ self.axes.T
        length = np.linalg.norm(across[:, :2], axis=1)
        scale = self.radius * np.arctan2(length, across[:, 2]) / np.maximum(length, 1e-6)
        return across[:, :2] * scale[:, None], far


def chart(points: Points, affine: Affine, middle: Float[np.ndarray, "3"]) -> Chart:
    """The chart about the voxels of a piece."""
    rays = points @ affine[:3, :3].T + affine[:3, 3] - middle
    far = np.linalg.norm(rays, axis=1)
    axis = (rays / np.maximum(far, 1e-6)[:, None]).mean(0)
    axis /= max(np.linalg.norm(axis), 1e-6)
    side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    side /= np.linalg.norm(side)
    pixel = max(PIXEL_MM, 1.5 * np.linalg.norm(affine[:3, :3], axis=0).max())
    return Chart(affine, middle, np.stack([side, np.cross(axis, side), axis]), far.mean(), pixel)


def continued(own: Chart, piece: Mask, bone: Mask, step: float) -> Mask:
    """A net's piece between surfaces that go on from those of the bone around it.

    The middle of the bone in a ring and its thickness are carried on over the hole, whatever the
    net makes of them. The hole is where less than half of that thickness is bone: at most `step` mm
    beyond the piece, but all of an opening that the piece fills half of. The piece itself where
    there is too little bone around it.
    """
    ours, theirs = (own.place(np.argwhere(mask)) for mask in (piece, bone))
    margin = int((RING_MM + step) / own.pixel) + 3
    low = ours[0].min(0) - margin * own.pixel
    shape = tuple((((ours[0].max(0) - low) / own.pixel).astype(int) + margin + 1).tolist())
    net, count = _mapped(own, low, shape, ours, np.ones(len(ours[1])))
    seen = ndimage.binary_fill_holes(count > 0)
    beyond = ndimage.distance_transform_edt(~seen) * own.pixel
    field, about = beyond <= RING_MM + step, _spread(net, count > 0)
    for reach in (RING_MM / 2, RING_MM):  # near the hole first: then it is known where bone lies
        away = np.abs(theirs[1] - _at(about, own, low, theirs[0]))
        near = [values[away <= WINDOW_MM] for values in theirs]
        weights = (own.radius / near[1]) ** 2  # of a voxel: sums over a pixel are lengths
        centre, amount = _mapped(own, low, shape, near, weights)
        thick = amount * np.abs(np.linalg.det(own.affine[:3, :3])) / own.pixel**2
        ring = (thick > 0) & (beyond <= reach + step)
        ring &= ndimage.binary_erosion(thick > np.median(thick[ring]) / 2) if ring.any() else False
        if np.count_nonzero(ring) < LEAST:
            return piece
        middle, width = _carried(own.pixel, field, ring, centre, thick)
        about = _spread(middle, field)
    width = _spread(np.clip(width, *np.percentile(thick[ring], (5, 95))), field)
    hole = _hole(field & (thick < width / 2), field, seen, beyond <= step)
    result = np.zeros_like(piece)
    for number, plane in enumerate(bone):  # few voxels at a time
        free = np.argwhere(~plane)
        across, far = own.place(np.insert(free, 0, number, axis=1))
        away = np.abs(far - _at(about, own, low, across, 1))
        inside = _at(hole, own, low, across) & (away <= _at(width, own, low, across, 1) / 2)
        result[number][tuple(free.T)] = inside
    return result


def _mapped(own, low, shape, voxels, weights):
    """The weighted mean distance of voxels by pixel of a map, and the sums of their weights."""
    across, far = voxels
    cells = np.floor((across - low) / own.pixel).astype(int)
    inside = ((cells >= 0) & (cells < shape)).all(1)
    pixel, weights = np.ravel_multi_index(tuple(cells[inside].T), shape), weights[inside]
    sums = (np.bincount(pixel, w, np.prod(shape)) for w in (weights, weights * far[inside]))
    amount, total = (each.reshape(shape) for each in sums)
    return total / np.maximum(amount, 1e-6), amount


def _at(values, own, low, across, order=0):
    """A map's values at places on the chart: of the nearest pixel or (order 1) linear between."""
    places = ((across - low) / own.pixel - 0.5).T
    return ndimage.map_coordinates(values, places, order=order, mode="nearest")


def _spread(values, known):
    """A map with each pixel that is not known as the nearest one that is."""
    return values[tuple(ndimage.distance_transform_edt(~known, return_indices=True)[1])]


def _carried(pixel, field, ring, *maps):
    """Maps of bone in a ring carried on, by splines, over a field of pixels (0 elsewhere)."""
    rim = np.argwhere(ring)
    rim = rim[np.linspace(0, len(rim) - 1, min(POINTS, len(rim))).astype(int)]
    for values, smoothing in zip(maps, SMOOTH, strict=True):
        spline = RBFInterpolator(rim * pixel, values[tuple(rim.T)], smoothing=smoothing)
        carried = np.zeros(field.shape)
        carried[field] = spline(np.argwhere(field) * pixel)
        yield carried


def _hole(open_, field, seen, close):
    """The pixels that an implant fills, of the openings that the net's piece meets."""
    labels, count = ndimage.label(open_)
    met = np.bincount(labels[seen], minlength=count + 1)
    met[0] = 0
    ends = np.isin(np.arange(count + 1), labels[~ndimage.binary_erosion(field)])
    whole = (met >= 0.5 * np.bincount(labels.ravel())) & ~ends
    hole = ndimage.binary_fill_holes((met > 0)[labels] & (whole[labels] | close))
    return ndimage.binary_dilation(hole)  # pixels that are partly bone
