"""Pictures of pairs and of training, without a display: shaded views, slices, loss curves.

Legend: D voxels a side, N pairs, P pixels a side. Volumes are [X, Y, Z] in RAS order. Every PNG is
written under a temporary name and renamed, so that a killed run leaves no half picture.
"""

import math
import numbers
import os
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from skullgen.errors import UserError

# Told apart, also by the colour-blind: from each other and from bone.
BONE = (0.96, 0.89, 0.76)
IMPLANT = (0.05, 0.42, 0.78)
OVERLAP = (0.90, 0.35, 0.00)
THREE_QUARTER = (35.0, 20.0)
# Radiological convention: what stands at the left, right, top and bottom of each slice's picture.
ORIENTATION = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}

_FRAME_MM = 204.8
_SIGMA = 0.75  # voxels
# Half of what a plate one voxel thick keeps after the smoothing: the thinnest bone stays visible at
# its full width at half maximum, where 0.5 would drop it.
_LEVEL = 0.5 * math.erf(0.5 / (_SIGMA * math.sqrt(2)))
_MARGIN = 0.06
_LARGEST = 160  # voxels a side; more are averaged in blocks first
_WIDTH = 1840  # pixels of pictures across a sheet
_ROWS = 12


def _shares(volume):
    """Return a cube as float32 shares in [0, 1], averaged in blocks to `_LARGEST` a side."""
    volume = np.asarray(volume)
    if volume.ndim != 3 or len(set(volume.shape)) != 1 or not volume.size:
        raise UserError(f"a picture needs a volume [D, D, D], not {list(volume.shape)}")
    if volume.dtype != bool:
        volume = np.clip(np.nan_to_num(volume.astype(np.float32), nan=0), 0, 1)
    block = -(-len(volume) // _LARGEST)
    side = -(-len(volume) // block)
    volume = np.pad(volume, (0, side * block - len(volume)))
    total = np.uint16 if volume.dtype == bool else np.float32  # 512^3 floats would take 0.5 GB
    for axis in range(3):
        shape = (*volume.shape[:axis], side, block, *volume.shape[axis + 1 :])
        volume = volume.reshape(shape).sum(axis + 1, dtype=total)
    return volume.astype(np.float32) / block**3


def _largest(volume):
    """Return the voxels [M, 3] of the largest connected part of shares above 0.3.

    The whole defect's centre would not do: between the two holes of a bilateral one lies the brain.
    """
    labels, parts = ndimage.label(volume > 0.3, np.ones((3, 3, 3)))
    return np.argwhere(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])) if parts else ()


def _direction(skull, defect):
    """Return the unit vector [3] from the pair's middle to its defect, zeros where none is."""
    skull, defect = _shares(skull), _shares(defect)
    part = _largest(defect)
    if not len(part):
        return np.zeros(3)
    inside = np.argwhere((skull > 0.3) | (defect > 0.3))
    away = part.mean(0) - (inside.min(0) + inside.max(0)) / 2
    return away / max(np.linalg.norm(away), 1e-6)


def _look(direction):
    """Return (azimuth, elevation) that see a direction obliquely, from face and above."""
    x, y, z = direction
    if not np.any(direction):
        return THREE_QUARTER
    elevation = float(np.clip(0.7 * math.degrees(math.atan2(z, math.hypot(x, y))) + 8, -25, 60))
    azimuth = math.degrees(math.atan2(x, y))
    oblique = azimuth - math.copysign(28, azimuth)
    return (oblique if math.hypot(x, y) > 0.3 else THREE_QUARTER[0]), elevation


def view_of(skull, defect):
    """Choose a view that shows a defect obliquely, about 30 degrees off its normal.

    Args:
      skull: bool or shares [D, D, D], RAS.
      defect: bool or shares [D, D, D], RAS; its largest part is looked at.

    Returns:
      (azimuth, elevation) in degrees as `render` takes them: from the defect's side, turned towards
      the face and somewhat upwards; the three-quarter view where there is no defect.

    Raises:
      UserError: a volume that is not a cube.
    """
    return _look(_direction(skull, defect))


