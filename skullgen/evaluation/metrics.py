"""Dice, boundary Dice and HD95 as the AutoImplant challenge defines them, on three grids.

On a finer grid a prediction's probability is interpolated (`grids.planes`) and cut afterwards at
`> threshold`, so that a perfect mask has Dice 1. The truth is a mask, and upsampled as one.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict
from scipy import ndimage
from scipy.spatial import KDTree

from skullgen.core import plugins
from skullgen.core.errors import UserError, in_range
from skullgen.data import grids, store

NATIVE = ("dice_native", "ceiling_native", "hd95_native_mm")
BAND_MM = 10.0

Mask = grids.Mask
Planes = Iterable[Bool[np.ndarray, "Y Z"]]
Truth = Bool[np.ndarray, "D D D"]
Share = grids.Share
Voxel = float | int | tuple[float | int, ...] | Float[np.ndarray, " 3"]
Scan = tuple[Mask, grids.Affine]
Label, Own = dict[str, Any], tuple[str, ...]  # what a case is; the user's own metrics
_FORM = "(prediction, truth, skull, voxel_mm) -> a number or None"  # masks bool [D, D, D]


def check(settings: ConfigDict) -> None:
    """UserError for what the stage `evaluate` would find wrong with `config.evaluate`."""
    for field in ("pairs", "batch_size"):
        in_range(f"evaluate.{field}", settings[field], 1)
    in_range("evaluate.cases", settings.cases, 0)
    in_range("evaluate.threshold", settings.threshold, 0.001, 1)
    own(settings)


def dice(a: Mask | Planes, b: Mask | Planes) -> float:
    """Equation 8, `2 |A and B| / (|A| + |B|)`; 0 for two empty masks, as in AutoImplant."""
    total = both = 0
    for x, y in zip(a, b, strict=True):
        total += np.count_nonzero(x) + np.count_nonzero(y)
        both += np.count_nonzero(x & y)
    return 2 * both / total if total else 0.0


def boundary_dice(
    prediction: Mask, truth: Mask, skull: Mask, voxel_mm: Voxel, band_mm: float = BAND_MM
) -> float:
    """AutoImplant's bDSC: Dice over voxels with their centre at most `band_mm` from the skull's."""
    voxel, limit = np.broadcast_to(voxel_mm, 3), band_mm * (1 + 1e-6)  # float32 headers
    pad = np.ceil(limit / voxel).astype(int).tolist()
    sides = tuple(
        slice(max(0, side.start - more), side.stop + more)
        for side, more in zip(grids.box(prediction | truth), pad, strict=True)
    )
    prediction, truth, skull = prediction[sides], truth[sides], skull[sides]
    if not skull.any():
        return 0.0
    near = ndimage.distance_transform_edt(~skull, sampling=voxel) <= limit
    return dice(prediction & near, truth & near)


def hd95(prediction: Mask, truth: Mask, voxel_mm: Voxel) -> float:
    """The 95th percentile, in mm, of both ways' surface distances; of empty ones the diagonal."""
    voxel = np.broadcast_to(voxel_mm, 3)
    surfaces = [_surface(mask) * voxel for mask in (prediction, truth)]
    if not all(map(len, surfaces)):
        return float(np.linalg.norm(voxel * prediction.shape))
    # SciPy's own choices build twice as long, and are 4 times slower for points far away.
    trees = [KDTree(x, leafsize=24, compact_nodes=False, balanced_tree=False) for x in surfaces]
    distances = [tree.query(x)[0] for tree, x in zip(trees, surfaces[::-1], strict=True)]
    return float(np.percentile(np.concatenate(distances), 95))


def upsampled_dice(probability: Share, truth: Truth, size: int, threshold: float = 0.5) -> float:
    """Dice at `size`^3 voxels (any size; the paper's 512), prediction and truth both upsampled."""
    ratio, fine, shape = len(truth) / size, np.eye(4), []
    looked_at = grids.box(truth | (probability > threshold))
    for axis, bone in enumerate(looked_at):
        low = max(0, int((bone.start - 1) / ratio))
        high = min(size, int((bone.stop + 1) / ratio) + 1)
        fine[axis, axis], fine[axis, 3] = ratio, (low + 0.5) * ratio - 0.5
        shape.append(high - low)
    places = np.eye(4), fine, tuple(shape)
    return dice(grids.planes(probability, *places, threshold), grids.planes(truth, *places))


def native_scores(
    probability: Share, truth: Truth, frame: grids.Affine, native: Scan, threshold: float = 0.5
) -> dict[str, float]:
    """The upsampled prediction against the native truth; `ceiling_native` is that of `truth`."""
    mask, affine = native
    turn = grids.to_ras(np.linalg.inv(frame) @ affine, mask.shape)
    mask, affine = grids.turned(mask, turn), affine @ turn
    places = frame, affine, mask.shape
    prediction = grids.enlarge(probability, *places, threshold)
    best = dice(grids.planes(truth, *places), mask)
    distance = hd95(prediction, mask, np.linalg.norm(affine[:3, :3], axis=0))
    return dict(zip(NATIVE, (dice(prediction, mask), best, distance), strict=True))


def own(settings: ConfigDict) -> tuple[str, ...]:
    """The user's own functions in `config.evaluate.metrics`, by dotted name; all are there."""
    names = dict.fromkeys(plugins.listed(settings.get("metrics", "")))
    for name in names:
        plugins.function("evaluate.metrics", name, _FORM)
    return tuple(names)


def _own(name, masks, voxel_mm, label):
    """The value of a user's own metric: a float or None; UserError for any other."""
    value = plugins.function("evaluate.metrics", name, _FORM)(*masks, voxel_mm)
    if value is not None and (np.shape(value) or not np.isreal(value) or not np.isfinite(value)):
        where = f"{label['store']}, pair {label['pair']}"
        what = f"{name} of {where}, is {value!r:.60}: it must be a finite number"
        raise UserError(f"{what}, or None where it is not defined")
    return None if value is None else float(value)


def case(
    label: Label, pair: store.Pair, probability: Share, voxel_mm: float, threshold: float, own: Own
) -> dict[str, Any]:
    """What a pair is (`label`) and all of a prediction's numbers, None where one is not defined."""
    skull, truth = np.moveaxis(store.unpack(pair.bits, len(probability)), -1, 0)
    prediction, native = probability >= threshold, dict.fromkeys(NATIVE)
    if pair.native:
        scan = pair.native.mask(), pair.native.affine
        native = native_scores(probability, truth, pair.affine, scan, threshold)
    masks = prediction, truth, skull
    return {
        **label,
        "empty": not prediction.any(),
        "dice": dice(prediction, truth),
        "bdsc": boundary_dice(*masks, voxel_mm) if voxel_mm <= BAND_MM else None,
        "hd95_mm": hd95(prediction, truth, voxel_mm),
        "dice_512": upsampled_dice(probability, truth, 512, threshold),
        **native,
        **{name: _own(name, masks, voxel_mm, label) for name in own},
    }


def _surface(mask):
    """Voxels int [n, 3] of the mask that have one of their 6 neighbours outside of it."""
    sides = grids.box(mask)
    part = mask[sides]
    edge = part & ~ndimage.binary_erosion(part)
    return np.argwhere(edge) + [side.start for side in sides]
