"""Defects carried from one skull onto another: a control that needs no cutter and no network.

A donor is a hole on the chart of directions (`defects`), turned a little, mirrored or not, scaled,
and cut into another skull through the full thickness of the bone that is there.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from skullgen.core.errors import UserError
from skullgen.data import defects
from skullgen.data.grids import FIELD_MM, VERTEX_MM, Affine, Mask

MIDDLE = np.array([FIELD_MM / 2, FIELD_MM / 2, VERTEX_MM - 58])  # of the braincase, in the frame
TURN_DEGREES = (6.0, 6.0, 12.0)  # standard deviations about X, Y and the vertical
SMALLEST = 0.8  # of the donor's angle about its middle; at most 1 / this
LEAST_CM3, MOST = 4.0, 0.45  # of bone, and of the vault's area
FINE_MM = 1.5  # donors' voxels are divided into parts of at most this
LOWEST = np.cos(np.deg2rad(120))  # of a direction's height: the chart ends there
ATTEMPTS = 20


class Donor(NamedTuple):
    """A hole by directions, [C, C] on the chart in mm (negative inside), and its mean direction."""

    field: Float[np.ndarray, "C C"]
    middle: Float[np.ndarray, "3"]
    several: bool  # holes


def donor(voxels: Int[np.ndarray, "n 3"], affine: Affine, frame: Affine, size: int) -> Donor:
    """A donor from the indices of an implant's voxels, in RAS order; frame: of its skull's cube."""
    step = np.linalg.norm(affine[:3, :3], axis=0)
    parts = [np.arange(n) / n + 0.5 / n - 0.5 for n in np.ceil(step / FINE_MM).astype(int)]
    offsets = np.stack(np.meshgrid(*parts), -1).reshape(-1, 3)
    places = (voxels[:, None] + offsets).reshape(-1, 3)
    to_frame = np.linalg.inv(frame) @ affine
    vectors = (places @ to_frame[:3, :3].T + to_frame[:3, 3] + 0.5).T * (FIELD_MM / size)
    vectors = vectors - MIDDLE[:, None]
    above = vectors[2] > LOWEST * np.linalg.norm(vectors, axis=0)
    cells, length = defects.on_chart(vectors[:, above])
    if not len(length):
        raise UserError("the defect lies below the vault: it cannot be carried onto other skulls")
    # A cell at the rim holds less of the piece than those within: it is hole from one half on.
    side = len(defects.INSIDE)
    cells = np.clip(np.rint(cells).astype(int), 0, side - 1)
    amount = np.bincount(cells[0] * side + cells[1], minlength=side**2).reshape(side, side)
    amount = ndimage.gaussian_filter(amount.astype(float), 1.0)
    mark = (amount > 0.5 * ndimage.percentile_filter(amount, 75, 9)) & (amount > 0.1 * amount.max())
    mark = ndimage.binary_fill_holes(mark) & defects.INSIDE
    cell_mm = defects.CELL * np.median(length)
    away = ndimage.distance_transform_edt(~mark) - ndimage.distance_transform_edt(mark)
    sums = np.bincount(ndimage.label(mark)[0].ravel())[1:] * cell_mm**2 / 100  # cm^2
    mean = defects.RAYS[mark].mean(0)
    field = ndimage.gaussian_filter(away, 1.0) * cell_mm
    return Donor(field.astype(np.float32), mean / np.linalg.norm(mean), bool((sums > 1).sum() > 1))


class Vault(NamedTuple):
    """A complete skull that takes defects: its vault, seen from the middle of the frame."""

    complete: Mask
    voxel: Float[np.ndarray, "3"]  # mm
    chart: defects.Vault
    directions: Float[np.ndarray, "C C 3"]
    limit: Float[np.ndarray, "C C"]  # in mm, > 0 where no hole may be
    area: float  # cm^2


def vault(complete: Mask, affine: Affine, frame: Affine) -> Vault:
    """The vault of a complete skull in RAS order: openings and base stay, but the orbits' rims."""
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    chart = defects.survey(complete, voxel)
    corner = np.linalg.inv(affine) @ frame @ [-0.5, -0.5, -0.5, 1]  # of the frame, in voxels
    away = chart.points - (corner[:3] + 0.5) * voxel - MIDDLE
    closed = np.where((chart.front < 60) & defects.INSIDE, -6.0, chart.closed)
    directions = away / np.linalg.norm(away, axis=-1, keepdims=True)
    limit, area = np.maximum(closed, -8 - chart.height), chart.area[chart.height > 0].sum()
    return Vault(complete, voxel, chart, directions, limit, area)


def transplant(vault: Vault, donor: Donor, seed: int) -> Mask:
    """The piece that a donor's hole, turned, maybe mirrored, scaled, takes out of another skull."""
    directions = vault.directions.reshape(-1, 3)
    for attempt in range(ATTEMPTS):
        random = np.random.default_rng([seed, attempt])
        turn, scale = _turn(random, 0.8**attempt), np.exp(random.uniform(-1, 1) * np.log(SMALLEST))
        cells, _ = defects.on_chart(_from(directions @ turn, donor.middle, scale).T)
        hole = ndimage.map_coordinates(donor.field, cells, order=1, mode="nearest") * scale
        hole = np.maximum(hole.reshape(vault.limit.shape), vault.limit)
        if 0 < vault.chart.area[hole < 0].sum() <= MOST * vault.area:
            whole = vault.complete, vault.voxel, vault.chart
            piece = defects.carve(*whole, hole, donor.several)
            if np.count_nonzero(piece) * np.prod(vault.voxel) >= 1000 * LEAST_CM3:
                return piece
    raise UserError("no defect of the training pairs fits onto this skull")


def _turn(random, share):
    """A rotation, and a mirror image for every second one: [3, 3], from donor to skull."""
    angles = np.deg2rad(TURN_DEGREES) * random.standard_normal(3) * share
    mirror = np.diag([random.choice([-1.0, 1.0]), 1, 1])
    for axis, angle in enumerate(angles):
        rotation = np.eye(3)
        one, two = (axis + 1) % 3, (axis + 2) % 3
        rotation[[one, two], [one, two]] = np.cos(angle)
        rotation[one, two], rotation[two, one] = -np.sin(angle), np.sin(angle)
        mirror = rotation @ mirror
    return mirror


def _from(directions, middle, scale):
    """The donor's directions [N, 3] that come to lie at these."""
    cosine = np.clip(directions @ middle, -1, 1)
    angle = np.arccos(cosine)
    across = (directions - cosine[:, None] * middle) / np.maximum(np.sin(angle), 1e-6)[:, None]
    angle = np.minimum(angle / scale, np.pi)[:, None]
    return np.cos(angle) * middle + np.sin(angle) * across
