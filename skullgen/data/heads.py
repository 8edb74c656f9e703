"""Whether a scan is a human braincase in mm, and whole; whether a CT is in Hounsfield units.

Skulls are in RAS order. What is not certain is not refused.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

from skullgen.core.errors import UserError
from skullgen.data.grids import PLANE_MM2, SNAP, Affine, Mask, box

BLOCK_MM = 2.0  # skulls are measured in blocks no larger than this, where the source allows
# Of bone, from below a newborn's head with its scalp (WHO Child Growth Standards, 2007: girls' mean
# of 339 mm less three deviations) to beyond adults' (Bushby et al., Arch. Dis. Child. 67, 1992).
CIRCUMFERENCE_MM = 270.0, 620.0
# Of 392 children with sagittal synostosis 95 % have .57 to .90 (PubMed 28654600), Korean infants a
# mean of .91 (Ann. Rehabil. Med. 45, 2021); and of heads that lie turned, or lack a side.
BREADTH_OF_LENGTH = 0.5, 1.2
# Over the root of breadth x length: whole skulls' is .33 to .6, one that lacks its front's 1.3.
WHOLE = 0.85  # height / size of whole skulls, at most: real ones' is .41 to .63
HEIGHT_OF_SIZE = 0.31, 1.35
USUAL = 0.5  # of that
RISE = 0.3, 0.9  # of the largest plane: the height is measured on planes between
VAULT = 0.55  # of its breadth: the vault reaches this far below its top
BONE_MM = 10.0  # bone this far beneath the border of a grid closes what is open there
OPENING_MM2 = 800.0  # less is bone that touches the border, or a loss of 2 mm above the brain
SIDES = ("top", 2, -1), ("left", 0, 1), ("right", 0, -1), ("back", 1, 1), ("front", 1, -1)
AIR, SOFT, BONE = -1000.0, 40.0, 300.0  # HU
NEAR = 100.0  # HU on both sides of a peak, with its noise
SAMPLE = 2**20  # voxels that are looked at


def check(mask: Mask, affine: Affine, highest: float = HEIGHT_OF_SIZE[1]) -> None:
    """UserError unless a skull is a human braincase by its size and proportions.

    highest: of height / size; `WHOLE` where the skull has no hole that stretches it.
    """
    piece, step = _piece(mask, affine)
    breadth, length, height = lengths(piece, step)
    for name, value, (low, high), digits in (
        ("circumference", math.pi * (breadth + length) / 2, CIRCUMFERENCE_MM, 0),
        ("breadth / length", breadth / length, BREADTH_OF_LENGTH, 2),
        ("height / size", height / math.sqrt(breadth * length), (HEIGHT_OF_SIZE[0], highest), 2),
    ):
        if not low <= value <= high:
            sizes = f"{breadth:.0f} mm broad, {length:.0f} long, {height:.0f} high over its middle"
            why = f"{name} {value:.{digits}f}, not {low:g} to {high:g}"
            raise UserError(f"no human braincase, {sizes} ({why}): check the voxel size")


def _piece(mask, affine):
    """The largest piece of bone, in blocks, and their sides in mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    blocks, bone = np.maximum(1, (BLOCK_MM / spacing + SNAP).astype(int)), mask[box(mask)]
    if not bone.size:
        raise UserError("no bone to measure: check the mask and, for a CT, bone_hu")
    for axis, block in enumerate(blocks):
        if block > 1:
            bone = np.logical_or.reduceat(bone, np.arange(0, bone.shape[axis], block), axis=axis)
    labels, _ = ndimage.label(bone)
    return labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1, spacing * blocks


def lengths(
    piece: Bool[np.ndarray, "X Y Z"], step: Float[np.ndarray, "3"]
) -> tuple[float, float, float]:
    """Breadth and length of the vault, and the height of the vertex over its middle, in mm.

    An ellipsoid's planes at a depth under its top have the share s = 1 - (1 - depth / height)^2 of
    the largest: sqrt(1 - s) is a line, and three quarters lie half way down. Holes make the line
    too steep or flat, or the way too short: the height is what agrees best with `USUAL`.
    """
    area = np.count_nonzero(piece, axis=(0, 1)) * step[0] * step[1]
    top = np.flatnonzero(area >= min(PLANE_MM2, area.max()))[-1]
    wide, long = (_across(piece.any(axis=1 - k)[:, top::-1]) * step[k] for k in (0, 1))
    depth, share = np.arange(len(wide)) * step[2], wide * long / (wide * long).max()
    rise = np.flatnonzero(share >= RISE[0])
    rise = rise[rise <= np.argmax(share >= RISE[1])]
    lack = np.sqrt(1 - share[rise])
    slope = np.polyfit(depth[rise], lack, 1)[0] if np.ptp(lack) else -math.inf
    vault = depth <= VAULT * wide.max()
    breadth, length = float(wide[vault].max()), float(long[vault].max())
    heights = -1 / slope, 2 * depth[np.argmax(share >= 0.75)], USUAL * math.sqrt(breadth * length)
    return breadth, length, float(np.median(heights))


def _across(flat):
    """From the first to the last bone of each column."""
    return flat.any(axis=0) * (len(flat) - flat[::-1].argmax(axis=0) - flat.argmax(axis=0))


