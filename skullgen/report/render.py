"""Pairs seen in 3-D: shaded pictures as arrays.

D voxels a side, P pixels a side. Volumes are RAS, bool or shares; more than `LARGEST` voxels a side
are averaged in blocks first.
"""

import math

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8
from scipy import ndimage
from skimage.measure import block_reduce

Volume = Shaped[np.ndarray, "D D D"]
Pair = Shaped[np.ndarray, "D D D 2"]
Picture = UInt8[np.ndarray, "P P 3"]
Vector = Float[np.ndarray, "3"]
View = tuple[float | int, float | int]  # azimuth, elevation: degrees

COLOURS = np.float32([(0.96, 0.89, 0.76), (0.05, 0.42, 0.78)])  # of bone and implant
THREE_QUARTER = (35.0, 20.0)
LAMP = np.float32([-0.41, 0.6, 0.69])  # to the right, upwards, towards the camera
SIGMA = 0.75  # voxels
LEVEL = 0.25  # half of what a smoothed plate one voxel thick keeps, so that it stays whole
LARGEST = 160  # voxels a side of what is drawn
PAD = 4  # voxels, so that surfaces close outside the frame


def render(
    skull: Volume, defect: Volume, view: View = THREE_QUARTER, pixels: int = 256
) -> tuple[Picture, Picture]:
    """A skull in bone colour on white, without its defect and with it, in blue.

    The projection is orthographic and centred on the pair. Azimuth 0 is the frontal view (the
    patient's right on the picture's left), 90 the patient's right; elevation 90 is from above.
    """
    camera = _camera(*view)
    fields = [_field(volume) for volume in (skull, defect)]
    seen = np.argwhere(np.maximum(*fields) > LEVEL) @ camera.T
    seen = seen if len(seen) else np.zeros((1, 3))
    low, high = seen.min(0), seen.max(0)
    pivot = (low + high) / 2 @ camera
    # One scale for all, so that skulls keep their sizes; only what is too large is shrunk to fit.
    span = max(0.9 * (len(fields[0]) - 2 * PAD), 1.04 * ((high - low)[:2].max() + 2))
    surfaces = [_surface(field, camera, pivot, span, pixels) for field in fields]
    return _shade(surfaces[:1], span), _shade(surfaces, span)


def largest_part(volume: Volume) -> Integer[np.ndarray, "M 3"]:
    """The voxels of the largest connected part: between two holes of a bilateral one is brain."""
    labels, parts = ndimage.label(volume > 0.3, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    return np.argwhere(labels == 1 + np.argmax(sizes[1:]) if parts else labels)


def direction(pair: Pair) -> Vector:
    """The unit vector from a pair's middle to the largest part of its defect; zeros without one."""
    part = largest_part(pair[..., 1])
    if not len(part):
        return np.zeros(3)
    inside = np.argwhere((pair > 0.3).any(-1))
    away = part.mean(0) - (inside.min(0) + inside.max(0)) / 2
    return away / max(np.linalg.norm(away), 1e-6)


def look(towards: Vector) -> View:
    """The view that sees what lies in a direction obliquely, turned to the face."""
    x, y, z = towards
    if not np.any(towards):
        return THREE_QUARTER
    elevation = float(np.clip(0.7 * math.degrees(math.atan2(z, math.hypot(x, y))) + 8, -25, 60))
    azimuth = math.degrees(math.atan2(x, y))
    oblique = azimuth - math.copysign(28, azimuth)
    return (oblique if math.hypot(x, y) > 0.3 else THREE_QUARTER[0]), elevation


def _camera(azimuth, elevation):
    """The rows (picture's right, picture's up, towards the camera) [3, 3] in RAS."""
    a, e = math.radians(azimuth), math.radians(elevation)
    towards = (math.sin(a) * math.cos(e), math.cos(a) * math.cos(e), math.sin(e))
    up = (-math.sin(a) * math.sin(e), -math.cos(a) * math.sin(e), math.cos(e))
    return np.stack([np.cross(up, towards), up, towards])


def _field(volume):
    """Shares of voxels, smooth, in which what is thin stays as it was."""
    shares = block_reduce(volume, -(-len(volume) // LARGEST), np.mean).astype(np.float32)
    shares = np.pad(shares, PAD)
    return np.maximum(ndimage.gaussian_filter(shares, SIGMA), 2 * LEVEL * shares)


def _surface(field, camera, pivot, span, pixels):
    """Where the rays of the camera first meet a surface.

    Nearness [P, P], voxels from the pivot towards the camera (far behind where nothing is met);
    normals [P, P, 3] along the camera's rows; the share of a pixel that is covered [P, P].
    """
    inside = (np.argwhere(field > LEVEL) - pivot) @ camera[2]
    near, far = inside.max(initial=0) + 2, inside.min(initial=0) - 2
    step = float(np.clip(len(field) / 128, 1 / 3, 1))
    count = math.ceil(span / step) + 1
    axes = np.stack([-camera[2], -camera[1], camera[0]], 1) * [step, *[span / (count - 1)] * 2]
    corner = pivot + np.array([-span / 2, span / 2, near]) @ camera
    shape = math.ceil((near - far) / step), count, count
    turned = ndimage.affine_transform(field, axes, corner, shape, order=1)  # depth, down, right
    places = (np.arange(pixels) + 0.5) * (count - 1) / pixels
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count))).astype(np.float32)
    rays = weights @ turned @ weights.T
    first = (rays > LEVEL).argmax(0)
    here, before = (np.take_along_axis(rays, first[None] - k, 0)[0] for k in (0, 1))
    depth = first - np.clip((here - LEVEL) / np.maximum(here - before, 1e-6), 0, 1)
    points = np.stack([depth, *np.meshgrid(places, places, indexing="ij")])
    # Of a smoother field: the stairs leave the shading, and the shape stays.
    slopes = np.gradient(ndimage.gaussian_filter(turned, 1 / step))
    inwards, down, right = (ndimage.map_coordinates(x, points, order=1) for x in slopes)
    normals = np.stack([-right, down, np.maximum(inwards, 0) + 1e-6], -1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    cover = np.clip((rays.max(0) - LEVEL) / (0.4 * span / pixels), 0, 1)
    return np.where(here > LEVEL, near - step * depth, -2 * span), normals, cover


def _shade(surfaces, span):
    """The nearest of some surfaces on white, each in its colour, lit by one lamp."""
    nearness, normals, cover = map(np.stack, zip(*surfaces, strict=True))
    front = nearness.argmax(0)
    normals = np.take_along_axis(normals, front[None, ..., None], 0)[0]
    depth = np.minimum((nearness.max() - nearness.max(0)) / span, 1)
    # What lies behind its surroundings gets less light (Luft et al. 2006, unsharp masked depth).
    behind = np.maximum(depth - ndimage.gaussian_filter(depth, 0.03 * len(depth)), 0)
    light = (1 - 0.4 * depth) * np.exp(-5 * behind) * (0.4 + 0.7 * np.maximum(normals @ LAMP, 0))
    cover = cover.max(0)[..., None]
    picture = 1 - cover + cover * np.minimum(COLOURS[front] * light[..., None], 1)
    return np.rint(255 * picture).astype(np.uint8)
