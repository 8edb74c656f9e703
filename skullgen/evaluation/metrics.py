"""Dice, boundary Dice and HD95 as the AutoImplant challenge defines them, on three grids.

Masks are bool `[X, Y, Z]`; `voxel_mm` is a voxel's side in mm, one number or [3].
"""

import numpy as np
from scipy import special
from scipy.spatial import KDTree

from skullgen.core import plugins
from skullgen.core.errors import UserError, one_of
from skullgen.data import grids, store

RULES = ("probability", "mask", "nearest")  # how a prediction is upsampled: `upsampled_dice`
_FORM = "(prediction, truth, skull, voxel_mm) -> a number or None"
BAND_MM = 10.0
BOOTSTRAP_SKULLS = 10  # fewer than this have a t interval
RESAMPLES = 10_000


def dice(a, b):
    """Equation 8, `2 |A and B| / (|A| + |B|)`: bool arrays of one shape -> float.

    Two empty masks have Dice 0, as in the AutoImplant challenge.
    """
    total = np.count_nonzero(a) + np.count_nonzero(b)
    both = sum(np.count_nonzero(x & y) for x, y in zip(a, b, strict=True))  # no third mask is held
    return 2 * both / total if total else 0.0


def boundary_dice(prediction, truth, skull, voxel_mm, band_mm=BAND_MM):
    """AutoImplant's bDSC: Dice over the voxels at most `band_mm` from the defective skull.

    prediction, truth, skull: bool [X, Y, Z], `skull` the defective one. Distances lie between
    voxel centres; a skull's own voxels have distance 0. Exact, though only the box of prediction
    and truth, padded by the band, is looked at. 0 where both are empty within the band, as for
    `dice`; so also for an empty skull.
    """
    voxel, limit = np.broadcast_to(voxel_mm, 3), band_mm * (1 + 1e-6)  # float32 headers
    pad = np.ceil(limit / voxel).astype(int).tolist()
    sides = tuple(
        slice(max(0, side.start - more), side.stop + more)
        for side, more in zip(grids.box(prediction | truth), pad, strict=True)
    )
    prediction, truth, near = prediction[sides], truth[sides], skull[sides].copy()
    outside = (prediction | truth) & ~near
    # The nearest skull voxel of a voxel outside of the skull lies on the skull's surface.
    found = _nearest(np.argwhere(outside) * voxel, _surface(near) * voxel, limit)
    near[outside] = np.isfinite(found)
    return dice(prediction & near, truth & near)


def hd95(prediction, truth, voxel_mm):
    """The 95th percentile, in mm, of both directions' surface distances taken together.

    prediction, truth: bool [X, Y, Z]. A surface are a mask's voxels with one of their 6 neighbours
    outside of it, or outside of the grid; a voxel's distance is that to the other surface's
    nearest voxel, between centres; percentiles are interpolated linearly (AutoImplant).

    An empty prediction scores the grid's diagonal, and so does whatever is compared with an empty
    truth.
    """
    voxel = np.broadcast_to(voxel_mm, 3)
    surfaces = [_surface(mask) for mask in (prediction, truth)]
    if not all(map(len, surfaces)):
        return float(np.linalg.norm(voxel * prediction.shape))
    flat = [np.ravel_multi_index(points.T, truth.shape) for points in surfaces]
    # A voxel of both surfaces has distance 0 and need not be looked for.
    alone = [~np.isin(*pair, assume_unique=True) for pair in (flat, flat[::-1])]
    found = [
        _nearest(points[rest] * voxel, others * voxel)
        for points, rest, others in zip(surfaces, alone, surfaces[::-1], strict=True)
    ]
    zeros = np.zeros(sum(map(len, flat)) - sum(map(len, found)))
    return float(np.percentile(np.concatenate([*found, zeros]), 95))


def upsampled_dice(probability, truth, size, rule="probability", threshold=0.5):
    """Dice at `size`^3 voxels, prediction and truth both upsampled (the paper: `size` 512).

    rule, one of `RULES`: `probability` is trilinear between the voxels' centres (outside of the
    outermost ones, constant), cut afterwards at `> threshold`; `mask` the same of the mask
    `probability >= threshold`, cut afterwards at `> 0.5`; `nearest` is the voxel of that mask that
    holds the centre. The truth is a mask: trilinear under the first two, nearest under the third.

    Ties: on the model's grid a probability that equals the threshold is bone, as in
    `nets.binarise`; an interpolated value that equals it is not, neither in prediction nor truth,
    so that a perfect mask has Dice 1 under every rule.

    probability: [D, D, D], 0 to 1. truth: bool [D, D, D]. size: any; not only multiples of D.
    Neither mask is ever held (`grids.overlap`). Raises UserError for an unknown rule.
    """
    shares, levels = zip(_cut(probability, rule, threshold), _cut(truth, rule, 0.5), strict=True)
    one, other, both = grids.overlap(shares, levels, size, nearest=rule == "nearest").tolist()
    return 2 * both / (one + other) if both else 0.0


def native_scores(
    probability, truth, model_affine, native, native_affine, rule="probability", threshold=0.5
):
    """The upsampled prediction against the native truth, and what the best prediction would get.

    probability: [D, D, D], 0 to 1, and truth: bool [D, D, D], on the model's grid.
    model_affine, native_affine: [4, 4], voxel -> RAS mm, their axes parallel in any order and
    direction. native: bool [X, Y, Z], the truth at its source's grid (`store.read_native`).
    rule, threshold: as in `upsampled_dice`.

    Returns `dice_native`; `ceiling_native`, the Dice of `truth` upsampled by the same rule; and
    `hd95_native_mm`. What lies outside of the model's cube is not predicted and counts as missed.
    Raises ValueError where the axes are not parallel, UserError for an unknown rule.
    """
    turn = grids.to_ras(np.linalg.inv(model_affine) @ native_affine, native.shape)
    native, affine = grids.turned(native, turn), native_affine @ turn

    def upsampled(share, level):
        share, level = _cut(share, rule, level)
        grids = model_affine, affine, native.shape
        return grids.enlarge(share, *grids, threshold=level, nearest=rule == "nearest")

    ceiling = dice(upsampled(truth, 0.5), native)
    found = upsampled(probability, threshold)
    return {
        "dice_native": dice(found, native),
        "ceiling_native": ceiling,
        "hd95_native_mm": hd95(found, native, np.linalg.norm(affine[:3, :3], axis=0)),
    }


