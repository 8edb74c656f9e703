"""Pages to leaf through stores, real or generated, in 3-D and in slices; they need no network.

`<workdir>/gallery/<store>/index.html` and beside it, for each hundred pairs, `pairs-000.js` (their
bits), `thumbs-000.jpg`, and `near-000.json`, written last: the nearest training pairs, and of which
pairs all this is, so that a stopped run goes on, and a changed store is drawn anew.
"""

import base64
import hashlib
import io
import json
import re
import zlib
from importlib import resources

import numpy as np
from PIL import Image
from plotly.offline import get_plotlyjs

from skullgen.core import files, jobs
from skullgen.core.errors import UserError, plain
from skullgen.data import store
from skullgen.evaluation import fidelity
from skullgen.report.markup import text
from skullgen.training import loop

CHUNK, COLUMNS = 100, 10  # pairs of a file, and of a row of its thumbnails
TILE = 64  # pixels of a thumbnail a side, at most


def run(config, workdir):
    """The stage `gallery`: a page for each store that `config.gallery` names.

    Without names for the run's own, `real.zarr` first. Raises UserError where there is none.
    """
    settings = config.gallery
    names = [name.strip() for name in settings.stores.split(",") if name.strip()]
    paths = [store.find(name, workdir) for name in names or store.MADE]
    paths = [path for path in paths if names or store.exists(path)]
    if not paths:
        raise UserError(f"{workdir}: no store of pairs here: run `ingest` or `generate` first")
    real, pages = workdir / "real.zarr", {}
    real = real if store.exists(real) else None
    learnt = loop.learnt(workdir, config.get("model_name", "")) if real else None
    for path in paths:
        whose = path.resolve().parent.name
        folder = path.stem if path.parent == workdir else f"{whose}-{path.stem}"
        if folder in pages:
            raise UserError(
                f"gallery.stores: {path} and {pages[folder]} would have one page: name one of them"
            )
        pages[folder] = path
        print(write(path, workdir / "gallery" / folder, real, settings.pairs, learnt))


