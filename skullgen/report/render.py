"""Shaded pictures of pairs, from arrays to arrays: where to look from, surfaces, light.

D voxels a side, P pixels a side. Volumes are RAS, bool or shares; more than 160 voxels a side are
averaged in blocks first.
"""

import math

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8
from scipy import ndimage

Volume = Shaped[np.ndarray, "D D D"]
Picture = UInt8[np.ndarray, "P P 3"]
Layer = tuple  # nearness [2 P, 2 P], normals [2 P, 2 P, 3], colour
View = tuple[float | int, float | int]  # azimuth, elevation: degrees

# Told apart, also by the colour-blind: from each other and from bone.
BONE = (0.96, 0.89, 0.76)
IMPLANT = (0.05, 0.42, 0.78)
THREE_QUARTER = (35.0, 20.0)

_SIGMA = 0.75  # voxels
# Half of what a plate one voxel thick keeps after the smoothing: the thinnest bone stays visible at
# its full width at half maximum, where 0.5 would drop it.
_LEVEL = 0.5 * math.erf(0.5 / (_SIGMA * math.sqrt(2)))
_MARGIN = 0.06
_LARGEST = 160  # voxels a side


def render(
    skull: Volume, defect: Volume, view: View = THREE_QUARTER, *, pixels: int = 256
) -> Picture:
    """A pair as shaded surfaces: the skull in bone colour, its defect in blue, on white.

    The surface is that of a volume smoothed by 0.75 voxel; thin bone and narrow holes are kept.
    The projection is orthographic and centred on the pair; 0.9 of the frame's edge spans it, more
    where the pair would not fit. Azimuth 0 is the frontal view (the patient's right on the
    picture's left), 90 the patient's right, 180 the back; elevation 90 is from above.
    """
    return shade(*layers(skull, defect, view, pixels))