def own(settings):
    """The metrics of `config.evaluate.metrics`: dotted names of functions of the user's own.

    Each is `(prediction, truth, skull, voxel_mm) -> number`, or None where it is not defined, of
    bool [D, D, D] on the model's grid. Raises UserError for one that cannot be imported.
    """
    names = plugins.listed(settings.get("metrics", ""))
    for name in names:
        plugins.function("evaluate.metrics", name, _FORM)
    return tuple(dict.fromkeys(names))


def _own(name, path, row, masks, voxel_mm):
    """The value of a user's own metric: a float or None; UserError for any other."""
    value = plugins.function("evaluate.metrics", name, _FORM)(*masks, voxel_mm)
    if value is None:
        return None
    if np.shape(value) or not np.isreal(value) or not np.isfinite(value):
        what = f"{name} of {path}, pair {row}, is {value!r:.60}: it must be a finite number"
        raise UserError(f"{what}, or None where it is not defined")
    return float(value)


def case(path, row, probability, rule, threshold, own=()):
    """All of a prediction's numbers: the task of a worker process.

    path, row: the pair, whose skull and truth are read. probability: [D, D, D]. rule, threshold:
    `upsampled_dice`'s. own: as `own` returns them. `dice`, `bdsc`, `hd95_mm` are on the model's
    grid, where voxels are cubes. None: what needs a native truth that the pair has not, and `bdsc`
    on coarse grids.
    """
    group = store.Store(path)
    pair = store.unpack(store.Store(path).load([row])[0], len(probability))
    skull, truth = np.moveaxis(pair, -1, 0)
    prediction, voxel = probability >= threshold, group.attrs["voxel_mm"]
    native = dict.fromkeys(("dice_native", "ceiling_native", "hd95_native_mm"))
    if store.Store(path).has_native(row):
        affine = group.column("affine")[row]
        true = store.Store(path).native(row)
        try:
            native = native_scores(probability, truth, affine, *true, rule, threshold)
        except (ValueError, np.linalg.LinAlgError) as error:
            what = f"pair {row}: its affines fit no grid ({error}): make the store again"
            raise UserError(f"{path}: {what}") from None
    return {
        "empty": not prediction.any(),
        "dice": dice(prediction, truth),
        # No voxel of the defect is within the band where voxels are larger than it.
        "bdsc": boundary_dice(prediction, truth, skull, voxel) if voxel <= BAND_MM else None,
        "hd95_mm": hd95(prediction, truth, voxel),
        "dice_512": upsampled_dice(probability, truth, 512, rule, threshold),
        **native,
        **{name: _own(name, path, row, (prediction, truth, skull), voxel) for name in own},
    }


def interval(values, level=0.95, seed=0):
    """The mean of one number per skull, with its interval over skulls: (mean, low, high, kind).

    values: [n], one for each skull (its cases' mean, or a paired difference of such), at least
    one. From ten skulls on the percentile bootstrap over skulls (10,000 resamples by `seed`); from
    two to nine a t interval; of one skull low and high are None. `kind` says which:
    "bootstrap over skulls", "t over skulls" or "none". Skulls, not cases, are what was drawn: the
    cases of one skull resemble each other.
    """
    values = np.asarray(values, float)
    mean, count, tail = float(values.mean()), len(values), (1 - level) / 2
    if count == 1:
        return mean, None, None, "none"
    if count < BOOTSTRAP_SKULLS:
        half = special.stdtrit(count - 1, 1 - tail) * values.std(ddof=1) / np.sqrt(count)
        return mean, float(mean - half), float(mean + half), "t over skulls"
    rng, step = np.random.default_rng(seed), max(1, 2**20 // count)
    means = [
        values[rng.integers(count, size=(min(step, RESAMPLES - first), count))].mean(axis=1)
        for first in range(0, RESAMPLES, step)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return mean, float(low), float(high), "bootstrap over skulls"


def _surface(mask):
    """Voxels int [n, 3] of the mask that have one of their 6 neighbours outside of it."""
    sides = grids.box(mask)
    part = mask[sides]
    inside = part.copy()
    for axis in range(3):
        bone, inner = np.moveaxis(part, axis, 0), np.moveaxis(inside, axis, 0)
        inner[1:] &= bone[:-1]
        inner[:-1] &= bone[1:]
        inner[:1] = inner[-1:] = False
    where = np.unravel_index(np.flatnonzero(part & ~inside), part.shape)
    return np.stack(where, axis=-1) + [side.start for side in sides]


def _nearest(points, others, limit=np.inf):
    """Distances [n] from each of `points` [n, 3] to the nearest of `others`; inf beyond `limit`."""
    # SciPy's own choices build twice as long, and are 4 times slower for points far away.
    tree = KDTree(others, leafsize=24, compact_nodes=False, balanced_tree=False)
    return tree.query(points, distance_upper_bound=limit)[0]


def _cut(share, rule, threshold):
    """What a rule upsamples, and the threshold afterwards."""
    one_of("rule", rule, RULES)
    return (share, threshold) if rule == "probability" else (share >= threshold, 0.5)