def cut(mask: Mask, affine: Affine) -> str | None:
    """Which side of a skull's vault the field of view cuts open; None: none.

    What counts is the opening on a border: blocks between bone with no bone beneath (`BONE_MM`).
    """
    (piece, step), ends = _piece(mask, affine), box(mask)
    top = np.flatnonzero(piece.any(axis=(0, 1)))[-1] + 1
    low = max(0, top - int(VAULT * lengths(piece, step)[0] / step[2]))
    for name, axis, way in SIDES:
        if ends[axis].start > 0 if way > 0 else ends[axis].stop < mask.shape[axis]:
            continue
        inward = np.moveaxis(piece, axis, 0)[::way]
        opening = ~inward[: max(1, round(BONE_MM / step[axis]))].any(axis=0)
        # Below, a scan may end before the bone does.
        for line, to in ((0, 1), (0, -1), (1, -1), (1, 1))[: 4 if axis == 2 else 3]:
            order = (slice(None),) * line + (slice(None, None, to),)
            opening &= np.maximum.accumulate(inward[0][order], axis=line)[order]
        blocks = np.count_nonzero(opening if axis == 2 else opening[:, low:top])
        area = blocks * np.prod(np.delete(step, axis))
        if area > OPENING_MM2:
            what = f"the field of view cuts the {name} of the vault, which is open there"
            return f"{what} ({area:.0f} mm^2): take a scan that holds all of it"
    return None


def hounsfield(
    values: Num[np.ndarray, "X Y Z"], scale: tuple[float, float], bone_hu: float
) -> str | None:
    """Why a CT is not in Hounsfield units, nor `bone_hu` on its scale; None where that may be.

    values: as stored; scale: slope and intercept. Air and soft tissue are sought as two peaks, but
    not at the least and the greatest value, where scans are padded and clipped.
    """
    every = slice(None, None, max(1, int(np.cbrt(values.size / SAMPLE))))
    sample = values[every, every, every].ravel() * float(scale[0]) + scale[1]
    sample = np.sort(sample[np.isfinite(sample)])
    inside = sample[(sample > sample[:1]) & (sample < sample[-1:])]
    if not len(inside):
        return None
    low, high = sample[0], sample[-1]
    grey = low >= 0 and high <= 255
    air, soft = _grey(inside) if grey else _shifted(inside)
    if math.isnan(soft) and not grey:
        air, soft = _shifted(sample[sample < high])  # of one value, as in drawn heads
    slope = (SOFT - AIR) / (soft - air) if grey else 1.0
    clipped = grey and (np.mean(sample == high) > 1e-3 or not (high - soft) * slope <= 4000)
    above = (bone_hu - soft) * slope
    fits = 40 < above < (math.inf if clipped else 1100) and bone_hu <= high
    if math.isnan(soft) or fits:
        return None
    if clipped:
        what = f"values {low:.3g} to {high:.3g} are a window, not Hounsfield units"
        return f"{what}: export the CT again"
    what, wish = f"{slope:.4g} Hounsfield units a step", soft + (BONE - SOFT) / slope
    if not grey:
        added = 1024 * round((soft - SOFT) / 1024)
        added = added if abs(soft - SOFT - added) < NEAR / 2 else round(soft - SOFT, -1)
        what = f"Hounsfield units with {added:.0f} added"
        wish = added + (bone_hu if 100 <= bone_hu <= 1000 else BONE)
    peaks = f"air at {air:.5g}, soft tissue at {soft:.5g}"
    return f"{what} ({peaks}): set bone_hu to {wish:.5g} instead of {bone_hu:g}"


def _shifted(inside):
    """Air and, 1040 HU above, a narrow peak of tissue, of sorted values; NaN: none, or in HU."""

    def share(start, end):
        return np.subtract(*(np.searchsorted(inside, at) for at in (end, start))) / len(inside)

    air = np.append(AIR, np.arange(inside[0] - NEAR, inside[-1], 10))
    soft = air + SOFT - AIR
    void, peak = (share(at - NEAR, at + NEAR) for at in (air, soft))
    # Bone falls off slowly, and there is more of it between.
    above, between = share(soft + NEAR, soft + 3 * NEAR), share(air + NEAR, soft - NEAR)
    narrow = (peak > 0.05) & (peak > 2 * above) & (2 * peak > between)
    score = np.where(narrow, np.minimum(void, peak), 0)
    best = np.argmax(score)
    if score[0] > 0.002 or score[best] < 0.001:
        return math.nan, math.nan
    return tuple(np.median(inside[np.abs(inside - at[best]) < NEAR]) for at in (air, soft))


def _grey(inside):
    """Air and soft tissue, the highest peak above it, of values up to 255; NaN: none."""
    count, edges = np.histogram(inside, 64, (0, inside[-1]))
    soft = 4 + np.argmax(count[4:])
    if count[soft] < 0.04 * len(inside):
        return math.nan, math.nan
    bins = np.digitize(inside, edges) - 1
    air, soft = (inside[bins == k] for k in (np.argmax(count[: soft - 3]), soft))
    return np.median(air) if len(air) else math.nan, np.median(soft)
