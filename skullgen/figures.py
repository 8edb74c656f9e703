"""Pictures of pairs and of training, as PNG files, without a display: sheets, slices, loss curves.

Pairs are bool [N, D, D, D, 2] in RAS order, or an array read pair by pair, as Zarr's: channel 0 is
the defective skull, 1 its defect. A PNG is replaced whole, and its folder is made.
"""

import math
import numbers
import os
from pathlib import Path

import numpy as np
from scipy import ndimage

from skullgen.errors import UserError
from skullgen.render import direction, largest_part, layers, look, shade

OVERLAP = (0.90, 0.35, 0.00)
# Radiological convention: what stands at the left, right, top and bottom of each slice's picture.
ORIENTATION = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}

_WIDTH = 1840  # pixels of pictures across a sheet
_ROWS = 12


def pair_sheet(path, pairs, *, title, captions=None, columns=4):
    """Save a sheet of pairs, each as two views: the skull with its hole, then with its defect.

    `captions` are N strings, or None for the pairs' numbers; `columns` pairs stand in a row. At
    most 12 rows are drawn, and the title, one line, then says so. Raises UserError for pairs of
    another shape.
    """
    shown, left = _first(pairs, _ROWS * columns)
    columns = max(1, min(columns, len(shown)))
    names = range(len(shown)) if captions is None else captions
    pixels = min(256, _WIDTH // (2 * columns))
    tiles = [_tile(p, direction(*p), pixels, name) for p, name in zip(shown, names, strict=False)]
    _sheet(path, _rows(tiles, columns), title=f"{title}{left}")


def comparison_sheet(path, real, generated, *, title):
    """Save rows of real pairs, each above a row of generated pairs that are seen the same way.

    Real [N, D, D, D, 2] and generated pairs [M, D', D', D', 2] are matched by where their defects
    lie (the assignment with the largest sum of cosines), and both of a match are seen from between
    their directions. As many are drawn as both sides have, at most 12, four in a row; the title
    says where more are. Raises UserError for pairs of another shape.
    """
    from scipy.optimize import linear_sum_assignment

    sides = [_first(pairs, _ROWS)[0] for pairs in (real, generated)]
    sight = [np.array([direction(*pair) for pair in side]).reshape(-1, 3) for side in sides]
    upper, lower = [], []
    for i, j in zip(*linear_sum_assignment(-sight[0] @ sight[1].T), strict=True):
        between = sight[0][i] + sight[1][j]
        upper.append(_tile(sides[0][i], between, _WIDTH // 8, f"real {i}"))
        lower.append(_tile(sides[1][j], between, _WIDTH // 8, f"generated {j}"))
    rows = [row for both in zip(_rows(upper, 4), _rows(lower, 4), strict=True) for row in both]
    left = f" ({len(upper)} of {len(real)} real and of {len(generated)} generated pairs)"
    whole = len(upper) == len(real) == len(generated) > 0
    _sheet(path, rows, title=title if whole else f"{title}{left}")


def slice_sheet(path, pairs, *, title):
    """Save a sheet with three slices through each pair's defect, as `slices` makes them.

    At most 24 pairs are drawn, and the title then says so. Raises UserError for pairs of another
    shape.
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


def slices(skull, defect):
    """Draw axial, coronal and sagittal slices through the centre of a defect's largest part.

    `skull` and `defect` are bool or shares [D, D, D], RAS; without a defect the slices cross the
    frame's middle. Returns pictures by name, uint8 [D, D, 3], in the radiological convention of
    `ORIENTATION` (black, the skull grey, the defect blue, their overlap vermilion), and the voxel
    (x, y, z) that they cross.
    """
    side, part = len(defect), largest_part(defect)
    centre = np.mean(part, 0) if len(part) else np.full(3, (side - 1) / 2)
    x, y, z = np.rint(centre).astype(int).tolist()
    skull, defect = np.asarray(skull) > 0.3, np.asarray(defect) > 0.3
    colours = np.float32([(0, 0, 0), (0.72, 0.72, 0.72), (0.25, 0.62, 0.98), OVERLAP])
    pictures = {}
    for name, plane in (("axial", np.s_[:, :, z]), ("coronal", np.s_[:, y]), ("sagittal", x)):
        kind = (skull[plane] + 2 * defect[plane]).T[::-1, ::-1]
        pictures[name] = np.rint(colours * 255).astype(np.uint8)[kind]
    return pictures, (x, y, z)


def loss_curves(path, records, *, title):
    """Save one panel for each metric of a training log, raw and smoothed, phases shaded and named.

    The axis is logarithmic where all values are positive and span more than two decades. Values
    that are not finite are left out and counted in the panel's heading. Long logs are thinned.
    `records` are dicts as in train.jsonl: "phase", "epoch", "step" and numbers by metric's name.
    """
    from matplotlib.figure import Figure

    records = [r for r in records if abs(r.get("step", math.inf)) < math.inf]
    records.sort(key=lambda record: record["step"])
    curves, spans = {}, {}
    for record in records:
        phase, step = str(record.get("phase", "")), record["step"]
        spans[phase] = (spans.get(phase, (step,))[0], step)
        for name, value in record.items():
            if name not in ("phase", "epoch", "step") and isinstance(value, numbers.Real):
                curves.setdefault(name, {}).setdefault(phase, []).append((step, float(value)))
    columns = max(1, min(4, len(curves)))
    lines = -(-len(curves) // columns)
    size = (max(4.6 * columns, 7), 2.7 * max(1, lines) + 0.5)
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
            y, sigma = np.log(y) if log else y, max(1, len(y) / 40)
            y = ndimage.gaussian_filter1d(y, sigma, mode="nearest")
            axes.plot(x, np.exp(y) if log else y, color="#b04a00", lw=1.6)
        axes.set_yscale("log" if log else "linear")
        axes.tick_params(labelsize=8)
        axes.set_xlabel("step", fontsize=8)
    _save(path, figure)


def _first(pairs, most):
    """Return the first pairs as (skull, defect), and what to add to a title where not all are."""
    shown = [np.asarray(pairs[i]) for i in range(min(len(pairs), most))]
    for pair in shown:
        if pair.ndim != 4 or pair.shape[-1] != 2:
            raise UserError(f"a sheet needs pairs [N, D, D, D, 2], not {[len(pairs), *pair.shape]}")
    left = f" (the first {most} of {len(pairs)})" if len(pairs) > most else ""
    return [(pair[..., 0], pair[..., 1]) for pair in shown], left if shown else " (no pairs)"


def _tile(pair, towards, pixels, caption):
    both, span = layers(*pair, look(towards), pixels)
    return np.concatenate([shade(both[:1], span), shade(both, span)], 1), caption, ()


def _rows(tiles, columns):
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


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
        style = {"fontsize": points, "ha": align, "va": "center", "color": colour}
        # A "$" in a name is no formula.
        figure.text(x / width, 1 - y / height, text, parse_math=False, **style)

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


def _runs(x, y, most=1000):
    """Cut a curve into at most `most` runs: mean x, mean y, least y and largest y of each."""
    starts = np.arange(0, len(y), -(-len(y) // most))
    counts = np.diff(starts, append=len(y))
    means = (np.add.reduceat(values, starts) / counts for values in (x, y))
    return *means, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
