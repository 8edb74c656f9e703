"""Dice, boundary Dice and HD95 as the AutoImplant challenge defines them, on three grids.

Shapes: `X Y Z` voxels of any grid, `D` a side of the model's. `voxel_mm` is a voxel's side in mm.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from ml_collections import ConfigDict
from scipy import ndimage, special
from scipy.spatial import KDTree

from skullgen.core import plugins
from skullgen.core.errors import UserError, in_range, one_of
from skullgen.data import grids, store

RULES = ("probability", "mask", "nearest")  # how a prediction is upsampled: `upsampled_dice`
NATIVE = ("dice_native", "ceiling_native", "hd95_native_mm")
BAND_MM = 10.0
BOOTSTRAP_SKULLS = 10  # fewer than this have a t interval
RESAMPLES = 10_000

Mask = Bool[np.ndarray, "X Y Z"]
Share = Float[np.ndarray, "D D D"] | Bool[np.ndarray, "D D D"]  # of bone, 0 to 1
Voxel = float | int | tuple[float | int, ...] | Float[np.ndarray, " 3"]
Native = tuple[Mask, Float[np.ndarray, "4 4"]]  # a mask and its affine, as of `Store.native`
_FORM = "(prediction, truth, skull, voxel_mm) -> a number or None"


def dice(a: Bool[np.ndarray, "*shape"], b: Bool[np.ndarray, "*shape"]) -> float:
    """Equation 8, `2 |A and B| / (|A| + |B|)`.

    Two empty masks have Dice 0, as in the AutoImplant challenge.
    """
    total = np.count_nonzero(a) + np.count_nonzero(b)
    both = sum(np.count_nonzero(x & y) for x, y in zip(a, b, strict=True))  # no third mask is held
    return 2 * both / total if total else 0.0


def boundary_dice(
    prediction: Mask, truth: Mask, skull: Mask, voxel_mm: Voxel, band_mm: float = BAND_MM
) -> float:
    """AutoImplant's bDSC: Dice over the voxels at most `band_mm` from the defective skull.

    Distances lie between voxel centres; a skull's own voxels have distance 0. Exact, though only
    the box of prediction and truth, padded by the band, is looked at. 0 where both are empty
    within the band, as for `dice`; so also for an empty skull.
    """
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
    """The 95th percentile, in mm, of both directions' surface distances taken together.

    A surface are a mask's voxels with one of their 6 neighbours outside of it, or outside of the
    grid; a voxel's distance is that to the other surface's nearest voxel, between centres;
    percentiles are interpolated linearly (AutoImplant).

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
    distances = [
        _nearest(points[rest] * voxel, others * voxel)
        for points, rest, others in zip(surfaces, alone, surfaces[::-1], strict=True)
    ]
    zeros = np.zeros(sum(map(len, flat)) - sum(map(len, distances)))
    return float(np.percentile(np.concatenate([*distances, zeros]), 95))


def upsampled_dice(
    probability: Share,
    truth: Bool[np.ndarray, "D D D"],
    size: int,
    rule: str = "probability",
    threshold: float = 0.5,
) -> float:
    """Dice at `size`^3 voxels, prediction and truth both upsampled (the paper: `size` 512).

    rule: `probability` is trilinear between the voxels' centres (outside of the outermost ones,
    constant), cut afterwards at `> threshold`; `mask` the same of the mask `probability >=
    threshold`, cut afterwards at `> 0.5`; `nearest` is the voxel of that mask that holds the
    centre. The truth is a mask: trilinear under the first two, nearest under the third.

    Ties: on the model's grid a probability that equals the threshold is bone, as in
    `modules.binarise`; an interpolated value that equals it is not, neither in prediction nor
    truth, so that a perfect mask has Dice 1 under every rule.

    size: any; not only multiples of D. Raises UserError for an unknown rule.
    """
    shares, levels = zip(_cut(probability, rule, threshold), _cut(truth, rule, 0.5), strict=True)
    one, other, both = grids.overlap(shares, levels, size, nearest=rule == "nearest").tolist()
    return 2 * both / (one + other) if both else 0.0


def native_scores(
    probability: Share,
    truth: Bool[np.ndarray, "D D D"],
    model_affine: Float[np.ndarray, "4 4"],
    native: Native,
    rule: str = "probability",
    threshold: float = 0.5,
) -> dict[str, float]:
    """The upsampled prediction against the native truth, and what the best prediction would get.

    Affines are voxel -> RAS mm, their axes parallel in any order and direction. rule, threshold:
    as in `upsampled_dice`.

    Returns `dice_native`; `ceiling_native`, the Dice of `truth` upsampled by the same rule; and
    `hd95_native_mm`. What lies outside of the model's cube is not predicted and counts as missed.
    Raises ValueError where the axes are not parallel, UserError for an unknown rule.
    """
    mask, affine = native
    turn = grids.to_ras(np.linalg.inv(model_affine) @ affine, mask.shape)
    mask, affine = grids.turned(mask, turn), affine @ turn
    nearest, places = rule == "nearest", (model_affine, affine, mask.shape)
    prediction, best = (
        grids.enlarge(share, *places, threshold=level, nearest=nearest)
        for share, level in (_cut(probability, rule, threshold), _cut(truth, rule, 0.5))
    )
    distance = hd95(prediction, mask, np.linalg.norm(affine[:3, :3], axis=0))
    return dict(zip(NATIVE, (dice(prediction, mask), dice(best, mask), distance), strict=True))


