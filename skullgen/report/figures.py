"""Pictures of pairs as PNG files, without a display: sheets, slices, strips, maps.

Channel 0 of a pair, RAS, is the defective skull, 1 its defect: bool, or shares of a voxel. A PNG is
replaced whole, and its folder is made.
"""

import collections
import io
import itertools
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from skullgen.core import files
from skullgen.evaluation.metrics import dice
from skullgen.report.render import direction, largest_part, layers, look, shade

OVERLAP = (0.90, 0.35, 0.00)
# Okabe and Ito's, told apart by the colour-blind too; grey for the first, the real pairs.
GROUPS = ("0.6", "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Radiological convention: what stands at the left, right, top and bottom of each slice's picture.
ORIENTATION = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}

# Of a slice: nothing, skull, defect, what should not be, what is missing.
_KINDS = ((0, 0, 0), (0.72, 0.72, 0.72), (0.25, 0.62, 0.98), OVERLAP, (0.94, 0.89, 0.26))
_WIDTH = 1840  # pixels of pictures across a sheet
_ROWS = 12
Pairs = Shaped[np.ndarray, "N D D D 2"]
Volume = Shaped[np.ndarray, "D D D"]
Mask = Bool[np.ndarray, "D D D"]


def pair_sheet(
    path: Path, pairs: Pairs, *, title: str, captions: list[str] | None = None, columns: int = 4
) -> None:
    """A sheet of pairs, each as two views: the skull with its hole, then with its defect.

    captions: of the pairs, or None for their numbers. At most 12 rows are drawn, and the title, one
    line, then says so.
    """
    shown, left = _first(pairs, _ROWS * columns)
    columns = max(1, min(columns, len(shown)))
    names = captions or range(len(shown))
    pixels = min(256, _WIDTH // (2 * columns))
    tiles = [_tile(p, direction(*p), pixels, name) for p, name in zip(shown, names, strict=False)]
    _sheet(path, _rows(tiles, columns), title=f"{title}{left}")


def comparison_sheet(
    path: Path, real: Pairs, generated: Shaped[np.ndarray, "M E E E 2"], *, title: str
) -> None:
    """Rows of real pairs, each above a row of generated pairs that are seen the same way.

    They are matched by where their defects lie (the assignment with the largest sum of cosines),
    and both of a match are seen from between their directions. As many are drawn as both sides
    have, at most 12, four in a row; the title says where more are.
    """
    from scipy.optimize import linear_sum_assignment

    sides = [list(map(_channels, pairs[:_ROWS])) for pairs in (real, generated)]
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


def strip(
    path: Path,
    rows: list[tuple[str, Shaped[np.ndarray, "_ D D D 2"]]],
    *,
    title: str,
    ends: Shaped[np.ndarray, "2 D D D 2"] | None = None,
) -> None:
    """Ways between two pairs (figure 4), each pair as two views: with its hole, and filled.

    rows: names, and pairs in equal steps. ends: the real pairs that rows begin and end with. A row
    is seen from between the directions of its ends.
    """
    drawn = []
    for name, pairs in rows:
        shown = list(map(_channels, pairs))
        captions = [f"{name} {t:.0%}" for t in np.linspace(0, 1, len(shown))]
        if ends is not None:
            left, right = map(_channels, ends)
            shown, captions = [left, *shown, right], ["real", *captions, "real"]
        between = direction(*shown[0]) + direction(*shown[-1])
        pixels = min(256, _WIDTH // len(shown))
        both = zip(shown, captions, strict=True)
        drawn.append([_tile(pair, between, pixels, text, 0) for pair, text in both])
    _sheet(path, drawn, title=title)


def segmentation_sheet(
    path: Path, skull: Mask, truth: Mask, predictions: dict[str, Mask], *, title: str
) -> None:
    """What several V-Nets make of one test case (figure 5), with their Dice (equation 8).

    Below each view a slice through the true implant's middle, in the plane that shows most of it.
    """
    planes = _planes(truth)[0]
    name = max(planes, key=lambda name: truth[planes[name]].sum())
    view, nothing = look(direction(skull, truth)), np.zeros_like(truth)
    shown = [("defective skull", nothing, nothing), ("true implant", truth, truth)]
    shown += [(f"{who}: Dice {dice(x, truth):.3f}", x, truth) for who, x in predictions.items()]
    tiles, size = [], 320
    for caption, mask, aim in shown:
        kind = np.select([mask & aim, mask, aim, skull], [2, 3, 4, 1])
        picture = shade(*layers(skull, mask, view, size)), _slice(kind, planes[name], size)
        marks = [(x, size + y, letter) for x, y, letter in _marks(name, size)]
        tiles.append((np.concatenate(picture), caption, marks))
    note = f"{name} slices: correct voxels blue, wrong vermilion, missed yellow"
    _sheet(path, _rows(tiles, 4), title=title, note=note)


def implant_sheet(path: Path, skull: Volume, implant: Volume, title: str, note: str) -> None:
    """A skull with its hole, filled, from two more sides, and three slices through it.

    skull, implant: shares of one cube; in a slice a voxel shows the larger one.
    """
    towards, size = direction(skull, implant), 300
    tiles = [_tile((skull, implant), towards, size, "the skull, and the implant in its place")]
    for name, view in (("from the front", (0.0, 0.0)), ("from above", (0.0, 90.0))):
        tiles.append((shade(*layers(skull, implant, view, size)), name, ()))
    more = implant > skull
    pictures, _ = slices(np.where(more, 0, skull), np.where(more, implant, 0), size)
    cuts = [(picture, name, _marks(name, size)) for name, picture in pictures.items()]
    _sheet(path, [tiles, cuts], title=title, note=note)


def map_sheet(path: Path, maps: dict[str, Any]) -> None:
    """The maps of `explore.maps`, a panel each, a colour and a marker for each group (figure 3).

    Groups are drawn in turns, so that none hides another; axes have no ticks, since places by t-SNE
    or UMAP have no unit.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    maps = maps["maps"]
    groups = collections.Counter(p["group"] for one in maps[:1] for p in one["points"])
    columns, lines = max(1, min(3, len(maps))), max(1, -(-len(maps) // 3))
    figure = Figure((5.2 * columns, 5.2 * lines + 0.6), dpi=100, layout="constrained")
    looks = {
        group: dict(color=GROUPS[n % 8], marker="osD^vPX"[n % 7], ls="", mew=0)
        for n, group in enumerate(groups)
    }
    for number, one in enumerate(maps, 1):
        axes = figure.add_subplot(lines, columns, number, xticks=[], yticks=[])
        axes.set_title(one["title"], fontsize=10, parse_math=False)
        axes.set_aspect("equal", adjustable="datalim")
        crowd = (300 / len(one["points"])) ** 0.5
        style = dict(alpha=float(np.clip(crowd, 0.4, 0.85)), ms=float(np.clip(6 * crowd, 3, 6)))
        for turn, group in itertools.product(range(8), groups):
            points = [(p["x"], p["y"]) for p in one["points"] if p["group"] == group][turn::8]
            axes.plot(*np.reshape(points, (-1, 2)).T, **looks[group], **style)
    # A label that begins with "_" would be left out.
    handles = [Line2D([], [], label=f" {g} ({groups[g]})", ms=7, **looks[g]) for g in groups]
    place = dict(loc="outside lower center", ncols=4, frameon=False)
    for text in figure.legend(handles=handles, **place).get_texts():
        text.set_parse_math(False)
    _save(path, figure)


def slice_sheet(path: Path, pairs: Pairs, *, title: str) -> None:
    """Three slices through each pair's defect; at most 24 pairs, and the title then says so."""
    (shown, left), size, tiles = _first(pairs, 2 * _ROWS), 280, []
    for number, pair in enumerate(shown):
        pictures, (x, y, z) = slices(*pair, size)
        row = np.hstack(list(pictures.values()))
        row[:, size - 2 : -3 : size] = row[:, size - 1 : -3 : size] = 255
        marks = [
            (panel * size + across, down, letter)
            for panel, name in enumerate(pictures)
            for across, down, letter in _marks(name, size)
        ]
        tiles.append((row, f"{number}: axial z = {z}, coronal y = {y}, sagittal x = {x}", marks))
    note = "radiological convention: the patient's right is on the left; grey skull, blue defect"
    _sheet(path, _rows(tiles, 2), title=f"{title}{left}", note=f"{note}, orange overlap")


def slices(
    skull: Volume, defect: Volume, size: int | None = None
) -> tuple[dict[str, UInt8[np.ndarray, "P P 3"]], tuple[int, int, int]]:
    """Slices through the centre of a defect's largest part, by name, and the voxel that they cross.

    size: P (None: D). They are in the radiological convention of `ORIENTATION`: black, the skull
    grey, the defect blue, their overlap vermilion; without a defect they cross the frame's middle.
    """
    planes, middle = _planes(defect)
    kind, size = (skull > 0.3) + 2 * (defect > 0.3), size or len(defect)
    return {name: _slice(kind, plane, size) for name, plane in planes.items()}, middle


def _first(pairs, most):
    """The first pairs as (skull, defect), and what to add to a title where not all are."""
    left = f" (the first {most} of {len(pairs)})" if len(pairs) > most else ""
    return list(map(_channels, pairs[:most])), left if len(pairs) else " (no pairs)"


def _channels(pair):
    return pair[..., 0], pair[..., 1]


def _planes(defect):
    """Three planes through the middle of a defect's largest part, and that voxel."""
    part = largest_part(defect)
    centre = np.mean(part, 0) if len(part) else np.full(3, (len(defect) - 1) / 2)
    x, y, z = np.rint(centre).astype(int).tolist()
    return {"axial": np.s_[:, :, z], "coronal": np.s_[:, y], "sagittal": np.s_[x]}, (x, y, z)


def _slice(kind, plane, size):
    """A plane of indices [D, D, D] into `_KINDS`, drawn by the convention."""
    pick = ((np.arange(size) + 0.5) * len(kind) / size).astype(int)
    colours = np.rint(np.float32(_KINDS) * 255).astype(np.uint8)
    return colours[kind[plane].T[::-1, ::-1][pick][:, pick]]


def _marks(name, size):
    """A slice's letters as marks of `_sheet`."""
    places = ((12, size / 2), (size - 12, size / 2), (size / 2, 12), (size / 2, size - 12))
    return [(*place, letter) for place, letter in zip(places, ORIENTATION[name], strict=True)]


def _tile(pair, towards, pixels, caption, axis=1):
    both, span = layers(*pair, look(towards), pixels)
    return np.concatenate([shade(both[:1], span), shade(both, span)], axis), caption, ()


def _rows(tiles, columns):
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


def _save(path, figure):
    """Writes a figure as PNG at its own dpi."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi, metadata={"Software": None})
    files.replace(path, png.getvalue())


def _sheet(path, rows, *, title, note=""):
    """Writes rows of tiles (picture uint8 [H, W, 3], caption, marks) below a title, above a note.

    A mark is (x, y, text), in pixels from the picture's upper left corner.
    """
    from matplotlib.figure import Figure

    gap, line = 12, 26
    wides = [sum(tile[0].shape[1] + gap for tile in row) for row in rows]
    talls = [max(len(tile[0]) for tile in row) + line for row in rows]
    width = max([720, *wides]) + gap
    notes = textwrap.wrap(note, int(width / 10)) or [""]
    height = (3 + len(notes)) * line + sum(talls)
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
    for number, words in enumerate(reversed(notes), 1):
        write(gap, height - number * line, words, 10, width)
    _save(path, figure)
