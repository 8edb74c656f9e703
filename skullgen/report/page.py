"""`report.html`: all that a work directory holds on one page, which needs no network.

A section is a list of blocks: a `Table`, a `Plot`, a `Picture`, text, or a dict of what may be
unfolded. `templates/page.html` shows them, and leaves out what is empty.
"""

import base64
import collections
import io
import itertools
import numbers
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from skullgen.core import files
from skullgen.data import store
from skullgen.report import html, tables
from skullgen.report.scene import scene
from skullgen.report.tables import Table
from skullgen.training import logs

PAIRS, POINTS, RUNS = 5, 5000, 300  # in a scene; in a map; of updates in a curve
PICTURES = {
    "interpolation": "Between two skulls, in equal steps through the latent space",
    "segmentation": "A test case as nets of several sources segment it",
    "generated_pairs": "Generated pairs: the skull with its hole, then with its defect",
    "real_and_generated": "Rows of real pairs, each above generated ones seen the same way",
    "real_pairs": "Real pairs: the skull with its hole, then with its defect",
    "generated_slices": "Generated pairs in slices",
    "closest": "The generated skulls that lie nearest to a training skull, each before that one",
}
SETTINGS = ("data", "model", "phases", "generate", "segment", "evaluate")  # of the numbers
Row = dict[str, Any]


class Plot(NamedTuple):
    """What the page's function `kind` draws, by names; one at a time is shown."""

    title: str
    kind: str
    figures: dict[str, Any]
    high: float = 15  # rem


class Picture(NamedTuple):
    """A picture as the source of an `img`."""

    source: str
    caption: str


def write(workdir: Path) -> Path:
    """Writes `report.html` from what the work directory holds, whole or not at all; its path."""
    config, versions, metrics, maps, table1, sweep = (
        files.read_json(workdir / f"{name}.json") or {}
        for name in ("config", "versions", "metrics", "maps", "table1", "sweep")
    )
    verdict, quality = metrics.get("verdict", {}), metrics.get("quality")
    paths = [workdir / f"{name}.zarr" for name in ("real", "generated")]
    stores = [store.Store(path) for path in paths if store.exists(path)]
    whole, summary = [one for one in stores if not one.missing()], verdict.get("summary", [])
    details = {"Config": config, "Versions": versions}
    details |= {f"Data: {one.path.name}": {**one.attrs, "recipe": one.recipe} for one in stores}
    link = Markup('<a href="gallery/{}/index.html">{}</a>').format
    galleries = sorted(path.parent.name for path in workdir.glob("gallery/*/index.html"))
    records = sorted(workdir.glob("*.jsonl"), key=lambda path: (path.name != "train.jsonl", path))
    sections = {
        "Warnings": metrics.get("warnings", []) + _stale(config, metrics),
        "What was run": [
            Table("", ["what", ""], _facts(config, versions, stores)),
            {title: values for title, values in details.items() if values},
        ],
        "Pairs to turn": [plot for plot in map(_turned, whole) if plot.figures],
        "Pairs to leaf through": [link(urllib.parse.quote(name), name) for name in galleries],
        "Verdict": [tables.verdict(verdict), _nets(verdict)] if verdict else [],
        "Differences between nets": [differences(verdict.get("differences", []))],
        "By kind and by skull": groups(summary),
        "Table 1": [_table(table1, table1.get("title", ""))],
        "Sweep": [_table(sweep, "Its runs, seeds together")],
        "Copies": copies(quality["copies"]) if quality else [],
        "Generated pairs in numbers": [tables.fidelity(quality)] if quality else [],
        "Maps": list(map(scatter, maps.get("maps", []))),
        "Pictures": list(map(picture, sorted((workdir / "figures").glob("*.png"), key=_place))),
        "Training": [plot for path in records for plot in curves(logs.read(path), path.stem)],
    }
    shown = {
        title: [block for block in blocks if (block.rows if isinstance(block, Table) else block)]
        for title, blocks in sections.items()
    }
    title = f"skullgen: {config.get('model_name') or 'pairs'}, {workdir.resolve().name}"
    path = workdir / "report.html"
    files.replace(path, html.fill("page.html", {"title": title, "sections": shown}))
    return path