def _camera(azimuth, elevation):
    """Return the rows (picture's right, picture's up, towards the camera) [3, 3] in RAS."""
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
        turned = [np.moveaxis(a, axis, 0) for a in (bone, empty, across, through)]
        turned[2][1:-1] |= turned[0][:-2] & turned[0][2:]
        turned[3][1:-1] |= turned[1][:-2] & turned[1][2:]
    field = np.where(bone, np.maximum(field, _LEVEL + _MARGIN), field)
    return np.where(empty & across & through, np.minimum(field, _LEVEL - _MARGIN), field)


def _march(volume, camera, pivot, grid):
    """Find where the rays of an orthographic camera first meet a volume's surface.

    Args:
      volume: shares [D, D, D].
      camera: [3, 3], from `_camera`.
      pivot: [3], the point in the picture's middle, voxels.
      grid: [P], the pixels' places along a picture's edge, voxels from its middle.

    Returns:
      nearness float32 [P, P], voxels from the pivot towards the camera, -inf where a ray meets
      nothing, and unit normals float32 [P, P, 3] along the camera's rows.
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
    rows = np.flatnonzero((-grid > up[0]) & (-grid < up[-1]))
    columns = np.flatnonzero((grid > right[0]) & (grid < right[-1]))
    upward, across = (
        np.maximum(0, 1 - np.abs((places[:, None] - known) / step)).astype(np.float32)
        for places, known in ((-grid[rows], up), (grid[columns], right))
    )
    found = np.full((len(rows), len(columns)), -np.inf, np.float32)
    before = np.zeros_like(found)
    for depth, plane in zip(near[::-1], turned, strict=True):
        here = upward @ plane @ across.T
        hit = np.nonzero((here >= _LEVEL) & (found == -np.inf))
        a, b = before[hit], here[hit]
        found[hit] = depth + step * np.clip((b - _LEVEL) / np.maximum(b - a, 1e-6), 0, 1)
        before = here
    nearness[np.ix_(rows, columns)] = found

    hit = np.nonzero(nearness > -np.inf)
    points = np.stack([grid[hit[1]], -grid[hit[0]], nearness[hit]], 1) @ camera + pivot + pad
    # Normals come from a smoother field: the stairs leave the shading, and the shape stays.
    smooth = ndimage.gaussian_filter(field, 1.0)
    slopes = [
        ndimage.map_coordinates(ndimage.sobel(smooth, axis), points.T, order=1) for axis in range(3)
    ]
    normal = -np.stack(slopes, 1) @ camera.T
    normal[:, 2] = np.maximum(normal[:, 2], 0) + 1e-6
    normals[hit] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return nearness, normals


def _shade(layers, span):
    """Draw layers (nearness [2 P, 2 P], normals [2 P, 2 P, 3], colour), the nearest, on white.

    `span` is the picture's edge in voxels; at equal depth the later layer is seen. Returns uint8
    [P, P, 3]: rays are averaged two by two.
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
    light = 1 - 0.4 * np.clip(depth - 0.15, 0, 1)
    for radius, strength in ((0.012, 5.0), (0.05, 3.5)):
        around, mass = (
            ndimage.gaussian_filter(a, radius * len(hit), truncate=2.5)
            for a in (depth, hit.astype(np.float32))
        )
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


def _layers(skull, defect, azimuth, elevation, pixels, separate_mm=0.0):
    """Return what `_shade` takes: the skull's layer, the defect's, and the picture's edge."""
    if np.shape(skull) != np.shape(defect):
        raise UserError(f"skull {np.shape(skull)} and defect {np.shape(defect)} differ in shape")
    skull, defect = _shares(skull), _shares(defect)
    camera = _camera(azimuth, elevation)
    inside, part = np.argwhere(np.maximum(skull, defect) > 0), np.argwhere(defect > 0)
    if not len(inside):
        inside = np.full((1, 3), len(skull) / 2)
    shift = np.zeros(3)
    if len(part):
        away = part.mean(0) - (inside.min(0) + inside.max(0)) / 2
        shift = away / max(np.linalg.norm(away), 1e-6) * separate_mm * len(skull) / _FRAME_MM
    seen = np.concatenate([inside, part + shift]) @ camera.T
    low, high = seen.min(0), seen.max(0)
    pivot = (low + high) / 2 @ camera
    # One scale for all, so that skulls keep their sizes; only what is too large is shrunk to fit.
    span = max(0.9 * len(skull), 1.04 * ((high - low)[:2].max() + 2))
    grid = (np.arange(2 * pixels) + 0.5 - pixels) * span / (2 * pixels)
    bone = (*_march(skull, camera, pivot, grid), BONE)
    piece = (*_march(defect, camera, pivot - shift, grid), IMPLANT)
    return bone, piece, span


