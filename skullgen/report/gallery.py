"""Pages to leaf through stores, real or generated, in 3-D and in slices; they need no network.

`<workdir>/gallery/<store>/index.html` and, beside it, the bits of each hundred pairs in a script.
"""

import base64
import json
import zlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files, jobs, provenance
from skullgen.core.errors import UserError, plain
from skullgen.data import measures, mixture, store
from skullgen.report import html

CHUNK = 100  # pairs of a file


def run(config: ConfigDict, workdir: Path) -> None:
    """The stage `gallery`: a page for each store of the run."""
    paths = [workdir / name for name in mixture.OWN if store.exists(workdir / name)]
    if not paths:
        raise UserError(f"{workdir}: no store of pairs here: run `ingest` or `generate` first")
    for path in paths:
        print(write(store.Store(path), workdir / "gallery" / path.stem, config.gallery.pairs))


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
            packed = [zlib.compress(row.tobytes(), 6) for row in pairs.load(part)]
            texts, number = [base64.b64encode(row).decode() for row in packed], start // CHUNK
            script = f'bits("{number:03d}",{json.dumps(texts)})'
            files.replace(folder / f"pairs-{number:03d}.js", script.encode())
            bar.update(len(part))
    unwanted = np.setdiff1d(every, pairs.rows()).tolist()
    names = "row", "split", "kind", "skull", "values"
    values = [[float(f"{x:.5g}") if x == x else None for x in v] for v in _measures(pairs)[rows]]
    columns = rows, *(pairs.column(name)[rows] for name in names[1:4])
    facts = zip(*(column.tolist() for column in columns), values, strict=True)
    data = {
        "pairs": [dict(zip(names, row, strict=True)) for row in facts],
        "measures": [*measures.NAMES, "skull_ml"],
        "words": measures.WORDS,
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


def _measures(pairs):
    """The measures of all pairs, and ml of the skull's bone."""
    bone = pairs.column("voxels")[:, :1] * pairs.attrs["voxel_mm"] ** 3 / 1000
    return np.concatenate([pairs.column("measures"), bone], axis=1)