def curves(records: list[Row], log: str) -> list[Plot]:
    """A small chart for each metric of a log (dicts as in train.jsonl), a colour for each phase.

    Of long logs runs of updates are drawn: their mean, in a band from the least to the largest.
    """
    metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    for record in records:
        for name, value in record.items():
            if name not in ("phase", "epoch", "step") and isinstance(value, numbers.Real):
                metrics[name][record["phase"]].append((record["step"], value))
    order = list(dict.fromkeys(record["phase"] for record in records))
    return [
        Plot(f"{log}: {name}", "curve", {"": {"order": order, "phases": _bands(phases)}}, 11)
        for name, phases in metrics.items()
    ]


def _bands(phases):
    """x, mean, least and largest of runs of the finite values of each phase."""
    bands = {}
    for phase, values in phases.items():
        values = np.array(values, float)
        values = values[np.isfinite(values).all(1)]
        if len(values):
            runs = np.array_split(values, min(RUNS, len(values)))
            bands[phase] = [[*run.mean(0), run[:, 1].min(), run[:, 1].max()] for run in runs]
    return {phase: np.round(np.transpose(band), 6).tolist() for phase, band in bands.items()}


def _nets(verdict):
    """What a verdict's nets were trained on."""
    rows = []
    for net, about in verdict["nets"].items():
        empty = [case["empty"] for case in verdict["cases"] if case["net"] == net]
        stores = [f"{s['path']}, {s['pairs']} pairs" for s in about.get("stores", [])]
        cells = [str(about.get(name, "")) for name in ("updates", "augment", "seed")]
        cells.append(f"{sum(empty)} of {len(empty)}" if empty else "")
        rows.append([net, "; ".join(stores) or "nothing", *cells])
    columns = ["net", "trained on", "updates", "augment", "seed", "empty predictions"]
    ceiling = (
        "Ceiling: what the truth itself scores at its source's grid after the way down and up."
    )
    return Table("", columns, rows, [ceiling])


def differences(rows: list[Row]) -> Table:
    """Differences between nets, and on which side of zero their intervals lie."""
    lines = []
    for row in rows:
        says = ("lower", "higher")[row["mean"] > 0]
        if "." not in row["metric"]:  # of the user's own it is not known what is better
            says = ("worse", "better")[(row["mean"] > 0) != row["metric"].startswith("hd95")]
        if row["low"] is None:
            says = "no interval"
        elif row["low"] * row["high"] <= 0:
            says = "not told apart"
        nets = f"{row['net']} minus {row['minus']}"
        lines.append(
            [nets, row["column"], row["metric"], _span(row, "+"), str(row["skulls"]), says]
        )
    return Table("", ["nets", "column", "metric", "mean", "skulls", "the first is"], lines)


def groups(summary: list[Row]) -> list[Plot]:
    """Charts of the means by kind of defect and by skull, of the column test where there is one."""
    made = []
    for by, metric in itertools.product(("kind", "skull"), ("dice", "hd95_mm")):
        rows = [row for row in summary if row["by"] == by and row["metric"] == metric]
        rows = [row for row in rows if row["mean"] is not None]
        column = min((row["column"] for row in rows), key="test".__ne__, default="")
        rows = [row for row in rows if row["column"] == column]
        rows = [row | {"says": f"{row['net']}, {row['group']}: {_span(row)}"} for row in rows]
        if rows:
            title = f"{metric} by {by}, {tables.COLUMNS.get(column, column)}"
            made.append(Plot(title, "dots", {"": rows}, 5 + 0.9 * len(rows)))
    return made


def copies(found: dict[str, Any]) -> list[str | Plot | Table]:
    """How near generated skulls and pairs lie to training ones: words, bars, the closest."""
    made, columns = [], ["generated", "training pair", "its skull", "Dice"]
    for name in ("skull", "pair"):
        near = found[name]
        plot = Plot(f"Dice to the nearest training {name}", "histogram", {"": near})
        rows = [
            [str(row["generated"]), str(row["training"]), row["name"], tables.number(row["dice"])]
            for row in near["closest"]
        ]
        made += [tables.copies(name, near), plot, Table("The closest", columns, rows)]
    return made