def render(
    skull,
    defect,
    *,
    azimuth=THREE_QUARTER[0],
    elevation=THREE_QUARTER[1],
    pixels=256,
    separate_mm=0.0,
):
    """Draw a pair as shaded surfaces: the skull in bone colour, its defect in blue, on white.

    A volume is smoothed by 0.75 voxel; its surface is where half of what a smoothed plate of one
    voxel has left is reached; thin bone and narrow holes are kept. The projection is orthographic
    and centred on the pair; 0.9 of the frame's edge spans it, more where the pair would not fit.

    Args:
      skull: bool or shares [D, D, D], RAS; more than 160 voxels a side are averaged in blocks.
      defect: bool or shares [D, D, D], RAS.
      azimuth: degrees about the vertical: 0 is the frontal view (the patient's right on the
        picture's left), 90 the view from the patient's right, 180 from behind, -90 from the left.
      elevation: degrees: 90 is from above, -90 from below.
      pixels: P.
      separate_mm: how far the defect is moved outwards, away from the pair's middle, mm.

    Returns:
      uint8 [P, P, 3], row 0 on top.

    Raises:
      UserError: volumes that are not cubes of one size.
    """
    bone, piece, span = _layers(skull, defect, azimuth, elevation, pixels, separate_mm)
    return _shade([bone, piece], span)


