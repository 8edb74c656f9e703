"""Crania grown from published anthropometry: the data that needs no download.

Everything is drawn in *standard millimetres* (X to the right, Y to the front, Z up from the floor
of the frame, for a cranium 180 mm long, 140 mm broad, with its vertex at Z 125 and its greatest
length at Z 44) and then stretched to the lengths of the individual.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from skullgen.data.grids import FIELD_MM, VERTEX_MM

EQUATOR = 44.0  # standard Z of glabella and opisthocranion, the centre of the radial vault

# GOL, XCB and BBH in mm: Norse men (55) and women (55), Berg men (54) and women (53).
MEANS = np.array(
    [[188.5, 141.9, 131.7], [180.0, 136.3, 126.0], [180.5, 147.6, 130.4], [170.5, 140.4, 124.4]]
)
SPREADS = np.array([6.04, 4.80, 4.59])
CORRELATION = np.array([[1.0, 0.197, 0.031], [0.197, 1.0, 0.144], [0.031, 0.144, 1.0]])

# (X, Y, Z) direction from the centre, width in radians, mean and spread of the swelling in mm.
RELIEF = (
    ((0.50, 0.75, 0.40), 0.35, 2.5, 1.3),  # frontal eminences
    ((0.00, 0.72, 0.69), 0.40, -1.5, 2.8),  # slope of the forehead
    ((0.00, 1.00, -0.04), 0.14, 2.5, 1.2),  # glabella
    ((0.38, 0.92, -0.02), 0.16, 3.0, 1.2),  # brow ridges
    ((0.72, -0.35, 0.60), 0.35, 3.5, 2.0),  # parietal eminences
    ((0.00, 0.10, 1.00), 0.40, 0.5, 1.8),  # vertex
    ((0.00, -0.80, 0.60), 0.30, -1.5, 2.0),  # flat lambda
    ((0.00, -1.00, 0.02), 0.28, 2.0, 2.5),  # occipital bun
    ((0.00, -0.95, -0.28), 0.10, 2.0, 1.2),  # inion
    ((0.00, -0.70, -0.70), 0.35, -3.0, 1.5),  # nuchal plane
    ((0.75, 0.62, -0.22), 0.24, -4.5, 1.5),  # behind the orbits
    ((0.97, 0.05, -0.20), 0.30, 0.0, 1.5),  # temporal squama
    ((0.85, -0.40, -0.35), 0.25, 2.0, 1.5),  # above the mastoids
)
THICKNESS = (
    ((0.00, 0.85, 0.50), 0.50, 1.0, 0.8),  # frontal bone
    ((0.95, -0.20, 0.30), 0.40, -0.8, 0.5),  # euryon
    ((0.97, 0.15, -0.20), 0.40, -1.8, 0.4),  # temporal squama
    ((0.80, 0.55, -0.05), 0.30, -1.0, 0.4),  # pterion
    ((0.00, -0.90, 0.25), 0.50, 1.3, 0.9),  # occipital squama
    ((0.00, -0.95, -0.28), 0.18, 5.0, 1.5),  # occipital protuberance
    ((0.45, -0.75, -0.50), 0.25, -1.2, 0.6),  # cerebellar fossae
)
BARS = (  # of the face, from where to where, radius and fillet in standard mm
    ((50, 66, 12), (46, 70, 2), 7.0, 4),
    ((50, 66, 14), (50, 66, 40), 3.8, 4),
    ((50, 65, 40), (44, 52, 56), 3.5, 5),
    ((8, 83, 44), (46, 68, 46), 4.5, 6),
    ((53, 62, 9), (60.5, 42, 8), 4.2, 4),
    ((60.5, 42, 8), (62, 20, 9), 3.8, 3),
    ((62, 20, 9), (60, 0, 15), 4.2, 3),
)
VAULT = 5.2  # mm, mean thickness before the map above
THINNEST = 4.5  # mm, so that a grid of 6.4 mm voxels still closes
SQUAMA = (0.97, 0.15, -0.2)  # direction of the thin temporal bone
Range = tuple[float | int, float | int]
Lengths = Float[np.ndarray, "3"]


class Variety(NamedTuple):
    """How far phantoms go beyond anthropometry; as it stands here, not at all."""

    spread: float = 1.0  # standard deviations of the three lengths, times this
    thickness: Range = (1.0, 1.0)  # of the bone, times this; thinnest and thickest 2 and 12 mm
    asymmetry: float = 0.022  # standard deviation of the oblique skew (plagiocephaly .05 to .1)
    faceless: float = 0.0  # share without a face, as masks of the braincase alone
    floor_mm: Range = (0.0, 0.0)  # of the frame's floor, where a scan ends
    pinholes: int = 0  # at most, of 0.5 to 2 mm radius
    temporal: float = 0.0  # share of sides whose squama is open, for 3 to 10 mm
    rough_mm: float = 0.0  # standard deviation of both surfaces, voxel by voxel


# Thickness of living skulls, newborns' to hyperostotic ones'; scans with and without a face, cut
# below the vault or at the foramen magnum; MR's and CT's threshold and noise.
USUAL, VARIED = Variety(), Variety(2.0, (0.5, 1.8), 0.06, 0.5, (0.0, 25.0), 8, 0.3, 0.4)


def individual(seed: int, spread: float = 1.0) -> tuple[np.random.Generator, Lengths]:
    """The generator of a seed and what it draws first: GOL, XCB and BBH in mm.

    One of four groups (two series, two sexes) is drawn evenly, then a normal of its mean and the
    pooled spreads and correlations of 217 adults of the Norse and Berg series of W. W. Howells,
    Papers of the Peabody Museum 67, 1973, and 79, 1989. spread: multiplies the deviations.
    """
    draw = np.random.default_rng(seed)
    mean = MEANS[draw.integers(len(MEANS))]
    deviation = np.linalg.cholesky(CORRELATION) @ draw.standard_normal(3)
    return draw, mean + spread * SPREADS * deviation


def affine(size: int) -> Float[np.ndarray, "4 4"]:
    """From voxel indices (centres) of a `size`^3 frame to RAS mm, 0 in its middle."""
    step = FIELD_MM / size
    start = (step - FIELD_MM) / 2
    return np.array([[step, 0, 0, start], [0, step, 0, start], [0, 0, step, start], [0, 0, 0, 1]])


def skull(seed: int, size: int = 128, variety: Variety = USUAL) -> Bool[np.ndarray, "D D D"]:
    """The cranium of individual `seed`, in RAS, in a cube of 204.8 mm.

    Centred, the top of the bone 125 mm above the floor. The frame ends above most people's basion:
    the base is pressed into what is left, the face ends at the floor. The vault has 4.5 to 8 mm, in
    the pattern of del Olmo Lianes et al., Anthropol. Sci. 127, 2019, independent of sex and size
    (Lynnerup, Forensic Sci. Int. 117, 2001; De Boer et al., Int. J. Legal Med. 130, 2016); a real
    temporal squama is thinner, but would be holes in a coarse grid. Other shape is drawn by eye.
    """
    step = np.float32(affine(size)[0, 0])
    draw, (length, breadth, height) = individual(seed, variety.spread)
    beyond = np.random.default_rng([seed, 1])  # what anthropometry does not know
    radii, scale, middle = _braincase(draw, beyond.uniform(*variety.thickness), variety.asymmetry)
    face = draw.standard_normal(7)
    ticks = (np.arange(size, dtype=np.float32) + 0.5) * step
    side, front = ((ticks - FIELD_MM / 2) / np.float32(v) for v in (breadth / 140, length / 180))
    low = VERTEX_MM - 81 / 128 * height
    below, above = ticks * (EQUATOR / low), EQUATOR + (ticks - low) * 81.0 / (VERTEX_MM - low)
    up = np.where(ticks < low, below, above).astype(np.float32)
    grid = np.ix_(np.abs(side) < 82, np.abs(front) < 106, up < 126)
    x, y, z = (line[index] for line, index in zip((side, front, up), grid, strict=True))

    p = x / scale[0] + middle[0], y / scale[1] + middle[1], (z - EQUATOR) / scale[2]
    r = np.sqrt(_dot(p, p))
    tilt, turn = np.arcsin(p[2] / np.maximum(r, 1e-3)), np.arctan2(p[0], p[1])
    place = np.broadcast_arrays(tilt * (180 / np.pi) + 90, turn * (180 / np.pi) + 180)
    outer, inner = (ndimage.map_coordinates(t, place, order=1, mode="nearest") for t in radii)
    rough = (_roughness(beyond, r.shape, variety.rough_mm) for _ in range(2))
    outer, inner = (surface + noise for surface, noise in zip((outer, inner), rough, strict=True))
    floor, under = _base(face, x, y)
    solid = np.maximum(r - outer, under - z)
    if beyond.random() >= variety.faceless:
        lower = solid[..., : np.count_nonzero(z < 62)]  # no face above
        added, carved = _face(face, x, y, z[..., : lower.shape[2]])
        lower[:] = np.maximum(_blend(lower, added, 7), -carved)
    cavity = (r < inner) & (z > floor)
    foramen = ((x / 14.5) ** 2 + ((y + 23) / 18) ** 2 < 1) & (z < 24)
    bone = (solid < 0) & ~cavity & ~foramen
    _pierce(beyond, bone, (x, y, z - EQUATOR), variety)
    bone[..., : round(beyond.uniform(*variety.floor_mm) / step)] = False
    labels, _ = ndimage.label(bone)
    out = np.zeros((size, size, size), bool)
    out[grid] = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    return out


def _roughness(draw, shape, mm):
    """Noise of neighbouring voxels, of this standard deviation."""
    if not mm:
        return np.float32(0)
    noise = ndimage.gaussian_filter(draw.standard_normal(shape, np.float32), 1.0)
    return noise * np.float32(mm / noise.std())


def _pierce(draw, bone, place, variety):
    """Takes pinholes and open temporal squamae out of `bone`, along rays from the centre."""
    sides = np.array([[1, 1, 1], [-1, 1, 1]]) * SQUAMA
    open_sides = sides[draw.random(2) < variety.temporal]
    count = draw.integers(variety.pinholes + 1)
    holes = np.concatenate([open_sides, draw.standard_normal((count, 3))])
    radii = np.r_[draw.uniform(3, 10, len(open_sides)), draw.uniform(0.5, 2, count)]
    index = np.nonzero(bone)
    points = np.stack([np.broadcast_to(p, bone.shape)[index] for p in place], 1)
    for way, radius in zip(holes, radii, strict=True):
        way = way / np.linalg.norm(way) + 0.1 * draw.standard_normal(3) * (radius > 2)
        along = points @ way / np.linalg.norm(way)
        near = (points**2).sum(1) - along**2 < radius**2
        bone[tuple(i[near & (along > 0)] for i in index)] = False


def _dot(p, q):
    """p . q of three coordinates each, which need not be of one shape: grids stay sparse."""
    return p[0] * q[0] + p[1] * q[1] + p[2] * q[2]


def _waves(draw, u):
    """Smooth noise of unit variance on directions `u` [3, ...]: twenty plane waves."""
    angles = (_dot(draw.standard_normal(3) * 3, u) + draw.uniform(0, 2 * np.pi) for _ in range(20))
    return sum(np.cos(angle) for angle in angles) * np.sqrt(2 / 20)


def _swellings(draw, u, table):
    """The sum of the bumps of `table`, mirrored left to right, on directions `u` [3, ...]."""
    out = np.zeros(u.shape[1:])
    beside = np.sqrt(u[0] ** 2 + 0.015)  # |X| would leave a crease in the midline
    for where, width, mean, spread in table:
        cosine = _dot(where / np.linalg.norm(where), (beside, u[1], u[2]))
        out += (mean + spread * draw.standard_normal()) * np.exp((cosine - 1) / width**2)
    return out


def _braincase(draw, thickness, asymmetry):
    """Both surfaces by elevation, azimuth: mm [2, 181, 361]; scale [3], middle [2] to standard."""
    tilt = np.linspace(-np.pi / 2, np.pi / 2, 181)[:, None]
    turn = np.linspace(-np.pi, np.pi, 361)
    u = np.cos(tilt) * np.sin(turn), np.cos(tilt) * np.cos(turn), np.sin(tilt)
    u = np.stack(np.broadcast_arrays(*u))
    # A superellipsoid, narrower in front, on which the relief is laid.
    power = 2.25 + 0.09 * draw.standard_normal()
    narrow = 0.09 + 0.05 * draw.standard_normal()
    axes = 70 * (1 - narrow * np.maximum(u[1] + 0.2, 0) ** 2), 90, np.where(u[2] > 0, 81.0, 54.0)
    outer = sum((np.abs(v) / axis) ** power for v, axis in zip(u, axes, strict=True))
    outer = outer ** (-1 / power) + _swellings(draw, u, RELIEF)
    keel = np.clip(u[2] / 0.4, 0, 1) * np.clip(1 - 2 * u[1], 0, 1) * _bell(u[0], 0.14)
    outer += np.abs(0.8 + 0.6 * draw.standard_normal()) * keel
    outer *= 1 + asymmetry * draw.standard_normal() * u[0] * u[1]
    outer += 1.2 * _waves(draw, u)
    # Stretched so that length, breadth and vertex come out exactly as drawn.
    point = outer * u
    above = point[2] > -14
    wide, front = point[0][above], point[1][above & (np.abs(point[0]) < 12)]
    scale = np.array([140 / np.ptp(wide), 180 / np.ptp(front), 81 / point[2].max()], np.float32)
    middle = [(wide.max() + wide.min()) / 2, (front.max() + front.min()) / 2]
    thick = VAULT + _swellings(draw, u, THICKNESS) + 0.5 * _waves(draw, u)
    thick += 0.8 * _bell(u[0], 0.12) * np.clip(u[2] / 0.2, 0, 1)
    thick = thick * np.exp(0.17 * draw.standard_normal()) * thickness
    least = THINNEST * min(thickness, 1.0)
    thick = least + np.logaddexp(0, 1.5 * (thick - least)) / 1.5
    rise, run = np.gradient(outer, tilt[:, 0], turn) / outer
    secant = np.sqrt(1 + rise**2 + (run / np.maximum(np.cos(tilt), 0.1)) ** 2)
    inner = outer - thick * np.minimum(secant, 1.5)
    return np.stack([outer, inner]).astype(np.float32), scale, np.array(middle, np.float32)


def _step(value, width):
    """A smooth step from 0 to 1 around 0."""
    return 1 / (1 + np.exp(-np.clip(value / width, -30, 30)))


def _bell(value, width):
    return np.exp(-((value / width) ** 2))


def _base(f, x, y):
    """Standard Z of the upper and lower surface of the skull base at each (X, Y)."""
    a = np.abs(x)
    roof = 43 + f[0] + 5 * _bell(a - 32, 16) * _bell(y - 62, 22) - 6 * _bell(a, 7)
    middle = 16 + 0.8 * f[1] + 17 * _bell(a, 15) - 5 * _bell(a, 8) * _bell(y - 12, 5)
    clivus = np.clip(y + 4, 0, 20) * 1.35 * _bell(a, 16)
    hind = 9 + clivus + 8 * _bell(a, 3) * _step(-62 - y, 4)
    wing = 24 + 0.004 * a * a
    petrous = 9 - 0.62 * a
    back = hind + (middle - hind) * _step(y - petrous, 3)
    back += 14 * _bell(y - petrous, 6) * _step(a - 12, 3)
    floor = back + (roof - back) * _step(y - wing, 1.5)
    # Below, the occipital rises backwards, the temporal outwards, the sphenoid to the roof.
    below = 3.5 + 0.0022 * (a * a + (y + 23) ** 2) + 5 * _step(y - petrous + 4, 5)
    below = np.minimum(below, floor - 3)
    wall = wing + 12 - 0.0012 * a * a
    return floor, below + (roof - 2.6 - below) * _step(y - wall, 3)


def _capsule(x, y, z, start, end, radius):
    """Signed distance to the segment from `start` to `end`, thickened by `radius`."""
    p, v = (x - start[0], y - start[1], z - start[2]), np.subtract(end, start, dtype=np.float32)
    t = np.clip(_dot(p, v) / (v @ v), 0, 1)
    off = [a - t * b for a, b in zip(p, v, strict=True)]
    return np.sqrt(_dot(off, off)) - radius


def _blend(one, other, width):
    """Smooth minimum: the union of two solids with a fillet of about `width` mm."""
    h = np.maximum(width - np.abs(one - other), 0) / width
    return np.minimum(one, other) - h * h * width / 4


def _face(f, x, y, z):
    """Nearly signed distances (standard mm) to the solid face and to what is carved out of it."""
    a = np.abs(x)
    plane = 88 + 0.8 * f[2] - 0.0068 * a * a - 0.10 * np.maximum(32 - z, 0)
    # The orbit: a cone whose section is a rounded rectangle, 39 x 33 mm at its mouth.
    apex, mouth = np.array([10.0, 36.0, 29.0]), np.array([33.0, 84.0, 24.5])
    axis = (mouth - apex) / np.linalg.norm(mouth - apex)
    across = np.array([axis[1], -axis[0], 0]) / np.hypot(axis[0], axis[1])
    upward = np.cross(across, axis)
    p = a - apex[0], y - apex[1], z - apex[2]
    depth, h = _dot(p, axis), p[0] * across[0] + p[1] * across[1]
    v = _dot(p, upward) + 0.10 * h
    h, v = np.abs(h) / (19.5 + 0.7 * f[3]), np.abs(v) / (16.5 + 0.8 * f[4])
    grow = np.clip(depth / 42, 0.06, 1) ** 0.75
    orbit = np.maximum(((h**2.3 + v**2.3) ** (1 / 2.3) / grow - 1) * 17 * grow, -depth)
    rim = 2.8 + 2.0 * _step(depth - 43, 3)
    solid = np.maximum(np.maximum(orbit - rim, 2 - depth), y - plane)
    # The nose: a sheet with a ridge, open below in the shape of a pear.
    nose = plane + (9 + f[5]) * _bell(a, 7) * np.clip((42 - z) / 24, 0, 1)
    sheet = np.maximum(np.abs(y + 2.5 - nose) - 2.5, np.maximum(a - 17, z - 44))
    pear = a - 12 * np.sqrt(np.clip((21 - z) / 18, 0, 1))
    sheet = np.where(z < 21, np.maximum(sheet, -pear), sheet)
    solid = _blend(solid, sheet, 3)
    cheek = np.maximum(np.abs(y + 3 - plane) - 3, np.maximum(np.abs(a - 30) - 19, z - 8))
    solid = _blend(solid, cheek, 3)
    for start, end, radius, fillet in BARS:
        solid = _blend(solid, _capsule(a, y, z, start, end, radius), fillet)
    mastoid = ((a - 53) / 10) ** 2 + ((y + 20) / 14) ** 2 + ((z - 14) / (17 + 1.5 * f[6])) ** 2
    solid = _blend(solid, (np.sqrt(mastoid) - 1) * 11, 5)
    condyle = ((a - 18) / 5) ** 2 + ((y + 12) / 10) ** 2 + ((z - 5) / 5) ** 2
    solid = _blend(solid, (np.sqrt(condyle) - 1) * 5, 2)
    # The walls of the maxilla, about a sinus that the floor of the frame cuts open.
    inward = _capsule(a, y, 0, (13, 82, 0), (13, 35, 0), 2.2)
    behind = _capsule(a, y, 0, (14, 36, 0), (45, 60, 0), 2.4)
    solid = _blend(solid, np.maximum(np.minimum(inward, behind), z - 16), 3)
    meatus = np.maximum(np.hypot(y + 3, z - 12) - 3.2, 56 - a)
    return solid, np.minimum(orbit, meatus)
