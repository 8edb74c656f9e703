"""`report.html`: all that a work directory holds on one page, which needs no network.

A section is a list of blocks: a `Table`, a `Plot`, a picture, text, or a dict to unfold. What is
empty is left out.
"""

import base64
import collections
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from markupsafe import Markup
from scipy import stats

from skullgen.core import files
from skullgen.data import measures, store
from skullgen.report import html, tables
from skullgen.report.tables import Table
from skullgen.training import logs

RUNS = 300  # of updates in a curve
SETTINGS = ("data", "model", "phases", "generate", "segment", "evaluate")  # of the numbers
Row = dict[str, Any]


class Plot(NamedTuple):
    """What the page's function `kind` draws."""

    title: str
    kind: str
    figure: Any


def write(workdir: Path) -> Path:
    """Writes `report.html` from what the work directory holds, whole or not at all; its path."""
    config, versions, metrics, maps, table, sweep = (
        files.read_json(workdir / f"{name}.json") or {}
        for name in ("config", "versions", "metrics", "maps", "table", "sweep")
    )
    verdict, quality = metrics.get("verdict", {}), metrics.get("quality")
    before, stale = metrics.get("config", config), []
    if changed := [name for name in SETTINGS if before.get(name) != config.get(name)]:
        stale = [f"The numbers are of another {', '.join(changed)}: run the stage evaluate."]
    paths = [workdir / f"{name}.zarr" for name in ("real", "generated")]
    stores = [store.Store(path) for path in paths if store.exists(path)]
    details = {"Config": config, "Versions": versions}
    link = Markup('<a href="gallery/{}/index.html">{}</a>').format
    galleries = sorted(path.parent.name for path in workdir.glob("gallery/*/index.html"))
    records = sorted(workdir.glob("*.jsonl"), key=lambda path: (path.name != "train.jsonl", path))
    sections = {
        "Warnings": metrics.get("warnings", []) + stale,
        "What was run": [
            Table("", ["what", ""], _facts(config, versions, stores)),
            {title: values for title, values in details.items() if values},
        ],
        "Pairs to leaf through": [link(urllib.parse.quote(name), name) for name in galleries],
        "Verdict": [tables.verdict(verdict)] if verdict else [],
        "By kind of defect": [kinds(verdict.get("summary", []))],
        "What pairs are worth": [_table(table, table.get("title", ""))],
        "Sweep": [_table(sweep, "Its runs, seeds together")],
        "Copies": [_nearness(name, quality["copies"][name]) for name in ("skull", "pair")]
        if quality
        else [],
        "Generated pairs beside real ones": distributions(*stores) if len(stores) == 2 else [],
        "Generated pairs in numbers": [
            *([tables.fidelity(quality)] if quality else []),
            *tables.distances((quality or {}).get("distances", {})),
        ],
        "Maps": [Plot(one["title"], "map", one["points"]) for one in maps.get("maps", [])],
        "Pictures": list(map(picture, sorted(workdir.glob("figures/*.png")))),
        "Training": [plot for path in records for plot in curves(logs.read(path), path.stem)],
    }
    content = {
        title: [block for block in blocks if (block.rows if isinstance(block, Table) else block)]
        for title, blocks in sections.items()
    }
    title = f"skullgen: {config.get('model_name') or 'pairs'}, {workdir.resolve().name}"
    path = workdir / "report.html"
    files.replace(path, html.fill("page.html", {"title": title, "sections": content}))
    return path


def _nearness(name, copies):
    groups = {"generated": copies["generated"], "held-out real": copies["held_out"] or []}
    figure = {"groups": groups, "limit": copies["limit"]}
    return Plot(f"Dice to the nearest training {name}", "histogram", figure)