def write(path, folder, real, most, learnt):
    """Writes the page of the store `path` into `folder`, or goes on; returns its path.

    real: the store of the training pairs, rows `learnt`, that are compared with each pair
    (`fidelity.training_dice`), or None. Real pairs are compared with those of other skulls. most:
    pairs shown, the first.
    """
    store.Store(path).require_whole()
    opened, every = store.Store(path), store.Store(path).every()
    rows, size, attributes = every[:most], opened.size, opened.attrs
    columns = {name: opened[name][rows] for name in ("split", "kind", "skull", "voxels")}
    compare = _compare(path, real, size, learnt)
    trained = [] if compare is None else learnt.tolist()
    recipes = [store.Store(one).recipe for one in (path, real) if one is not None]
    made = hashlib.sha256(json.dumps([recipes, size, trained], sort_keys=True).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    near = []
    with jobs.progress(len(rows), 0, f"gallery {plain(path.stem)}", "pair") as bar:
        for number, start in enumerate(range(0, len(rows), CHUNK)):
            jobs.check()
            part, note = rows[start : start + CHUNK], folder / f"near-{number:03d}.json"
            held, about = files.read_json(note), {"of": made, "rows": part.tolist()}
            if held is None or not about.items() <= held.items():
                note.unlink(missing_ok=True)
                bits = store.Store(path).load(part)
                _files(folder, number, bits, size)
                skulls = columns["skull"][start : start + CHUNK]
                held = {**about, "near": compare(bits, skulls) if compare else [None] * len(part)}
                files.write_json(note, held)
            near += held["near"]
            bar.update(len(part))
    volumes = columns["voxels"] * attributes["voxel_mm"] ** 3 / 1000
    table = {name: columns[name].tolist() for name in ("split", "kind", "skull")}
    table |= {"row": rows.tolist(), "near": near}
    table |= dict(zip(("skull_cm3", "defect"), volumes.round(3).T.tolist(), strict=True))
    pairs = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    skulls = store.Store(real).names(store.Store(real).column("skull")[trained]) if trained else []
    left, beside = (
        np.setdiff1d(every, store.Store(path).rows()).tolist(),
        folder.parent / "real" / "index.html",
    )
    same = bool(trained) and path.samefile(real)
    data = {
        "pairs": pairs,
        "all": len(every),
        "size": size,
        "chunk": CHUNK,
        "voxel_mm": attributes["voxel_mm"],
        "kinds": list(map(plain, attributes.get("kinds", []))),
        "names": list(map(plain, attributes.get("names", []))),
        "training": dict(zip(trained, skulls, strict=True)),
        "training_page": "" if same else "../real/index.html" if beside.exists() else None,
        "left_out": left,
        "where": plain(str(path / "leave_out.txt")),
        "identity": f"{made} {zlib.crc32(json.dumps([str(path), left]).encode())}",
    }
    fill = {
        "title": text(f"Pairs of {path.name}, {path.resolve().parent.name}"),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "plotly": get_plotlyjs(),
    }
    page = resources.files("skullgen").joinpath("gallery.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], page)
    files.replace(folder / "index.html", page.encode())
    return folder / "index.html"


def _compare(path, real, size, rows):
    """`(bits, skulls) -> [{"skull": [Dice, row], "pair": ...}]` of the nearest training pairs."""
    if real is None or store.Store(real).missing() or store.Store(real).size != size:
        return None
    if not len(rows):
        return None
    train, theirs = store.Store(real).load(rows), store.Store(real).column("skull")[rows]
    own = path.samefile(real)

    def compare(bits, skulls):
        apart = own & (skulls[:, None] == theirs)
        found = [{} for _ in bits]
        for what, dice in fidelity.training_dice(bits, train, size).items():
            dice[apart] = -1
            for one, values in zip(found, dice, strict=True):
                best = int(values.argmax())
                one[what] = [round(float(values[best]), 4), int(rows[best])]
                if values[best] < 0:  # no other skull
                    one[what][0] = None
        return found

    return compare


def _files(folder, number, bits, size):
    """The bits of some pairs as a script, and their thumbnails as one picture."""
    packed = [base64.b64encode(zlib.compress(row.tobytes(), 6)).decode() for row in bits]
    files.replace(
        folder / f"pairs-{number:03d}.js", f'bits("{number:03d}",{json.dumps(packed)})'.encode()
    )
    tiles = [thumbnail(*np.moveaxis(store.unpack(row, size), -1, 0)) for row in bits]
    side = len(tiles[0])
    sheet = np.full((CHUNK // COLUMNS, COLUMNS, side, side, 3), 255, np.uint8)
    sheet.reshape(-1, side, side, 3)[: len(tiles)] = tiles
    sheet, file = (
        sheet.swapaxes(1, 2).reshape(CHUNK // COLUMNS * side, COLUMNS * side, 3),
        io.BytesIO(),
    )
    Image.fromarray(sheet).save(file, "jpeg", quality=85)
    files.replace(folder / f"thumbs-{number:03d}.jpg", file.getvalue())


def thumbnail(skull, defect):
    """A pair bool [D, D, D] x 2 (RAS) seen through, from where its defect lies: uint8 [P, P, 3].

    Bone grey, the defect blue, on white; P is D, or D in blocks where that is above 64.
    """
    middle = (
        np.argwhere(defect).mean(0) - np.argwhere(skull | defect).mean(0)
        if defect.any()
        else (1, 0, 0)
    )
    axis = int(np.abs(middle).argmax())
    factor = -(-len(skull) // TILE)
    depth = []
    for volume in (skull, defect):
        plane = volume.sum(axis, dtype=np.float32).T[::-1, ::-1]  # as `figures.slices` is turned
        plane = np.pad(plane, (0, -len(plane) % factor))
        side = len(plane) // factor
        plane = plane.reshape(side, factor, side, factor).mean((1, 3)) / len(skull)
        depth.append(1 - np.exp(-(8 + 16 * (volume is defect)) * plane[..., None]))
    colour = 1 - depth[0] * (1 - np.float32([0.25, 0.23, 0.2]))
    colour = colour * (1 - depth[1]) + depth[1] * np.float32([0.0, 0.35, 0.75])
    return np.rint(255 * colour).astype(np.uint8)
