"""Pictures of pairs as PNG files, without a display: sheets, slices, strips.

Channel 0 of a pair, RAS, is the defective skull, 1 its defect: bool, or shares of a voxel. A PNG is
replaced whole, and its folder is made. A tile of a sheet is a picture and its caption.
"""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from skullgen.core import files
from skullgen.report.render import Volume, direction, largest_part, look, render

# Radiological convention: what stands at the left, right, top and bottom of each slice's picture.
ORIENTATION = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
# Of a slice: nothing, skull, defect, both.
KINDS = np.uint8([(0, 0, 0), (184, 184, 184), (64, 158, 250), (230, 89, 0)])
WIDTH, GAP, LINE = 1840, 12, 26  # pixels: pictures across a sheet, between them, of text
ENDS = "low", "mean", "high"  # of an interval
Pairs = Shaped[np.ndarray, "N D D D 2"]


def pair_sheet(path: Path, pairs: Pairs, title: str, captions: list[str] | None = None) -> None:
    """Pairs, each as two views: the skull with its hole, then with its defect."""
    columns, names = min(4, len(pairs)), captions or map(str, range(len(pairs)))
    size = min(256, WIDTH // (2 * columns))
    tiles = [_tile(p, direction(p), size, name) for p, name in zip(pairs, names, strict=True)]
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    _sheet(path, rows, title)


def strip(path: Path, ways: dict[str, Pairs], title: str) -> None:
    """Ways between two pairs in equal steps (figure 4), each as two views: its hole, and filled."""
    rows = []
    for name, pairs in ways.items():
        between, size = direction(pairs[0]) + direction(pairs[-1]), min(256, WIDTH // len(pairs))
        steps = zip(pairs, np.linspace(0, 1, len(pairs)), strict=True)
        rows.append([_tile(p, between, size, f"{name} {t:.0%}", axis=0) for p, t in steps])
    _sheet(path, rows, title)


def implant_sheet(path: Path, skull: Volume, implant: Volume, title: str, note: str) -> None:
    """A skull with its hole, filled, from two more sides, and in slices of the larger share."""
    pair, size, more = np.stack([skull, implant], -1), 300, implant > skull
    tiles = [_tile(pair, direction(pair), size, "the skull, and the implant in its place")]
    for name, view in (("from the front", (0.0, 0.0)), ("from above", (0.0, 90.0))):
        tiles.append((render(skull, implant, view, size)[1], name))
    pictures = slices(np.where(more, 0, skull), np.where(more, implant, 0), size)
    _sheet(path, [tiles, [(picture, name) for name, picture in pictures.items()]], title, note)


def slices(skull: Volume, defect: Volume, size: int) -> dict[str, UInt8[np.ndarray, "P P 3"]]:
    """Slices of `size` pixels, as `ORIENTATION` says, through a defect's largest part."""
    part = largest_part(defect)
    centre = np.mean(part, 0) if len(part) else np.full(3, (len(defect) - 1) / 2)
    x, y, z = np.rint(centre).astype(int).tolist()
    planes = {"axial": np.s_[:, :, z], "coronal": np.s_[:, y], "sagittal": np.s_[x]}
    kind = (skull > 0.3) + 2 * (defect > 0.3)
    return {name: _slice(kind[plane], name, size) for name, plane in planes.items()}


def _slice(kind, name, size):
    """A plane of indices into `KINDS`, drawn by the convention, with its letters."""
    pick = ((np.arange(size) + 0.5) * len(kind) / size).astype(int)
    picture = Image.fromarray(KINDS[kind.T[::-1, ::-1][pick][:, pick]])
    places = (12, size / 2), (size - 12, size / 2), (size / 2, 12), (size / 2, size - 12)
    for place, letter in zip(places, ORIENTATION[name], strict=True):
        _write(picture, place, letter, 14, "mm", "white")
    return np.asarray(picture)


def _tile(pair, towards, size, caption, axis=1):
    return np.concatenate(render(pair[..., 0], pair[..., 1], look(towards), size), axis), caption


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
    _save(path, sheet)


def rows(path: Path, tests: dict[str, dict[str, Any]], lines: dict[str, str], title: str) -> None:
    """A table's rows, a panel a test: `tests[test][row]` has a mean and its interval, low to high.

    lines: row -> colour of a line through its mean, as of the floor and of the ceiling.
    """
    names = list(dict.fromkeys(name for panel in tests.values() for name in panel))
    ends = [its[end] for panel in tests.values() for its in panel.values() for end in ENDS]
    ends = [value for value in ends if value is not None]
    low, high = np.floor(max(0, min(ends)) * 10) / 10, np.ceil(min(1, max(ends)) * 10) / 10
    left, wide = 260, min(640, (WIDTH - 260) // len(tests)) - 4 * GAP
    sheet = Image.new(
        "RGB", (left + len(tests) * (wide + 4 * GAP), (len(names) + 4) * LINE), "white"
    )
    draw, bottom = ImageDraw.Draw(sheet), (len(names) + 3) * LINE
    _write(sheet, (GAP, LINE / 2 + 4), title, 18)
    for row, name in enumerate(names):
        short = textwrap.shorten(name, 30, placeholder="...")
        _write(sheet, (left - 2 * GAP, (row + 3) * LINE), short, 15, "rm")
    for number, (test, panel) in enumerate(tests.items()):

        def place(value, start=left + number * (wide + 4 * GAP)):
            return start + (min(max(value, low), high) - low) / (high - low) * wide

        _write(sheet, (place(low), 1.7 * LINE), test, 15)
        for tick in np.arange(low, high + 0.01, 0.1):
            draw.line([place(tick), 2.4 * LINE, place(tick), bottom], "#e8e8e8")
            _write(sheet, (place(tick), bottom + LINE / 2), f"{tick:.1f}", 13, "mm")
        for name in lines.keys() & panel.keys():
            x = place(panel[name]["mean"])
            draw.line([x, 2.4 * LINE, x, bottom], lines[name], 2)
        for row, name in enumerate(names):
            its, y = panel.get(name), (row + 3) * LINE
            if its and its["low"] is not None:
                draw.line([place(its["low"]), y, place(its["high"]), y], "#404fa0", 3)
            if its:
                x = place(its["mean"])
                draw.ellipse([x - 5, y - 5, x + 5, y + 5], "#404fa0")
    _save(path, sheet)


def _save(path, sheet):
    png = io.BytesIO()
    sheet.save(png, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, png.getvalue())


def _write(picture, place, text, size, anchor="lm", colour="#333"):
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text(place, text, colour, font, anchor)
