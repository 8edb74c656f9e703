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

from skullgen.core import files
from skullgen.evaluation.metrics import dice
from skullgen.report.render import Volume, direction, largest_part, look, render

# Okabe and Ito's, told apart by the colour-blind too; grey for the real pairs.
GROUPS = ("0.6", "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Radiological convention: what stands at the left, right, top and bottom of each slice's picture.
ORIENTATION = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
# Of a slice: nothing, skull, defect, overlap or what should not be, what is missing.
KINDS = np.uint8([(0, 0, 0), (184, 184, 184), (64, 158, 250), (230, 89, 0), (240, 227, 66)])
WIDTH, GAP, LINE = 1840, 12, 26  # pixels: pictures across a sheet, between them, of text
Pairs = Shaped[np.ndarray, "N D D D 2"]
Way = Shaped[np.ndarray, "_ D D D 2"]
Mask = Bool[np.ndarray, "D D D"]


def pair_sheet(path: Path, pairs: Pairs, title: str, captions: list[str] | None = None) -> None:
    """Pairs, each as two views: the skull with its hole, then with its defect."""
    columns, names = min(4, len(pairs)), captions or map(str, range(len(pairs)))
    size = min(256, WIDTH // (2 * columns))
    tiles = [_tile(p, _direction(p), size, name) for p, name in zip(pairs, names, strict=True)]
    _sheet(path, _rows(tiles, columns), title)


def strip(path: Path, ways: dict[str, Way], title: str, ends: Way | None = None) -> None:
    """Ways between two pairs in equal steps (figure 4), each as two views: its hole, and filled.

    ends: the real pairs that each way begins and ends with.
    """
    rows = []
    for name, pairs in ways.items():
        captions = [f"{name} {t:.0%}" for t in np.linspace(0, 1, len(pairs))]
        if ends is not None:
            pairs = np.concatenate([ends[:1], pairs, ends[1:]])
            captions = ["real", *captions, "real"]
        between, size = _direction(pairs[0]) + _direction(pairs[-1]), min(256, WIDTH // len(pairs))
        tiles = zip(pairs, captions, strict=True)
        rows.append([_tile(pair, between, size, caption, axis=0) for pair, caption in tiles])
    _sheet(path, rows, title)


def segmentation_sheet(
    path: Path, skull: Mask, truth: Mask, predictions: dict[str, Mask], title: str
) -> None:
    """What several V-Nets make of one test case (figure 5), with their Dice (equation 8).

    Below each view a slice in the plane that shows most of the true implant.
    """
    planes = _planes(truth)
    name = max(planes, key=lambda name: truth[planes[name]].sum())
    view, nothing, size, tiles = look(direction(skull, truth)), np.zeros_like(truth), 320, []
    cells = [("defective skull", nothing, nothing), ("true implant", truth, truth)]
    cells += [(f"{who}: Dice {dice(x, truth):.3f}", x, truth) for who, x in predictions.items()]
    for caption, mask, aim in cells:
        kind = np.select([mask & aim, mask, aim, skull], [2, 3, 4, 1])
        pictures = render(skull, mask, view, size)[1], _slice(kind, planes[name], name, size)
        tiles.append((np.concatenate(pictures), caption))
    note = f"{name} slices: correct voxels blue, wrong vermilion, missed yellow"
    _sheet(path, _rows(tiles, 4), title, note)


def implant_sheet(path: Path, skull: Volume, implant: Volume, title: str, note: str) -> None:
    """A skull with its hole, filled, from two more sides, and in slices of the larger share."""
    pair, size, more = np.stack([skull, implant], -1), 300, implant > skull
    tiles = [_tile(pair, _direction(pair), size, "the skull, and the implant in its place")]
    for name, view in (("from the front", (0.0, 0.0)), ("from above", (0.0, 90.0))):
        tiles.append((render(skull, implant, view, size)[1], name))
    pictures = slices(np.where(more, 0, skull), np.where(more, implant, 0), size)
    _sheet(path, [tiles, [(picture, name) for name, picture in pictures.items()]], title, note)


def slices(skull: Volume, defect: Volume, size: int) -> dict[str, UInt8[np.ndarray, "P P 3"]]:
    """Slices of `size` pixels, as `ORIENTATION` says, through a defect's largest part."""
    planes, kind = _planes(defect), (skull > 0.3) + 2 * (defect > 0.3)
    return {name: _slice(kind, planes[name], name, size) for name in planes}


def map_sheet(path: Path, maps: list[dict[str, Any]]) -> None:
    """Maps of `explore.maps`, a panel each, a colour and a marker for each group (figure 3)."""
    from matplotlib.figure import Figure

    columns, lines = min(3, len(maps)), -(-len(maps) // 3)
    figure = Figure((5.2 * columns, 5.2 * lines + 0.6), dpi=100, layout="constrained")
    for number, one in enumerate(maps, 1):
        axes = figure.add_subplot(lines, columns, number, xticks=[], yticks=[])
        axes.set_title(one["title"], fontsize=10, parse_math=False)
        axes.set_aspect("equal", adjustable="datalim")
        for n, group in enumerate(dict.fromkeys(point["group"] for point in one["points"])):
            places = [(p["x"], p["y"]) for p in one["points"] if p["group"] == group]
            label = f" {group} ({len(places)})"  # one that begins with "_" would be left out
            marks = {"marker": "osD^vPX"[n % 7], "alpha": 0.6, "lw": 0, "label": label}
            axes.scatter(*np.transpose(places), 16, GROUPS[n % 8], **marks)
    handles = figure.axes[0].get_legend_handles_labels()
    for text in figure.legend(*handles, loc="outside lower center", ncols=4).get_texts():
        text.set_parse_math(False)
    _replace(path, lambda png: figure.savefig(png, format="png"))


def _direction(pair):
    return direction(pair[..., 0], pair[..., 1])


def _planes(defect):
    """Three planes through the middle of a defect's largest part."""
    part = largest_part(defect)
    centre = np.mean(part, 0) if len(part) else np.full(3, (len(defect) - 1) / 2)
    x, y, z = np.rint(centre).astype(int).tolist()
    return {"axial": np.s_[:, :, z], "coronal": np.s_[:, y], "sagittal": np.s_[x]}


def _slice(kind, plane, name, size):
    """A plane of indices [D, D, D] into `KINDS`, drawn by the convention, with its letters."""
    pick = ((np.arange(size) + 0.5) * len(kind) / size).astype(int)
    picture = Image.fromarray(KINDS[kind[plane].T[::-1, ::-1][pick][:, pick]])
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
    _replace(path, lambda png: sheet.save(png, "png"))


def _write(picture, place, text, size, anchor="lm", colour="#333"):
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text(place, text, colour, font, anchor)


def _replace(path, save):
    png = io.BytesIO()
    save(png)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, png.getvalue())
