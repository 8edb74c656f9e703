"""Surgical defects cut into a complete skull: procedural, seeded, exact.

The five kinds are those of SkullBreak (Kodym et al., Data in Brief 35, 2021, 106902). Rays find
both surfaces of the vault on a chart of directions; a hole is drawn on it in mm, grown to its area,
and carried down the rays through the full thickness.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cc3d
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy import ndimage

from skullgen.core import plugins
from skullgen.core.errors import UserError, one_of
from skullgen.data.grids import Mask

# Each kind's part of [log lowest, log highest] area (of 10 to 150 cm^2: 55 to 150, 20 to 90, 30 to
# 125, 10 to 60, 25 to 150); least and greatest log(length / width); greatest raggedness; middle of
# the turns and greatest turn away from it (parietotemporal: longer from front to back).
_FORM = {
    "bilateral": (0.63, 1.00, 0.12, 0.55, 0.20, 0.0, 0.6),
    "frontoorbital": (0.26, 0.81, 0.0, 0.45, 0.20, 0.0, 0.6),
    "parietotemporal": (0.41, 0.93, 0.0, 0.45, 0.20, np.pi / 2, 0.6),
    "random_1": (0.0, 0.66, 0.0, 0.45, 0.16, 0.0, np.pi),
    "random_2": (0.34, 1.00, 0.0, 0.70, 0.28, 0.0, np.pi),
}
KINDS = tuple(_FORM)
_ARGUMENTS = "(complete, seed, voxel_mm, area_cm2) -> bool [X, Y, Z]"
_CHART = 145  # directions a side: about 2 mm apart on an adult's vault
_RIM = 2 * np.sin(np.deg2rad(62.5))  # the chart ends 125 degrees from the vertex
_OUTSIDE_MM = 8.0  # bumps above the smooth outer surface that go with the hole
_DEEP_MM = 22.0  # thicker than this it is base, not vault
_NO_VAULT = "no vault was found in the complete skull: it must be a head with its top, in RAS axes"


Chart = Float[np.ndarray, "C C"]
Places = tuple[Float[np.ndarray, "2 N"], Float[np.ndarray, " N"]]
Areas = tuple[float, float]
Voxel = float | Sequence[float] | Float[np.ndarray, "3"]  # in mm


class Vault(NamedTuple):
    """The vault on the chart ([C, C], never NaN) and the head's landmarks, in mm."""

    points: np.ndarray  # [C, C, 3], the smooth outer surface
    outer: np.ndarray  # [C, C], its distance from the centre
    inner: np.ndarray  # [C, C], that of the inner surface
    area: np.ndarray  # [C, C], outer surface of each cell in cm^2, 0 where it is open
    closed: np.ndarray  # [C, C], > 0 at openings and at the base
    front: np.ndarray  # [C, C], degrees away from straight ahead
    height: np.ndarray  # [C, C], of the points above the base plane
    centre: np.ndarray  # [3], where the rays start
    origin: np.ndarray  # [3], middle of the braincase
    lift: float  # its height above the base plane
    up: np.ndarray  # [3], normal of the base plane: the head's own up
    length: float  # of the braincase


CELL = 2 * _RIM / (_CHART - 1)  # of a chart, in units of the radius
# Unit vectors [C, C, 3] of Lambert's equal-area chart about +z, and which of them are used.
_A, _B = np.meshgrid(*[np.linspace(-_RIM, _RIM, _CHART)] * 2, indexing="ij")
INSIDE = _A**2 + _B**2 <= _RIM**2
_ROOT = np.sqrt(np.clip(1 - (_A**2 + _B**2) / 4, 0, None))
RAYS = np.stack([_A * _ROOT, _B * _ROOT, 1 - (_A**2 + _B**2) / 2], -1)