def slices(skull, defect):
    """Draw axial, coronal and sagittal slices through the centre of a defect's largest part.

    Radiological convention, as `ORIENTATION` spells it out: axial and coronal pictures have the
    patient's right on the left, the sagittal one the face; anterior or superior is on top.

    Args:
      skull: bool or shares [D, D, D], RAS.
      defect: bool or shares [D, D, D], RAS; without one the slices cross the frame's middle.

    Returns:
      Pictures by name, uint8 [D, D, 3]: black, the skull grey, the defect blue, their overlap
      vermilion; and the voxel (x, y, z) that they cross.
    """
    side, block = len(defect), -(-len(defect) // _LARGEST)
    part = _largest(_shares(defect))
    centre = (np.mean(part, 0) + 0.5) * block - 0.5 if len(part) else np.full(3, (side - 1) / 2)
    x, y, z = np.clip(np.rint(centre), 0, side - 1).astype(int).tolist()
    skull, defect = np.asarray(skull) > 0.3, np.asarray(defect) > 0.3
    colours = np.float32([(0, 0, 0), (0.72, 0.72, 0.72), (0.25, 0.62, 0.98), OVERLAP])
    pictures = {}
    for name, plane in (("axial", np.s_[:, :, z]), ("coronal", np.s_[:, y]), ("sagittal", x)):
        kind = (skull[plane] + 2 * defect[plane]).T[::-1, ::-1]
        pictures[name] = np.rint(colours * 255).astype(np.uint8)[kind]
    return pictures, (x, y, z)


def _save(path, figure):
    """Write a matplotlib figure as PNG at its own dpi, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(partial, format="png", dpi=figure.dpi, metadata={"Software": None})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sheet(path, rows, *, title, note=""):
    """Save rows of tiles (picture uint8 [H, W, 3], caption, marks) below a title, above a note.

    A mark is (x, y, text), in pixels from the picture's upper left corner.
    """
    from matplotlib.figure import Figure

    gap, line = 12, 26
    wides = [sum(tile[0].shape[1] + gap for tile in row) for row in rows]
    talls = [max(len(tile[0]) for tile in row) + line for row in rows]
    width, height = max([720, *wides]) + gap, 4 * line + sum(talls)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")

    def write(x, y, text, points, room, align="left", colour="0.2"):
        text, most = " ".join(str(text).split()), int(room / points)
        text = text if len(text) <= most else text[: most - 3] + "..."
        figure.text(
            x / width,
            1 - y / height,
            text,
            fontsize=points,
            ha=align,
            va="center",
            color=colour,
            parse_math=False,  # a "$" in a name is no formula
        )

    write(gap, line, title, 14, width)
    y = 2 * line
    for row, tall in zip(rows, talls, strict=True):
        x = gap
        for picture, caption, marks in row:
            high, wide = picture.shape[:2]
            figure.figimage(picture, x, height - y - high, origin="upper")
            write(x + wide / 2, y + high + line / 2 - 2, caption, 10, wide, "center")
            for across, down, text in marks:
                write(x + across, y + down, text, 10, 99, "center", "white")
            x += wide + gap
        y += tall
    write(gap, height - line, note, 10, width)
    _save(path, figure)


def _first(pairs, most):
    """Return the first pairs as (skull, defect), and what to add to a title where not all are."""
    shown = [np.asarray(pairs[i]) for i in range(min(len(pairs), most))]
    for pair in shown:
        if pair.ndim != 4 or pair.shape[-1] != 2:
            raise UserError(f"a sheet needs pairs [N, D, D, D, 2], not {[len(pairs), *pair.shape]}")
    left = f" (the first {most} of {len(pairs)})" if len(pairs) > most else ""
    return [(pair[..., 0], pair[..., 1]) for pair in shown], left or "" if shown else " (no pairs)"


def _tile(pair, direction, pixels, caption):
    bone, piece, span = _layers(*pair, *_look(direction), pixels)
    return np.concatenate([_shade([bone], span), _shade([bone, piece], span)], 1), caption, ()


def _rows(tiles, columns):
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


def pair_sheet(path, pairs, *, title, captions=None, columns=4):
    """Save a sheet of pairs, each as two views: the skull with its hole, then with its defect.

    Args:
      path: the PNG, replaced whole; its folder is made.
      pairs: bool [N, D, D, D, 2] (or an array read pair by pair, as Zarr's), RAS: channel 0 the
        defective skull, 1 its defect. At most 12 rows are drawn; the title says where more are.
      title: one line.
      captions: N strings, or None for the pairs' numbers.
      columns: pairs in a row.

    Raises:
      UserError: pairs of another shape.
    """
    shown, left = _first(pairs, _ROWS * columns)
    columns = max(1, min(columns, len(shown)))
    names = range(len(shown)) if captions is None else captions
    tiles = [
        _tile(pair, _direction(*pair), min(256, _WIDTH // (2 * columns)), name)
        for pair, name in zip(shown, names, strict=False)
    ]
    _sheet(path, _rows(tiles, columns), title=f"{title}{left}")


def comparison_sheet(path, real, generated, *, title):
    """Save rows of real pairs, each above a row of generated pairs that are seen the same way.

    Real and generated pairs are matched by where their defects lie (the assignment with the largest
    sum of cosines), and both of a match are seen from between their directions. As many are drawn
    as both sides have, at most 12, four in a row.

    Args:
      path: the PNG, replaced whole; its folder is made.
      real: bool [N, D, D, D, 2], RAS.
      generated: bool [M, D', D', D', 2], RAS.
      title: one line.

    Raises:
      UserError: pairs of another shape.
    """
    sides = [_first(pairs, 12)[0] for pairs in (real, generated)]
    sight = [np.array([_direction(*pair) for pair in side]).reshape(-1, 3) for side in sides]
    upper, lower = [], []
    for i, j in zip(*linear_sum_assignment(-sight[0] @ sight[1].T), strict=True):
        between = sight[0][i] + sight[1][j]
        upper.append(_tile(sides[0][i], between, _WIDTH // 8, f"real {i}"))
        lower.append(_tile(sides[1][j], between, _WIDTH // 8, f"generated {j}"))
    rows = [row for both in zip(_rows(upper, 4), _rows(lower, 4), strict=True) for row in both]
    _sheet(path, rows, title=title if rows else f"{title} (no pairs)")


def slice_sheet(path, pairs, *, title):
    """Save a sheet with three slices through each pair's defect, as `slices` makes them.

    Args:
      path: the PNG, replaced whole; its folder is made.
      pairs: bool [N, D, D, D, 2], RAS; at most 24 are drawn, and the title says where more are.
      title: one line.

    Raises:
      UserError: pairs of another shape.
    """
    shown, left = _first(pairs, 2 * _ROWS)
    size, tiles = 280, []
    for number, pair in enumerate(shown):
        pictures, (x, y, z) = slices(*pair)
        side = len(pair[0])
        pick = ((np.arange(size) + 0.5) * side / size).astype(int)
        strip = np.concatenate([picture[pick][:, pick] for picture in pictures.values()], 1)
        strip[:, size - 2 : -3 : size] = strip[:, size - 1 : -3 : size] = 255
        places = ((12, size / 2), (size - 12, size / 2), (size / 2, 12), (size / 2, size - 12))
        marks = [
            (panel * size + across, down, letter)
            for panel, name in enumerate(pictures)
            for (across, down), letter in zip(places, ORIENTATION[name], strict=True)
        ]
        tiles.append((strip, f"{number}: axial z = {z}, coronal y = {y}, sagittal x = {x}", marks))
    note = "radiological convention: the patient's right is on the left; grey skull, blue defect"
    _sheet(path, _rows(tiles, 2), title=f"{title}{left}", note=f"{note}, orange overlap")


def _runs(x, y, most=1000):
    """Cut a curve into at most `most` runs: mean x, mean y, least y and largest y of each."""
    starts = np.arange(0, len(y), -(-len(y) // most))
    counts = np.diff(starts, append=len(y))
    means = (np.add.reduceat(values, starts) / counts for values in (x, y))
    return *means, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def loss_curves(path, records, *, title):
    """Save one panel for each metric of a training log, raw and smoothed, phases shaded and named.

    The axis is logarithmic where all values are positive and span more than two decades. Values
    that are not finite are left out and counted in the panel's heading. Long logs are thinned.

    Args:
      path: the PNG, replaced whole; its folder is made.
      records: list of dicts as in train.jsonl: "phase", "step" and numbers by metric's name.
      title: one line.
    """
    from matplotlib.figure import Figure

    records = [r for r in records if abs(r.get("step", math.inf)) < math.inf]
    records.sort(key=lambda record: record["step"])
    curves, spans = {}, {}
    for record in records:
        phase, step = str(record.get("phase", "")), record["step"]
        spans[phase] = (spans.get(phase, (step,))[0], step)
        for name, value in record.items():
            if name not in ("phase", "step") and isinstance(value, numbers.Real):
                curves.setdefault(name, {}).setdefault(phase, []).append((step, float(value)))
    columns = max(1, min(4, len(curves)))
    lines = max(1, -(-len(curves) // columns))
    size = (max(4.6 * columns, 7), 2.7 * lines + 0.5)
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    figure.suptitle(f"{title}{'' if curves else ' (no numbers)'}", parse_math=False)
    tints = ("#dce9f5", "#fbe8d3", "#e0efe2", "#efe2f0")
    for panel, (name, parts) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(lines, columns, panel)
        parts = {phase: np.array(points) for phase, points in parts.items()}
        whole = np.concatenate(list(parts.values()))[:, 1]
        good = whole[np.abs(whole) < 1e100]
        lost = f" ({len(whole) - len(good)} not finite)" if len(good) < len(whole) else ""
        axes.set_title(f"{name}{lost}", fontsize=10, parse_math=False)
        log = len(good) and good.min() > 0 and good.max() > 100 * good.min()
        for number, (phase, (first, last)) in enumerate(spans.items()):
            axes.axvspan(first, last, color=tints[number % len(tints)], lw=0, zorder=0)
            place = (first, 0.98 - 0.09 * (number % 3))
            note = {"xycoords": axes.get_xaxis_transform(), "parse_math": False}
            axes.annotate(f" {phase}", place, va="top", fontsize=8, color="0.3", **note)
            x, y = parts.get(phase, np.zeros((0, 2))).T
            x, y = x[np.abs(y) < 1e100], y[np.abs(y) < 1e100]
            if not len(y):
                continue
            x, y, low, high = _runs(x, y)
            axes.fill_between(x, low, high, color="0.75", lw=0)
            axes.plot(x, y, color="0.65", lw=0.6, marker="." if len(y) == 1 else "")
            y = ndimage.gaussian_filter1d(
                np.log(y) if log else y, max(1, len(y) / 40), mode="nearest"
            )
            axes.plot(x, np.exp(y) if log else y, color="#b04a00", lw=1.6)
        axes.set_yscale("log" if log else "linear")
        axes.tick_params(labelsize=8)
        axes.set_xlabel("step", fontsize=8)
    _save(path, figure)
