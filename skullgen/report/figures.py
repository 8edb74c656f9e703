"""Pictures of pairs as PNG files, without a display: sheets, slices, strips, maps.

Channel 0 of a pair, RAS, is the defective skull, 1 its defect: bool, or shares of a voxel. A PNG is
replaced whole, and its folder is made. A tile of a sheet is a picture and its caption.
"""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.optimize import linear_sum_assignment

from skullgen.core import files
from skullgen.evaluation.metrics import dice
from skullgen.report.render import Volume, direction, largest_part, look, render

# Okabe and Ito's, told apart by the colour-blind too; grey for the first, the real pairs.
GROUPS = ("0.6", "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Radiological convention: what stands at the left, right, top and bottom of each slice's picture.
ORIENTATION = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
# Of a slice: nothing, skull, defect, overlap or what should not be, what is missing.
KINDS = np.uint8([(0, 0, 0), (184, 184, 184), (64, 158, 250), (230, 89, 0), (240, 227, 66)])
WIDTH, GAP, LINE = 1840, 12, 26  # pixels: pictures across a sheet, between them, of text
Pairs = Shaped[np.ndarray, "N D D D 2"]
Mask = Bool[np.ndarray, "D D D"]


def pair_sheet(
    path: Path, pairs: Pairs, title: str, captions: list[str] | None = None, columns: int = 4
) -> None:
    """Pairs, each as two views: the skull with its hole, then with its defect."""
    columns, names = min(columns, len(pairs)), captions or map(str, range(len(pairs)))
    size = min(256, WIDTH // (2 * columns))
    tiles = [_tile(p, _direction(p), size, name) for p, name in zip(pairs, names, strict=True)]
    _sheet(path, _rows(tiles, columns), title)


def comparison_sheet(
    path: Path, real: Pairs, generated: Shaped[np.ndarray, "M E E E 2"], title: str
) -> None:
    """Rows of real pairs, each above a row of generated pairs that are seen the same way.

    They are matched by where their defects lie (the assignment with the largest sum of cosines),
    and both of a match are seen from between their directions.
    """
    sight = [np.stack(list(map(_direction, pairs))) for pairs in (real, generated)]
    upper, lower = [], []
    for i, j in zip(*linear_sum_assignment(-sight[0] @ sight[1].T), strict=True):
        between = sight[0][i] + sight[1][j]
        upper.append(_tile(real[i], between, WIDTH // 8, f"real {i}"))
        lower.append(_tile(generated[j], between, WIDTH // 8, f"generated {j}"))
    both = zip(_rows(upper, 4), _rows(lower, 4), strict=True)
    _sheet(path, [row for rows in both for row in rows], title)


def strip(
    path: Path,
    ways: dict[str, Shaped[np.ndarray, "_ D D D 2"]],
    title: str,
    ends: Shaped[np.ndarray, "2 D D D 2"] | None = None,
) -> None:
    """Ways between two pairs (figure 4), each pair as two views: with its hole, and filled.

    ways: pairs in equal steps. ends: the real pairs that each way begins and ends with. A way is
    seen from between the directions of its ends.
    """
    rows = []
    for name, pairs in ways.items():
        captions = [f"{name} {t:.0%}" for t in np.linspace(0, 1, len(pairs))]
        if ends is not None:
            pairs = np.concatenate([ends[:1], pairs, ends[1:]])
            captions = ["real", *captions, "real"]
        between, size = _direction(pairs[0]) + _direction(pairs[-1]), min(256, WIDTH // len(pairs))
        both = zip(pairs, captions, strict=True)
        rows.append([_tile(pair, between, size, caption, axis=0) for pair, caption in both])
    _sheet(path, rows, title)


def segmentation_sheet(
    path: Path, skull: Mask, truth: Mask, predictions: dict[str, Mask], title: str
) -> None:
    """What several V-Nets make of one test case (figure 5), with their Dice (equation 8).

    Below each view a slice through the true implant's middle, in the plane that shows most of it.
    """
    planes, _ = _planes(truth)
    name = max(planes, key=lambda name: truth[planes[name]].sum())
    view, nothing, size = look(direction(skull, truth)), np.zeros_like(truth), 320
    shown = [("defective skull", nothing, nothing), ("true implant", truth, truth)]
    shown += [(f"{who}: Dice {dice(x, truth):.3f}", x, truth) for who, x in predictions.items()]
    tiles = []
    for caption, mask, aim in shown:
        kind = np.select([mask & aim, mask, aim, skull], [2, 3, 4, 1])
        pictures = render(skull, mask, view, size)[1], _slice(kind, planes, name, size)
        tiles.append((np.concatenate(pictures), caption))
    note = f"{name} slices: correct voxels blue, wrong vermilion, missed yellow"
    _sheet(path, _rows(tiles, 4), title, note)


def implant_sheet(path: Path, skull: Volume, implant: Volume, title: str, note: str) -> None:
    """A skull with its hole, filled, from two more sides, and three slices through it.

    skull, implant: shares of one cube; in a slice a voxel shows the larger one.
    """
    pair, size, more = np.stack([skull, implant], -1), 300, implant > skull
    tiles = [_tile(pair, _direction(pair), size, "the skull, and the implant in its place")]
    for name, view in (("from the front", (0.0, 0.0)), ("from above", (0.0, 90.0))):
        tiles.append((render(skull, implant, view, size)[1], name))
    pictures, _ = slices(np.where(more, 0, skull), np.where(more, implant, 0), size)
    _sheet(path, [tiles, [(picture, name) for name, picture in pictures.items()]], title, note)


def slice_sheet(path: Path, pairs: Pairs, title: str) -> None:
    """Three slices through each pair's defect."""
    tiles = []
    for number, pair in enumerate(pairs):
        pictures, (x, y, z) = slices(pair[..., 0], pair[..., 1], 280)
        caption = f"{number}: axial z = {z}, coronal y = {y}, sagittal x = {x}"
        tiles.append((np.concatenate(list(pictures.values()), 1), caption))
    note = "radiological convention: the patient's right is on the left; grey skull, blue defect"
    _sheet(path, _rows(tiles, 2), title, f"{note}, orange overlap")


def slices(
    skull: Volume, defect: Volume, size: int
) -> tuple[dict[str, UInt8[np.ndarray, "P P 3"]], tuple[int, int, int]]:
    """Slices of `size` pixels through the middle of a defect's largest part, and that voxel.

    In the radiological convention of `ORIENTATION`; without a defect through the frame's middle.
    """
    planes, middle = _planes(defect)
    kind = (skull > 0.3) + 2 * (defect > 0.3)
    return {name: _slice(kind, planes, name, size) for name in planes}, middle


def map_sheet(path: Path, maps: dict[str, Any]) -> None:
    """The maps of `explore.maps`, a panel each, a colour and a marker for each group (figure 3).

    Axes have no ticks, since places by t-SNE or UMAP have no unit.
    """
    from matplotlib.figure import Figure

    maps = maps["maps"]
    columns, lines = min(3, len(maps)), -(-len(maps) // 3)
    figure = Figure((5.2 * columns, 5.2 * lines + 0.6), dpi=100, layout="constrained")
    for number, one in enumerate(maps, 1):
        axes = figure.add_subplot(lines, columns, number, xticks=[], yticks=[])
        axes.set_title(one["title"], fontsize=10, parse_math=False)
        axes.set_aspect("equal", adjustable="datalim")
        groups = dict.fromkeys(point["group"] for point in one["points"])
        for n, group in enumerate(groups):
            x, y = zip(
                *((p["x"], p["y"]) for p in one["points"] if p["group"] == group), strict=True
            )
            label = f" {group} ({len(x)})"  # one that begins with "_" would be left out
            style = {"c": GROUPS[n % 8], "marker": "osD^vPX"[n % 7], "alpha": 0.6, "lw": 0}
            axes.scatter(x, y, 16, **style, label=label)
    handles = figure.axes[0].get_legend_handles_labels()
    for text in figure.legend(*handles, loc="outside lower center", ncols=4).get_texts():
        text.set_parse_math(False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    _replace(path, png)


def _direction(pair):
    return direction(pair[..., 0], pair[..., 1])


def _planes(defect):
    """Three planes through the middle of a defect's largest part, and that voxel."""
    part = largest_part(defect)
    centre = np.mean(part, 0) if len(part) else np.full(3, (len(defect) - 1) / 2)
    x, y, z = np.rint(centre).astype(int).tolist()
    return {"axial": np.s_[:, :, z], "coronal": np.s_[:, y], "sagittal": np.s_[x]}, (x, y, z)


def _slice(kind, planes, name, size):
    """A plane of indices [D, D, D] into `KINDS`, drawn by the convention, with its letters."""
    pick = ((np.arange(size) + 0.5) * len(kind) / size).astype(int)
    picture = Image.fromarray(KINDS[kind[planes[name]].T[::-1, ::-1][pick][:, pick]])
    places = (12, size / 2), (size - 12, size / 2), (size / 2, 12), (size / 2, size - 12)
    for place, letter in zip(places, ORIENTATION[name], strict=True):
        _write(picture, place, letter, 14, "mm", "white")
    return np.asarray(picture)


def _tile(pair, towards, size, caption, axis=1):
    return np.concatenate(render(pair[..., 0], pair[..., 1], look(towards), size), axis), caption


def _rows(tiles, columns):
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


def _sheet(path, rows, title, note=""):
    """Writes rows of tiles below a title, above a note."""
    width = max([720, *(sum(tile.shape[1] + GAP for tile, _ in row) for row in rows)]) + GAP
    notes = textwrap.wrap(note, width // 8)
    height = (3 + len(notes)) * LINE + sum(len(row[0][0]) + LINE for row in rows)
    sheet, y = Image.new("RGB", (width, height), "white"), 2 * LINE
    _write(sheet, (GAP, LINE), textwrap.shorten(title, width // 10, placeholder="..."), 20)
    for row in rows:
        x = GAP
        for picture, caption in row:
            high, wide = picture.shape[:2]
            sheet.paste(Image.fromarray(picture), (x, y))
            caption = textwrap.shorten(caption, max(8, wide // 7), placeholder="...")
            _write(sheet, (x + wide / 2, y + high + LINE / 2 - 2), caption, 14, "mm")
            x += wide + GAP
        y += len(row[0][0]) + LINE
    for number, line in enumerate(notes):
        _write(sheet, (GAP, y + (number + 0.5) * LINE), line, 14)
    png = io.BytesIO()
    sheet.save(png, "png")
    _replace(path, png)


def _write(picture, place, text, size, anchor="lm", colour="#333"):
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text(place, text, colour, font, anchor)


def _replace(path, png):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, png.getvalue())