def on_chart(vectors: Float[np.ndarray, "3 N"]) -> Places:
    """Chart coordinates [2, N] in cells, and length in mm, of vectors [3, N] from the centre."""
    x, y, z = vectors
    length = np.sqrt(x * x + y * y + z * z) + 1e-6
    scale = np.sqrt(2 / np.maximum(1 + z / length, 1e-3)) / length
    half = (_CHART - 1) / 2
    return np.stack([x * scale, y * scale]) * (half / _RIM) + half, length


def _braincase(complete, voxel):
    """The skull on blocks of about 3 mm, voxels a block [3]; its centre [3] and width in mm."""
    blocks = np.maximum(1, np.rint(3 / voxel).astype(int))
    small = complete.view(np.uint8)
    for axis in np.argsort(complete.strides)[::-1]:  # longest stride first: rows stay contiguous
        small = np.maximum.reduceat(small, np.r_[: small.shape[axis] : blocks[axis]], axis)
    labels = cc3d.connected_components(np.ascontiguousarray(small), connectivity=26)
    skull, cell = labels == np.bincount(labels.ravel())[1:].argmax() + 1, blocks * voxel
    rows = [skull.any(1), skull.any(0)]  # [X or Y, Z]
    first, last = [r.argmax(0) for r in rows], [len(r) - r[::-1].argmax(0) for r in rows]
    width, length = np.where(skull.any((0, 1)), np.subtract(last, first), 0) * cell[:2, None]
    vertex = np.flatnonzero(np.minimum(width, length) >= 0.12 * width.max()).max(initial=0)
    depth = (vertex - np.arange(len(width))) * cell[2]
    # No further down than 0.6 widths: the zygomatic arches and the jaw lie lower.
    running = np.maximum.accumulate(width[::-1])[::-1]
    level = (depth >= 0) & (depth <= 0.6 * running) & (width > 0)
    widest = width[level].max(initial=0)
    level &= depth >= 0.2 * widest
    if not level.any() or min(widest, length[level].max()) < 40:
        raise UserError(_NO_VAULT)
    middle = np.median((np.add(first, last) / 2 * cell[:2, None])[:, level], axis=1)
    return skull, blocks, np.array([*middle, (vertex + 1) * cell[2] - 0.5 * widest]), widest


