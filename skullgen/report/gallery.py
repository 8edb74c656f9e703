"""Pages to leaf through stores, real or generated, in 3-D and in slices; they need no network.

`<workdir>/gallery/<store>/index.html` and beside it, for each hundred pairs, `pairs-000.js` (their
bits) and `thumbs-000.jpg`.
"""

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from ml_collections import ConfigDict
from PIL import Image
from skimage.measure import block_reduce

from skullgen.core import files, jobs, plugins, provenance
from skullgen.core.errors import UserError, plain
from skullgen.data import mixture, store
from skullgen.report import html

CHUNK, COLUMNS = 100, 10  # pairs of a file, and of a row of its thumbnails
TILE = 64  # pixels of a thumbnail a side, at most
Mask = Bool[np.ndarray, "D D D"]


def run(config: ConfigDict, workdir: Path) -> None:
    """The stage `gallery`: a page for each store of `config.gallery`, or for the run's own."""
    names = plugins.listed(config.gallery.stores)
    paths = [mixture.find(name, workdir) for name in names or mixture.OWN]
    stores = [store.Store(path) for path in paths if names or store.exists(path)]
    if not stores:
        raise UserError(f"{workdir}: no store of pairs here: run `ingest` or `generate` first")
    pages = {_page(pairs.path, workdir): pairs for pairs in stores}
    if len(pages) < len(stores):
        raise UserError("gallery.stores: two stores would have one page: name one of them")
    for folder, pairs in pages.items():
        print(write(pairs, folder, config.gallery.pairs))


def _page(path, workdir):
    whose = path.resolve().parent
    name = path.stem if whose == workdir.resolve() else f"{whose.name}-{path.stem}"
    return workdir / "gallery" / name


def write(pairs: store.Store, folder: Path, most: int) -> Path:
    """Writes the page of the first `most` pairs of a store into `folder`; its path."""
    pairs.require_whole()
    folder.mkdir(parents=True, exist_ok=True)
    every = pairs.every()
    rows = every[:most]
    with jobs.progress(len(rows), 0, f"gallery {plain(pairs.path.stem)}", "pair") as bar:
        for start in range(0, len(rows), CHUNK):
            jobs.check()
            part = rows[start : start + CHUNK]
            bits, number = pairs.load(part), f"{start // CHUNK:03d}"
            packed = [base64.b64encode(zlib.compress(row.tobytes(), 6)).decode() for row in bits]
            script = f'bits("{number}",{json.dumps(packed)})'
            files.replace(folder / f"pairs-{number}.js", script.encode())
            files.replace(folder / f"thumbs-{number}.jpg", _thumbnails(bits, pairs.size))
            bar.update(len(part))
    unwanted = np.setdiff1d(every, pairs.rows()).tolist()
    data = {
        "pairs": _facts(pairs, rows),
        "all": len(every),
        "size": pairs.size,
        "chunk": CHUNK,
        "voxel_mm": pairs.attrs["voxel_mm"],
        "kinds": list(map(plain, pairs.attrs["kinds"])),
        "names": list(map(plain, pairs.attrs["names"])),
        "left_out": unwanted,
        "where": plain(str(pairs.path / "leave_out.txt")),
        "identity": provenance.digest([pairs.recipe, str(pairs.path), unwanted]),
    }
    title = f"Pairs of {pairs.path.name}, {pairs.path.resolve().parent.name}"
    files.replace(folder / "index.html", html.fill("gallery.html", {"title": title, "data": data}))
    return folder / "index.html"


def _facts(pairs, rows):
    """What the page says of each pair."""
    names = "split", "kind", "skull", "row", "skull_cm3", "defect"
    columns = [pairs.column(name)[rows].tolist() for name in names[:3]]
    cm3 = pairs.column("voxels")[rows] * pairs.attrs["voxel_mm"] ** 3 / 1000
    columns += [rows.tolist(), *cm3.round(3).T.tolist()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _thumbnails(bits, size):
    tiles = [thumbnail(*np.moveaxis(store.unpack(row, size), -1, 0)) for row in bits]
    side, lines = len(tiles[0]), CHUNK // COLUMNS
    sheet = np.full((lines, COLUMNS, side, side, 3), 255, np.uint8)
    sheet.reshape(-1, side, side, 3)[: len(tiles)] = tiles
    picture, file = sheet.swapaxes(1, 2).reshape(lines * side, COLUMNS * side, 3), io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=85)
    return file.getvalue()


def thumbnail(skull: Mask, defect: Mask) -> UInt8[np.ndarray, "P P 3"]:
    """A pair (RAS) seen through, from where its defect lies; P is D, or less in blocks."""
    middle = (1, 0, 0)
    if defect.any():
        middle = np.argwhere(defect).mean(0) - np.argwhere(skull | defect).mean(0)
    axis, factor = int(np.abs(middle).argmax()), -(-len(skull) // TILE)
    colour = np.ones(3)
    for volume, density, ink in (skull, 8, (0.25, 0.23, 0.2)), (defect, 24, (0.0, 0.35, 0.75)):
        plane = block_reduce(volume.mean(axis).T[::-1, ::-1], factor, np.mean)  # radiological
        light = np.exp(-density * plane[..., None])
        colour = colour * light + ink * (1 - light)
    return np.rint(255 * colour).astype(np.uint8)