def check(settings: ConfigDict) -> None:
    """UserError for what the stage `evaluate` would find wrong with `config.evaluate`."""
    one_of("evaluate.upsampling", settings.upsampling, RULES)
    for field in ("pairs", "batch_size"):
        in_range(f"evaluate.{field}", settings[field], 1)
    in_range("evaluate.cases", settings.cases, 0)
    in_range("evaluate.threshold", settings.threshold, 0.001, 1)
    own(settings)


def own(settings: ConfigDict) -> tuple[str, ...]:
    """The metrics of `config.evaluate.metrics`: dotted names of functions of the user's own.

    Each is `(prediction, truth, skull, voxel_mm) -> number`, or None where it is not defined, of
    bool [D, D, D] on the model's grid. Raises UserError for one that cannot be imported.
    """
    names = plugins.listed(settings.get("metrics", ""))
    for name in names:
        plugins.function("evaluate.metrics", name, _FORM)
    return tuple(dict.fromkeys(names))


def _own(name, masks, voxel_mm, where):
    """The value of a user's own metric: a float or None; UserError for any other."""
    value = plugins.function("evaluate.metrics", name, _FORM)(*masks, voxel_mm)
    if value is None:
        return None
    if np.shape(value) or not np.isreal(value) or not np.isfinite(value):
        what = f"{name} of {where}, is {value!r:.60}: it must be a finite number"
        raise UserError(f"{what}, or None where it is not defined")
    return float(value)


def case(
    real: store.Store,
    row: int,
    probability: Float[np.ndarray, "D D D"],
    rule: str,
    threshold: float,
    own: tuple[str, ...] = (),
) -> dict[str, Any]:
    """All of a prediction's numbers for pair `row`: the task of a worker process.

    rule, threshold: `upsampled_dice`'s. `dice`, `bdsc`, `hd95_mm` are on the model's grid, where
    voxels are cubes. None: what needs a native truth that the pair has not, and `bdsc` on coarse
    grids.
    """
    pair = store.unpack(real.load([row])[0], real.size)
    skull, truth = np.moveaxis(pair, -1, 0)
    prediction, voxel = probability >= threshold, real.attrs["voxel_mm"]
    native = dict.fromkeys(NATIVE)
    if real.has_native(row):
        affine, mask = real.column("affine")[row], real.native(row)
        try:
            native = native_scores(probability, truth, affine, mask, rule, threshold)
        except (ValueError, np.linalg.LinAlgError) as error:
            what = f"pair {row}: its affines fit no grid ({error}): make the store again"
            raise UserError(f"{real.path}: {what}") from None
    masks, where = (prediction, truth, skull), f"{real.path}, pair {row}"
    return {
        "empty": not prediction.any(),
        "dice": dice(prediction, truth),
        # No voxel of the defect is within the band where voxels are larger than it.
        "bdsc": boundary_dice(*masks, voxel) if voxel <= BAND_MM else None,
        "hd95_mm": hd95(prediction, truth, voxel),
        "dice_512": upsampled_dice(probability, truth, 512, rule, threshold),
        **native,
        **{name: _own(name, masks, voxel, where) for name in own},
    }


class Interval(NamedTuple):
    """A mean with its interval over skulls; of one skull low and high are None.

    kind: "bootstrap over skulls", "t over skulls" or "none".
    """

    mean: float
    low: float | None
    high: float | None
    kind: str


def interval(
    values: list[float] | Shaped[np.ndarray, " n"], level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean of one number per skull, with its interval over skulls.

    values: one for each skull (its cases' mean, or a paired difference of such), at least one.
    From ten skulls on the percentile bootstrap over skulls (10,000 resamples by `seed`); from two
    to nine a t interval. Skulls, not cases, are what was drawn: the cases of one skull resemble
    each other.
    """
    values, tail = np.asarray(values, float), (1 - level) / 2
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Interval(mean, None, None, "none")
    if count < BOOTSTRAP_SKULLS:
        half = special.stdtrit(count - 1, 1 - tail) * values.std(ddof=1) / np.sqrt(count)
        return Interval(mean, float(mean - half), float(mean + half), "t over skulls")
    rng, step = np.random.default_rng(seed), max(1, 2**20 // count)
    means = [
        values[rng.integers(count, size=(min(step, RESAMPLES - first), count))].mean(axis=1)
        for first in range(0, RESAMPLES, step)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(mean, float(low), float(high), "bootstrap over skulls")


def _surface(mask):
    """Voxels int [n, 3] of the mask that have one of their 6 neighbours outside of it."""
    sides = grids.box(mask)
    part = mask[sides]
    edge = part & ~ndimage.binary_erosion(part)
    return np.argwhere(edge) + [side.start for side in sides]


def _nearest(points, others):
    """Distances [n] from each of `points` [n, 3] to the nearest of `others`."""
    # SciPy's own choices build twice as long, and are 4 times slower for points far away.
    tree = KDTree(others, leafsize=24, compact_nodes=False, balanced_tree=False)
    return tree.query(points)[0]


def _cut(share, rule, threshold):
    """What a rule upsamples, and the threshold afterwards."""
    one_of("rule", rule, RULES)
    return (share, threshold) if rule == "probability" else (share >= threshold, 0.5)