def _cast(complete, voxel, skull, blocks, centre, reach):
    """Bone along each chart direction: bool [C * C, K]; radii [K] in mm, outermost first."""
    radii = np.arange(reach, 0.25 * reach, -np.clip(voxel.min() / 2, 0.5, 1.0), dtype=np.float32)
    rays = (RAYS / voxel).reshape(-1, 3).astype(np.float32)
    start = (centre / voxel).astype(np.float32)[:, None, None]
    last = np.array(complete.shape, np.int32)[:, None, None] - 1
    hits = np.zeros((len(rays), radii.size), bool)
    for some in np.array_split(np.flatnonzero(INSIDE), 8):  # for the memory's sake
        index = np.floor(rays[some].T[..., None] * radii + start).astype(np.int32)
        there = np.clip(index, 0, last)
        hits[some] = (index == there).all(0) & complete[tuple(there)]
        hits[some] &= skull[tuple(there // blocks[:, None, None])]
    return hits, radii


def _fill(values):
    """Values [C, C] with NaN replaced by the nearest cell that has one."""
    missing = np.isnan(values)
    nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _thickness(hits, first, gap, step):
    """Depth [N] in mm at which bone ends for `gap` mm; NaN where it goes on for 30 mm."""
    steps = np.arange(int(30 / step) + 1)
    index = np.minimum(first[:, None] + steps, hits.shape[1] - 1)
    last = np.maximum.accumulate(np.where(np.take_along_axis(hits, index, 1), steps, 0), 1)
    ended = (steps - last) * step > gap[:, None]
    depth = np.take_along_axis(last, ended.argmax(1)[:, None], 1)[:, 0] + 1
    return np.where(ended.any(1), depth * step, np.nan)


def _rims(raw, centre, top, length):
    """Depth in mm below the vertex of the orbital rims, where rays down the forehead get in."""
    angles, depths = np.deg2rad(np.arange(35, 124, 1.0)), []
    for side in np.deg2rad([*range(-32, -9, 2), *range(10, 33, 2)]):
        rays = np.sin(angles) * np.sin(side), np.sin(angles) * np.cos(side), np.cos(angles)
        cells, _ = on_chart(np.stack(rays))
        radius = np.nan_to_num(raw[tuple(np.rint(cells).astype(int))])
        radius = ndimage.median_filter(radius, 5, mode="nearest")
        inwards = radius < np.maximum.accumulate(radius) - 12
        last = ndimage.minimum_filter1d(inwards.astype(np.uint8), 6, origin=-3).argmax() - 1
        depth = top - centre[2] - radius[last] * np.cos(angles[last])
        if last > 0 and 0.2 * length < depth < 0.65 * length:
            depths.append(depth)
    return np.median(depths) if len(depths) >= 6 else 0.5 * length


def survey(complete: Mask, voxel: Float[np.ndarray, "3"]) -> Vault:
    """All that is known of a skull's vault; voxel: mm. UserError where there is none."""
    if not complete.any():
        raise UserError(_NO_VAULT)
    skull, blocks, centre, width = _braincase(complete, voxel)
    hits, radii = _cast(complete, voxel, skull, blocks, centre, 1.1 * width)
    first, step = hits.argmax(1), radii[0] - radii[1]
    raw = np.where(hits.any(1), radii[first] + step / 2, np.nan).reshape(INSIDE.shape)
    if np.isfinite(raw[INSIDE]).mean() < 0.3:
        raise UserError(_NO_VAULT)
    trend = ndimage.median_filter(_fill(raw)[::3, ::3], 9, mode="nearest")
    trend = trend.repeat(3, 0).repeat(3, 1)[1:-1, 1:-1]
    surface = INSIDE & (raw > trend - 12)  # not the orbits' and foramina's depth
    outer = ndimage.median_filter(_fill(np.where(surface, raw, np.nan)), 5, mode="nearest")
    outer = ndimage.gaussian_filter(outer, 1.5)
    points = centre + outer[..., None] * RAYS

    top = np.percentile(points[INSIDE][:, 2], 99.8)
    ring = points[INSIDE & (np.abs(top - points[..., 2] - 0.42 * width) < 0.18 * width)]
    low, high = np.percentile(ring[:, :2], [0.3, 99.7], axis=0)
    middle, length = (low + high) / 2, (high - low)[1]
    pitch = np.arctan2(0.5 * length - _rims(raw, centre, top, length), 0.47 * length)
    up = np.array([0.0, -np.sin(pitch), np.cos(pitch)])
    base, origin = (np.array([*middle, top - 0.5 * size]) for size in (length, width))
    height, ahead = (points - base) @ up, (points - origin) @ np.cross(up, [1.0, 0.0, 0.0])
    front = np.abs(np.rad2deg(np.arctan2(points[..., 0] - origin[0], ahead)))

    # Gaps between the tables are small, but for the frontal sinus; an orbital rim has no inside.
    brow = (front < 45) & (height < 45)
    deep = _thickness(hits, first, np.where(brow, 14.0, 5.0).ravel(), step).reshape(INSIDE.shape)
    deep = np.where(brow & (height < 25), np.fmin(deep, 18.0), deep)
    vault = surface & (deep < _DEEP_MM)
    if vault[INSIDE & (height > 25)].mean() < 0.3:
        raise UserError(_NO_VAULT)
    inner = _fill(np.where(vault, raw - deep, np.nan))
    inner = ndimage.gaussian_filter(ndimage.minimum_filter(inner, 3), 1.0)
    inner = np.maximum(inner - 1.0 - 0.5 * voxel.max(), outer - _DEEP_MM - 4)

    # Pinholes and thin temporal bone are passed over, openings wider than about 15 mm are not.
    closed = ndimage.gaussian_filter(np.where(vault | ~INSIDE, 0.0, 1.0), 2.5) * 30 - 12
    closed[~INSIDE] = 30.0
    area = np.linalg.norm(np.cross(*np.gradient(points, axis=(0, 1))), axis=-1) / 100
    area *= ndimage.binary_closing(surface, iterations=3)
    chart = points, outer, inner, area, closed, front, height
    return Vault(*chart, centre, origin, (origin - base) @ up, up, length)


def _draw(kind, seed, area_cm2):
    """All random numbers of a defect, in mm, before any voxel is seen."""
    random = np.random.default_rng([int(seed) & (2**64 - 1), KINDS.index(kind)])
    low, high = np.log(area_cm2)
    least, most = _FORM[kind][:2]
    lengths = np.repeat([70.0, 40.0, 24.0, 15.0], 3) * random.uniform(0.85, 1.2, 12)  # mm
    waves = random.standard_normal((12, 3))
    waves *= 2 * np.pi / (np.linalg.norm(waves, axis=1) * lengths)[:, None]
    heights = lengths * random.uniform(0.008, 0.026)
    return {
        "area": np.exp(low + (high - low) * random.uniform(least, most)),
        "side": random.choice([-1.0, 1.0]),
        "place": random.random(3),
        "two": random.random() < 0.35 and kind == "random_2",  # holes
        "shape": random.random((2, 6)),
        "lobes": random.standard_normal((2, 7, 2)) @ [1, 1j],
        "waves": waves,
        "phases": random.uniform(0, 2 * np.pi, 12),
        "pushes": random.standard_normal((12, 3)) * heights[:, None],
    }


def _site(kind, draw, vault):
    """Unit vector [3] from the braincase's middle to the hole's; [C, C] in mm, > 0 off limits."""
    one, two, three = draw["place"]
    radius = np.sqrt(100 * draw["area"] / np.pi)
    sideways = draw["side"] * (vault.points[..., 0] - vault.origin[0])
    limit = np.maximum(vault.closed, 6 - vault.height)
    if kind == "bilateral":
        azimuth, polar = 14 * (one - 0.5), 18 + 42 * two
    elif kind == "frontoorbital":
        azimuth = draw["side"] * (12 + 12 * one + 0.13 * radius)
        above = radius * (0.15 + 0.55 * two) - vault.lift
        polar = np.rad2deg(np.arccos(np.clip(above / (0.5 * vault.length), -0.5, 0.95)))
        floor = np.interp(vault.front, [55, 80], [-4 - 6 * three, 6.0])
        closed = np.where((vault.front < 60) & INSIDE, -6.0, vault.closed)  # open orbits count
        limit = np.maximum(np.maximum(closed, floor - vault.height), -8 - sideways)
    elif kind == "parietotemporal":
        azimuth, polar = draw["side"] * (72 + 50 * one), 48 + 36 * two
        limit = np.maximum(limit, 6 - sideways)
    else:
        azimuth, polar = 360 * one - 180, np.rad2deg(np.arccos(1 - 0.96 * two))
    azimuth, polar = np.deg2rad([azimuth, polar])
    aim = [np.sin(polar) * np.sin(azimuth), np.sin(polar) * np.cos(azimuth), np.cos(polar)]
    return aim @ np.array([[1.0, 0, 0], np.cross(vault.up, [1.0, 0, 0]), vault.up]), limit


def _gauge(kind, draw, vault, points, cell, which):
    """Mean radius in mm [C, C] at which a hole about a cell would reach each of the others."""
    long, square, turned, rough = draw["shape"][which][:4]
    least, most, roughest, middle, away = _FORM[kind][2:]
    stretch, power = np.exp(least + (most - least) * long), 2 + 1.5 * square
    normal = vault.points[cell] - vault.origin
    normal /= np.linalg.norm(normal)
    first = np.cross([0.0, 1.0, 0.0], normal)  # lateral at the vertex, vertical at the side
    first /= np.linalg.norm(first) + 1e-9
    offset = points - points[cell]
    angle = np.arctan2(offset @ np.cross(normal, first), offset @ first)
    angle -= away * (2 * turned - 1) + middle
    far, near = np.cos(angle) / stretch**0.5, np.sin(angle) * stretch**0.5
    ellipse = (np.abs(far) ** power + np.abs(near) ** power) ** (1 / power)
    order = np.arange(2, 9)
    lobes = (np.exp(1j * angle[..., None] * order) @ (draw["lobes"][which] / order**1.2)).real
    rough = roughest - 0.12 + 0.12 * rough
    return np.linalg.norm(offset, axis=-1) * ellipse * np.exp(-rough * lobes)


def _hole(kind, draw, vault, area_cm2):
    """The hole on the chart: [C, C] in mm, negative inside."""
    aim, limit = _site(kind, draw, vault)
    allowed = (limit < -3) & (vault.area > 0)
    relative = vault.points - vault.origin
    seen = relative / np.linalg.norm(relative, axis=-1, keepdims=True)

    def nearest(direction):
        return np.unravel_index(np.where(allowed, seen @ direction, -2).argmax(), allowed.shape)

    cell = nearest(aim)
    if not allowed.any() or not (kind.startswith("random") or seen[cell] @ aim > 0.93):
        raise UserError(f"no {kind} defect can be placed: the complete skull has no vault there")
    push = np.sin(relative @ draw["waves"].T + draw["phases"]) @ draw["pushes"]
    points = vault.points + push
    gauge = _gauge(kind, draw, vault, points, cell, 0)
    if draw["two"]:
        turn, far = draw["shape"][1, 4:] * [2 * np.pi, 0.8] + [0, 1.0]
        away = np.cross(aim, [np.sin(turn), np.cos(turn), 0.3])
        second = nearest(aim + away / np.linalg.norm(away) * far)
        share = 0.4 + 0.35 * draw["shape"][0, 4]
        gauge = np.minimum(gauge, _gauge(kind, draw, vault, points, second, 1) / share)
    limit = limit + 0.4 * push.sum(-1)  # no ruler-straight edge along a limit

    def grow(size):
        inside = np.maximum(gauge - size, limit) < 0
        labels, count = ndimage.label(inside)
        sums = np.bincount(labels.ravel(), vault.area.ravel() * inside.ravel(), count + 1)
        keep = (sums >= 3.0) & draw["two"]
        keep[sums.argmax()] = True
        return keep[labels] & inside, sums[keep].sum()

    room = 0.9 * grow(np.inf)[1]
    if room < area_cm2[0]:
        raise UserError(f"area_cm2 is {area_cm2}: the vault offers {room:.0f} to {kind}: lower it")
    low, high = 0.0, gauge[allowed].max() + 1
    for _ in range(18):
        size = (low + high) / 2
        small = grow(size)[1] < min(draw["area"], room)
        low, high = (size, high) if small else (low, size)
    field = np.maximum(gauge - high, limit)
    others = ndimage.binary_dilation((field < 0) & ~grow(high)[0])
    return np.where(others, np.maximum(field, 1.0), field)


def carve(complete: Mask, voxel: Voxel, vault: Vault, hole: Chart, two: bool) -> Mask:
    """The implant: of one hole its largest piece (26-connected), of two those of 1 cm^3 as well."""
    wide = ndimage.binary_dilation(hole < 0, iterations=2)
    rays = (vault.points[wide] - vault.centre) / vault.outer[wide][:, None]
    depths = np.stack([vault.outer[wide] + _OUTSIDE_MM, vault.inner[wide] - 10])
    ends = (vault.centre + rays * depths[..., None]).reshape(-1, 3) / voxel
    low = np.clip(np.floor(ends.min(0)).astype(int) - 2, 0, complete.shape)
    high = np.clip(np.ceil(ends.max(0)).astype(int) + 3, 0, complete.shape)
    box = tuple(map(slice, low, high))
    bone = complete[box]
    index = np.nonzero(bone)
    start = (low + 0.5) * voxel - vault.centre
    cells, radius = on_chart((np.stack(index, -1) * voxel + start).astype(np.float32).T)
    near = ndimage.map_coordinates(wide.astype(np.uint8), cells, order=0) > 0
    index, cells, radius = tuple(i[near] for i in index), cells[:, near], radius[near]
    maps = np.stack([hole, vault.outer + _OUTSIDE_MM, vault.inner]).astype(np.float32)
    hole, outer, inner = (ndimage.map_coordinates(m, cells, order=1, mode="nearest") for m in maps)
    part, under = np.zeros((2, *bone.shape), bool)
    under[index] = (hole < 0) & (radius > inner - 10)
    part[index] = (hole < 0) & (radius > inner) & (radius < outer)

    least = 1000.0 / np.prod(voxel)
    rest = cc3d.connected_components(bone & ~part, connectivity=26)
    total = np.bincount(rest.ravel())
    crumbs = (total == np.bincount(rest[under], minlength=len(total))) & (total < least)
    crumbs[0] = False
    for axis in range(3):  # what leaves the box may well be held outside it
        crumbs[np.take(rest, [0, -1], axis)] = False
    labels = cc3d.connected_components(part | crumbs[rest], connectivity=26)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    keep = (counts >= least) & two
    keep[counts.argmax()] = counts.any()
    implant = np.zeros_like(complete)
    implant[box] = keep[labels]
    return implant


def kinds_of(config: ConfigDict) -> tuple[str, ...]:
    """The kinds that `config.data.kinds` names, none: `KINDS`; one with a dot is a function."""
    kinds = plugins.listed(config.get("kinds", "")) or list(KINDS)
    for kind in kinds:
        if "." in kind:
            plugins.function("data.kinds", kind, _ARGUMENTS)
        else:
            one_of("data.kinds", kind, (*KINDS, "a function of your own, package.module.function"))
    if len(set(kinds)) < len(kinds) or len(kinds) > 127:  # the column `kind` is int8
        raise UserError(f"data.kinds is {config.kinds!r}: at most 127 kinds, each of them once")
    return tuple(kinds)


def cut(
    complete: Mask,
    kind: str,
    seed: int,
    *,
    voxel_mm: Voxel,
    area_cm2: Areas = (10.0, 150.0),
    vault: Vault | None = None,
) -> tuple[Mask, Mask]:
    """A complete skull with a defect cut into it, and the piece that was taken out.

    `bilateral` lies over the forehead's midline; `frontoorbital` takes a side's forehead and rim;
    `parietotemporal` the vault's side; `random_1` lies anywhere, `random_2` is larger, ragged.

    complete: in RAS axes. seed: settles position, side, size and shape in mm, at any voxel size.
    area_cm2: lowest and highest outer surface; each kind draws from its own part of it. vault: the
    skull's `survey`, which takes longer than a cut.
    """
    if "." in kind:
        own = plugins.function("data.kinds", kind, _ARGUMENTS)
        implant = np.asarray(own(complete, seed, voxel_mm, area_cm2))
        if implant.shape != complete.shape or implant.dtype != bool:
            form = f"{implant.dtype} {list(implant.shape)}"
            raise UserError(f"{kind} returned {form}: it must return bool {list(complete.shape)}")
        implant = implant & complete
    else:
        voxel = np.broadcast_to(np.asarray(voxel_mm, float), 3)
        draw = _draw(one_of("kind", kind, KINDS), seed, area_cm2)
        vault = vault or survey(complete, voxel)
        implant = carve(complete, voxel, vault, _hole(kind, draw, vault, area_cm2), draw["two"])
    if not implant.any() or np.array_equal(implant, complete):
        raise UserError(f"{kind} took {'all' if implant.any() else 'none'} of the bone out")
    return complete & ~implant, implant
