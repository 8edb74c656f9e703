"""The data card of a generated store: `README.md` in it, as dataset cards are written.

It holds no times, no paths and no names of the skulls that were learnt from.
"""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from skullgen.core import files
from skullgen.core.errors import plain
from skullgen.data import store
from skullgen.generation import generate
from skullgen.report import html, tables
from skullgen.report.tables import Table

LICENCES = {"Apache-2.0": "apache-2.0", "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0"}


def identity(pairs: store.Store) -> dict[str, Any]:
    """What generated pairs are: their recipe, and their number."""
    return {"recipe": pairs.recipe, "pairs": pairs.count}


def write(path: Path) -> Path:
    """Writes `README.md` into the whole generated store at `path`; returns its path.

    It tells the numbers of the `metrics.json` beside the store, if that is about these pairs.
    """
    pairs, metrics = store.Store(path), files.read_json(path.parent / "metrics.json")
    worth = "Not evaluated.\n"
    if metrics and metrics.get("generated") == identity(pairs):
        worth = tables.markdown(tables.fidelity(metrics["quality"])._replace(title=""))
        if metrics.get("verdict"):
            table = tables.verdict(metrics["verdict"])
            unseen = [row for row in table.rows if row[1] == "test"]
            worth += "\n" + tables.markdown(table._replace(rows=unseen, notes=[]))
    licence = pairs.attrs["licence"].removeprefix("as of the pairs that it was trained on: ")
    values = {
        "known": LICENCES.get(licence),
        "licence": plain(licence),
        "about": Markup(tables.markdown(_about(pairs, licence))),
        "removal": Markup(tables.removal(generate.removed(pairs))),
        "settings": {name: pairs.recipe.get(name) for name in ("model", "generate")},
        "worth": Markup(worth),
    }
    files.replace(path / "README.md", html.fill("card.md", values))
    return path / "README.md"


def _about(pairs, licence):
    attrs, recipe, rows = pairs.attrs, pairs.recipe, pairs.rows()
    mm = attrs["voxel_mm"]
    ml = pairs.column("voxels")[rows, 1] * mm**3 / 1000
    sizes = np.percentile(ml[ml > 0], (0, 25, 50, 75, 100)) if ml.any() else []
    settings, exclusions = recipe.get("generate") or {}, len(pairs.every()) - len(rows)
    lists = [attrs.get(name, {}).items() for name in ("trained_on", "versions")]
    source, versions = (", ".join(f"{name} {value}" for name, value in one) for one in lists)
    cells = {
        "pairs": f"{len(rows)}, {pairs.size}^3 voxels of {mm:.4g} mm",
        **({"left out, in leave_out.txt": exclusions} if exclusions else {}),
        "empty defects": f"{(ml == 0).sum()} ({(ml == 0).mean():.1%})",
        "defects, ml: least, quartiles, most": ", ".join(f"{x:.1f}" for x in sizes) or "-",
        "licence": licence,
        "trained on": source or "not stated",
        "model": f"{recipe.get('model_name')}, update {recipe.get('step')}",
        "weights, SHA-256": recipe.get("weights", "not stated"),
        "seed; first sample": f"{settings.get('seed')}; {settings.get('first')}",
        "made on": recipe.get("device"),
        "versions": versions,
    }
    return Table("", ["what", ""], [[name, str(value)] for name, value in cells.items()])