def distributions(real: store.Store, generated: store.Store) -> list[Plot]:
    """A histogram of each measure, of real training pairs and of generated ones."""
    rows = {"real": real.rows("train"), "generated": generated.rows()}
    values = [one.column("measures")[rows[one.path.stem]] for one in (real, generated)]
    plots = []
    for name, ours, theirs in zip(measures.NAMES, *(x.T for x in values), strict=True):
        ours, theirs = ours[~np.isnan(ours)], theirs[~np.isnan(theirs)]
        if len(ours) and len(theirs) and name not in measures.WORDS:
            pairs = {"generated": np.round(theirs, 3).tolist(), "real": np.round(ours, 3).tolist()}
            figure = {"groups": pairs, "limit": None}
            title = f"{name.replace('_', ' ')}: {distance(ours, theirs)}"
            plots.append(Plot(title, "histogram", figure))
    return plots


def distance(real: Float32[np.ndarray, " n"], generated: Float32[np.ndarray, " m"]) -> str:
    """How far two distributions are apart, in words: the earth mover's, in real deviations."""
    apart = stats.wasserstein_distance(real, generated)
    deviation = float(real.std())
    if not apart:
        return "alike"
    if not deviation:
        return f"apart by {apart:.3g}, where real ones do not differ"
    share, way = apart / deviation, "larger" if generated.mean() > real.mean() else "smaller"
    bounds = {0.1: "alike", 0.3: "a little apart", 0.8: "apart", np.inf: "far apart"}
    word = next(word for bound, word in bounds.items() if share < bound)
    return f"{word} ({share:.2f} standard deviations; generated ones {way} in the mean)"


def curves(records: list[Row], log: str) -> list[Plot]:
    """A chart for each metric of a log: means of runs of updates, in a band from least to most."""
    metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    for record in records:
        for name, value in record.items():
            if name not in ("phase", "epoch", "step"):
                metrics[name][record["phase"]].append((record["step"], value))
    order, plots = list(dict.fromkeys(record["phase"] for record in records)), []
    for name, phases in metrics.items():
        bands = {phase: band for phase, values in phases.items() if (band := _bands(values))}
        plots.append(Plot(f"{log}: {name}", "curve", {"order": order, "phases": bands}))
    return plots


def _bands(values):
    """x, mean, least and largest of runs of the finite values of a phase."""
    values = np.array(values, float)
    values = values[np.isfinite(values).all(1)]
    runs = np.array_split(values, max(1, min(RUNS, len(values))))
    bands = [[*run.mean(0), run[:, 1].min(), run[:, 1].max()] for run in runs if len(run)]
    return np.round(np.transpose(bands), 6).tolist()


def kinds(summary: list[Row]) -> Table:
    """The mean Dice of the test by kind of defect."""
    place = ("kind", "test", "dice")
    rows = [row for row in summary if (row["by"], row["column"], row["metric"]) == place]
    lines = [[row["net"], row["group"], tables.span(row), str(row["cases"])] for row in rows]
    return Table("", ["net", "kind", "test Dice", "cases"], lines)


def picture(path: Path) -> dict[str, str]:
    """A PNG with its caption."""
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"source": source, "caption": path.stem.replace("_", " ")}


def _facts(config, versions, stores):
    seconds = versions.get("seconds", {})
    facts = {
        "model": config.get("model_name"),
        "commit": versions.get("commit"),
        "hardware": ", ".join(map(str, versions.get("devices", []))),
        "time": seconds and f"{sum(seconds.values()) / 60:.1f} minutes",
    }
    for one in stores:
        name, rows = one.path.stem, one.rows()
        splits = one.column("split")[rows].tolist()
        counts = {split: splits.count(k) for k, split in enumerate(store.SPLITS) if k in splits}
        size = f"{one.size}³ voxels, {one.attrs['voxel_mm']:.3g} mm a side"
        facts[f"{name} pairs"] = f"{one.count} of {size}"
        facts[f"skulls of {name} pairs"] = len(one.attrs["names"])
        facts[f"{name} pairs left out"] = len(one.every()) - len(rows)
        facts[f"split of {name} pairs"] = ", ".join(f"{k} {n}" for k, n in counts.items())
        facts[f"licence of {name} pairs"] = one.attrs["licence"]
    return [[name, str(value)] for name, value in facts.items() if value]


def _table(file, title):
    return Table(title, file.get("columns", []), file.get("rows", []), file.get("notes", []))