def scatter(found: dict[str, Any]) -> Plot:
    """One of `maps.json`'s maps, thinned to 5000 points; the case is under the pointer."""
    points = found["points"][:: max(1, -(-len(found["points"]) // POINTS))]
    return Plot(found["title"], "map", {"": points}, 30)


def picture(path: Path) -> Picture:
    """A PNG with its caption, as WebP that is not too large for a page."""
    image, file = Image.open(path).convert("RGB"), io.BytesIO()
    image.thumbnail((1840, 4000))
    image.save(file, "webp", quality=85)
    source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(source, PICTURES.get(path.stem, path.stem))


def _stale(config, metrics):
    """A line where the numbers are of other settings than the config that lies beside them."""
    before = metrics.get("config", config)
    changed = [name for name in SETTINGS if before.get(name) != config.get(name)]
    line = "the numbers are of an earlier config; since then changed: " + ", ".join(changed)
    return [f"{line}: run the stage evaluate"] if changed else []


def _facts(config, versions, stores):
    seconds = versions.get("seconds", {})
    facts = {
        "model": config.get("model_name"),
        "commit": versions.get("commit"),
        "hardware": ", ".join(map(str, versions.get("devices", []))),
        "time": ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items()),
    }
    if len(seconds) > 10:  # of a sweep
        facts["time"] = f"{sum(seconds.values()) / 60:.0f} minutes over {len(seconds)} runs"
    for one in stores:
        name, about, rows = one.path.stem, one.attrs, one.rows()
        left = len(one.every()) - len(rows)
        facts[f"{name} pairs left out"] = left and f"{left}, listed in leave_out.txt"
        size = f"{one.size}³ voxels, {about['voxel_mm']:.3g} mm a side"
        facts[f"{name} pairs"] = f"{one.count} of {size}"
        if name == "real":
            split = one.column("split")[rows].tolist()
            facts["split"] = ", ".join(f"{n} {split.count(k)}" for k, n in enumerate(store.SPLITS))
            facts |= {"skulls": len(about["names"]), "kinds": ", ".join(about["kinds"])}
            facts["licence of the data"] = about["licence"]
    return [[name, str(value)] for name, value in facts.items() if value]


def _turned(pairs):
    """Some pairs of a store to turn."""
    # Spread over the store: different skulls and, since kinds take turns, different kinds.
    rows, shown = pairs.rows(), {}
    rows = rows[np.linspace(0, len(rows) - 1, min(4 * PAIRS, len(rows))).astype(int)]
    names, kinds = pairs.names(pairs.column("skull")[rows]), pairs.column("kind")[rows]
    for row, name, kind, bits in zip(rows.tolist(), names, kinds, pairs.load(rows), strict=True):
        pair = np.moveaxis(store.unpack(bits, pairs.size), -1, 0)
        if pair.any((1, 2, 3)).all():
            kind = pairs.attrs["kinds"][kind] if kind >= 0 else ""
            shown[", ".join(filter(None, [name, kind, f"pair {row}"]))] = pair
    chosen = list(shown)[:: max(1, len(shown) // PAIRS)][:PAIRS]
    figures = {label: scene(*shown[label], pairs.attrs["voxel_mm"]) for label in chosen}
    return Plot(f"{pairs.path.stem.title()} pairs", "scene", figures, 25)


def _place(path):
    """Pictures in the order of their captions, others last."""
    return [*PICTURES, path.stem].index(path.stem), path


def _table(found, title):
    """A table of a JSON file."""
    rows = [list(map(str, row)) for row in found.get("rows", [])]
    return Table(title, found.get("columns", []), rows, found.get("notes", []))


def _span(row, sign=""):
    return tables.span(row, sign, digits=1 if row["metric"].endswith("mm") else 3)
