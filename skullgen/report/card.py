"""The data card of a generated store: `README.md` in it, as dataset cards are written.

It holds no times, no paths and no names of the skulls that were learnt from.
"""

import re
from pathlib import Path

from markupsafe import Markup

from skullgen.core import files
from skullgen.core.errors import plain
from skullgen.data import store
from skullgen.report import html

LICENCES = {"Apache-2.0": "apache-2.0", "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0"}


def write(path: Path) -> Path:
    """Writes `README.md` into the whole generated store at `path`; returns its path."""
    pairs = store.Store(path)
    licence = pairs.attrs["licence"].removeprefix("as of the pairs that it was trained on: ")
    values = {
        "known": LICENCES.get(licence),
        "licence": plain(licence),
        "facts": {name: _markdown(value) for name, value in _facts(pairs, licence).items()},
    }
    files.replace(path / "README.md", html.fill("card.md", values))
    return path / "README.md"


def _markdown(value):
    """Any value as one line that Markdown shows as it is."""
    return Markup(re.sub(r"([\\`*<>|~&$]|\](?=[\[(:]))", r"\\\1", plain(str(value))))


def _facts(pairs, licence):
    attrs, recipe, rows = pairs.attrs, pairs.recipe, pairs.rows()
    empty, settings = (pairs.column("voxels")[rows, 1] == 0).sum(), recipe.get("generate", {})
    lists = [attrs.get(name, {}).items() for name in ("trained_on", "versions")]
    source, versions = (", ".join(f"{name} {value}" for name, value in one) for one in lists)
    return {
        "pairs": f"{len(rows)}, {pairs.size}^3 voxels of {attrs['voxel_mm']:.4g} mm",
        "left out, in leave_out.txt": len(pairs.every()) - len(rows),
        "empty defects": empty,
        "licence": licence,
        "trained on": source or "not stated",
        "model": f"{recipe.get('model_name')}, update {recipe.get('step')}",
        "weights, SHA-256": recipe.get("weights"),
        "seed; first sample": f"{settings.get('seed')}; {settings.get('first')}",
        "made on": recipe.get("device"),
        "versions": versions,
    }