def largest_part(volume: Volume) -> Integer[np.ndarray, "M 3"]:
    """The voxels of the largest connected part of shares above 0.3.

    The whole defect's centre would not do: between the two holes of a bilateral one lies the brain.
    """
    labels, parts = ndimage.label(volume > 0.3, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    return np.argwhere(labels == 1 + np.argmax(sizes[1:]) if parts else labels)


def direction(skull: Volume, defect: Volume) -> Float[np.ndarray, "3"]:
    """The unit vector from a pair's middle to the largest part of its defect; zeros without one."""
    skull, defect = _shares(skull), _shares(defect)
    part = largest_part(defect)
    if not len(part):
        return np.zeros(3)
    inside = np.argwhere((skull > 0.3) | (defect > 0.3))
    away = part.mean(0) - (inside.min(0) + inside.max(0)) / 2
    return away / max(np.linalg.norm(away), 1e-6)


def look(towards: Float[np.ndarray, "3"]) -> View:
    """The view that sees what lies in a direction obliquely.

    From its side, turned to the face and somewhat upwards; the three-quarter view for zeros.
    """
    x, y, z = towards
    if not np.any(towards):
        return THREE_QUARTER
    elevation = float(np.clip(0.7 * math.degrees(math.atan2(z, math.hypot(x, y))) + 8, -25, 60))
    azimuth = math.degrees(math.atan2(x, y))
    oblique = azimuth - math.copysign(28, azimuth)
    return (oblique if math.hypot(x, y) > 0.3 else THREE_QUARTER[0]), elevation


def layers(skull: Volume, defect: Volume, view: View, pixels: int) -> tuple[list[Layer], float]:
    """The surfaces of skull and defect as `shade` takes them, and the picture's edge in voxels."""
    skull, defect = _shares(skull), _shares(defect)
    camera = _camera(*view)
    seen = np.concatenate([np.argwhere(skull > 0), np.argwhere(defect > 0)]) @ camera.T
    seen = seen if len(seen) else np.full((1, 3), len(skull) / 2)
    low, high = seen.min(0), seen.max(0)
    pivot = (low + high) / 2 @ camera
    # One scale for all, so that skulls keep their sizes; only what is too large is shrunk to fit.
    span = max(0.9 * len(skull), 1.04 * ((high - low)[:2].max() + 2))
    grid = (np.arange(2 * pixels) + 0.5 - pixels) * span / (2 * pixels)
    bone = (*_march(skull, camera, pivot, grid), BONE)
    piece = (*_march(defect, camera, pivot, grid), IMPLANT)
    return [bone, piece], span


def shade(layers: list[Layer], span: float) -> Picture:
    """The nearest of some layers on white, at equal depth the later.

    span: the picture's edge in voxels; rays are averaged two by two.
    """
    nearness, normals, colour = layers[0]
    colour = np.broadcast_to(np.float32(colour), normals.shape)
    for other, turned, tint in layers[1:]:
        wins = ((other >= nearness) & (other > -np.inf))[..., None]
        nearness = np.maximum(other, nearness)
        normals, colour = np.where(wins, turned, normals), np.where(wins, np.float32(tint), colour)
    hit = nearness > -np.inf
    depth = np.where(hit, (nearness.max() if hit.any() else 0) - nearness, 0) / span
    depth = depth.astype(np.float32)
    # What lies behind its surroundings gets less light (Luft et al. 2006, unsharp masked depth).
    light, weight = 1 - 0.4 * np.clip(depth - 0.15, 0, 1), hit.astype(np.float32)
    for radius, strength in ((0.012, 5.0), (0.05, 3.5)):
        sigma = radius * len(hit)
        around, mass = (ndimage.gaussian_filter(a, sigma, truncate=2.5) for a in (depth, weight))
        light = light * np.exp(-strength * np.maximum(depth - around / np.maximum(mass, 1e-3), 0))
    lamps = np.float32([[-0.45, 0.65, 0.75], [0.75, 0.05, 0.5], [-0.45, 0.65, 1.85]])
    lamps /= np.linalg.norm(lamps, axis=1, keepdims=True)
    key, fill, gloss = np.moveaxis(np.maximum(normals @ lamps.T, 0), -1, 0)
    shade = (light * (0.36 + 0.60 * key + 0.24 * fill))[..., None]
    # Shadows lose blue first, as bone's do; grey ones look like plaster.
    picture = colour * shade ** np.float32([0.95, 1.05, 1.15])
    picture = np.clip(picture + (0.1 * light * gloss**40)[..., None], 0, 1)
    side = len(hit) // 2
    picture = np.where(hit[..., None], picture, 1).reshape(side, 2, side, 2, 3).mean((1, 3))
    return np.rint(picture * 255).astype(np.uint8)


def _shares(volume):
    """A cube as float32 shares in [0, 1], averaged in blocks to `_LARGEST` a side."""
    if volume.dtype != bool:
        volume = np.clip(np.nan_to_num(volume.astype(np.float32), nan=0), 0, 1)
    total = np.uint16 if volume.dtype == bool else np.float32  # 512^3 floats would take 0.5 GB
    block = -(-len(volume) // _LARGEST)
    for axis in range(3):
        starts = np.arange(0, volume.shape[axis], block)
        volume = np.add.reduceat(volume, starts, axis=axis, dtype=total)
    return volume.astype(np.float32) / block**3


def _camera(azimuth, elevation):
    """The rows (picture's right, picture's up, towards the camera) [3, 3] in RAS."""
    a, e = math.radians(azimuth), math.radians(elevation)
    towards = (math.sin(a) * math.cos(e), math.cos(a) * math.cos(e), math.sin(e))
    up = (-math.sin(a) * math.sin(e), -math.cos(a) * math.sin(e), math.cos(e))
    return np.stack([np.cross(up, towards), up, towards])


def _field(volume):
    """Smooth shares [D, D, D] into the field whose level `_LEVEL` is the surface.

    The centres of bone voxels are held inside it, so that no thin bone vanishes, and those of empty
    voxels that lie between two bone voxels in a passage are held outside, so that no hole closes.
    """
    field = ndimage.gaussian_filter(volume, _SIGMA, mode="constant")
    bone, empty = volume >= 0.5, volume <= 0.02
    across, through = np.zeros_like(bone), np.zeros_like(bone)
    for axis in range(3):
        across |= ndimage.correlate1d(np.uint8(bone), [1, 0, 1], axis, mode="constant") == 2
        through |= ndimage.correlate1d(np.uint8(empty), [1, 0, 1], axis, mode="constant") == 2
    field = np.where(bone, np.maximum(field, _LEVEL + _MARGIN), field)
    return np.where(empty & across & through, np.minimum(field, _LEVEL - _MARGIN), field)


def _march(volume, camera, pivot, grid):
    """Where the rays of an orthographic camera first meet a surface: nearness, normals.

    pivot: the voxel [3] in the picture's middle. grid: the pixels' places [P] along its edge in
    voxels from there. Nearness [P, P] is in voxels from the pivot towards the camera, -inf where a
    ray meets nothing; unit normals [P, P, 3] are along the camera's rows.
    """
    nearness = np.full((len(grid), len(grid)), -np.inf, np.float32)
    normals = np.zeros((*nearness.shape, 3), np.float32)
    seen = (np.argwhere(volume > 0) - pivot) @ camera.T
    if not len(seen):
        return nearness, normals
    step = float(np.clip(len(volume) / 128, 1 / 3, 1))
    low, high = seen.min(0) - 2, seen.max(0) + 2
    right, up, near = (np.arange(a, b + step, step) for a, b in zip(low, high, strict=True))
    pad = 4  # so that surfaces close outside the frame
    field = _field(np.pad(volume, pad))
    turned = ndimage.affine_transform(
        field,
        np.stack([-camera[2], camera[1], camera[0]], 1) * step,  # depth from the front, up, right
        pivot + pad + (right[0], up[0], near[-1]) @ camera,
        (len(near), len(up), len(right)),
        order=3 if step < 1 else 1,
    )
    rows = np.flatnonzero((-grid > up[0]) & (-grid < up[-2]))
    columns = np.flatnonzero((grid > right[0]) & (grid < right[-2]))
    i, a = np.divmod((-grid[rows, None] - up[0]) / step, 1)
    j, b = np.divmod((grid[columns] - right[0]) / step, 1)
    i, j, a, b = i[:, 0].astype(int), j.astype(int), np.float32(a), np.float32(b)
    found = np.full((len(rows), len(columns)), -np.inf, np.float32)
    before = np.zeros_like(found)
    for depth, plane in zip(near[::-1], turned, strict=True):
        # No matrix products: BLAS threads of many processes fight over the cores.
        here = plane[i] * (1 - a) + plane[i + 1] * a
        here = here[:, j] * (1 - b) + here[:, j + 1] * b
        hit = np.nonzero((here >= _LEVEL) & (found == -np.inf))
        fraction = (here[hit] - _LEVEL) / np.maximum(here[hit] - before[hit], 1e-6)
        found[hit] = depth + step * np.clip(fraction, 0, 1)
        before = here
    nearness[np.ix_(rows, columns)] = found
    hit = np.nonzero(nearness > -np.inf)
    points = np.stack([grid[hit[1]], -grid[hit[0]], nearness[hit]], 1) @ camera + pivot + pad
    normals[hit] = _normals(field, points, camera)
    return nearness, normals


def _normals(field, points, camera):
    """Unit normals [n, 3] along the camera's rows at points [n, 3] of a surface."""
    # Of a smoother field: the stairs leave the shading, and the shape stays.
    smooth = ndimage.gaussian_filter(field, 1.0)
    slopes = (ndimage.sobel(smooth, axis) for axis in range(3))
    slopes = [ndimage.map_coordinates(slope, points.T, order=1) for slope in slopes]
    normal = -np.stack(slopes, 1) @ camera.T
    normal[:, 2] = np.maximum(normal[:, 2], 0) + 1e-6
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)
