"""`report.html`: all that a work directory holds on one page, which needs no network.

What `templates/page.html` shows is gathered here; what is empty there is left out.
"""

import base64
import collections
import io
import numbers
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from skullgen.core import files
from skullgen.data import store
from skullgen.report import html, tables
from skullgen.report.scene import scene
from skullgen.report.tables import Table
from skullgen.training import logs

PAIRS = 5  # in a scene
POINTS = 5000  # in a map
RUNS = 300  # of updates in a curve
PICTURE_BYTES, PICTURES_BYTES = 500_000, 6_000_000  # of one picture that stays as it is; of all
METRICS = {
    "dice": "Dice",
    "bdsc": "bDSC",
    "hd95_mm": "HD95, mm",
    "dice_512": "Dice at 512³",
    "dice_native": "native Dice",
    "ceiling_native": "its ceiling",
    "hd95_native_mm": "native HD95, mm",
}
SPLITS = {
    "test": "Test: skulls that nothing was trained on",
    "validation": "Learnt from (paper: validation): the real pairs that the generator learnt from",
    "train": "Train: the net's own training pairs",
    "selection": "Selection: by these one net of several may be chosen, and nothing is judged",
}
PICTURES = {
    "interpolation": "Between two skulls, in equal steps through the latent space",
    "segmentation": "A test case as nets of several sources segment it",
    "generated_pairs": "Generated pairs: the skull with its hole, then with its defect",
    "real_and_generated": "Rows of real pairs, each above generated ones seen the same way",
    "real_pairs": "Real pairs: the skull with its hole, then with its defect",
    "generated_slices": "Generated pairs in slices",
    "closest": "The generated skulls that lie nearest to a training skull, each before that one",
}
JSON = ("config", "versions", "metrics", "maps", "table1", "sweep")
SETTINGS = ("data", "model", "phases", "generate", "segment", "evaluate")  # of the numbers
Row = dict[str, Any]


class Plot(NamedTuple):
    """What the page's function `kind` draws: one of `figures` at a time."""

    kind: str
    figures: list[dict[str, Any]]
    label: str  # what is seen, for those who cannot see it
    high: float  # rem


class Picture(NamedTuple):
    """A PNG of `figures/`; `source` is empty where the page has no room for it."""

    file: str
    caption: str
    source: str


def write(workdir: Path) -> Path:
    """Writes `report.html` from what the work directory holds, whole or not at all; its path."""
    found = {name: files.read_json(workdir / f"{name}.json") or {} for name in JSON}
    config, metrics = found["config"], found["metrics"]
    verdict, quality = (metrics.get(name) or {} for name in ("verdict", "quality"))
    paths = [workdir / f"{name}.zarr" for name in ("real", "generated")]
    stores = [store.Store(path) for path in paths if store.exists(path)]
    summary = verdict.get("summary") or []
    records = {path.name: path for path in sorted(workdir.glob("*.jsonl"), key=_last_of_all)}
    charts = {name: curves(logs.read(path)) for name, path in records.items()}
    values = {
        "title": f"skullgen: {config.get('model_name') or 'pairs'}, {workdir.resolve().name}",
        "warnings": [*(metrics.get("warnings") or []), *_stale(config, metrics)],
        "facts": _facts(config, found["versions"], stores),
        "details": _details(config, found["versions"], stores),
        "scenes": [one for one in map(_scene, stores) if one],
        "galleries": sorted(path.parent.name for path in workdir.glob("gallery/*/index.html")),
        "verdict": verdict,
        "scores": scores(summary),
        "intervals": sorted({r["interval"] for r in summary if r["by"] == "all"} - {"none"}),
        "nets": _nets(verdict),
        "differences": differences(verdict.get("differences") or []),
        "groups": groups(summary),
        "table1": _table(found["table1"], found["table1"].get("title", "")),
        "sweep": _table(found["sweep"], "Its runs, seeds together"),
        "copies": copies(quality.get("copies") or {}),
        "quality": tables.fidelity(quality)._replace(notes=()) if quality.get("skull") else None,
        "maps": list(map(scatter, found["maps"].get("maps") or [])),
        "pictures": pictures(sorted((workdir / "figures").glob("*.png"))),
        "logs": [(name, plots) for name, plots in charts.items() if plots],
    }
    path = workdir / "report.html"
    files.replace(path, html.fill("page.html", values))
    return path


def curves(records: list[Row]) -> list[Plot]:
    """A small chart for each metric of a log (dicts as in train.jsonl), a colour for each phase.

    Of long logs runs of updates are drawn: their mean, in a band from the least to the largest.
    The axis is logarithmic where all values are positive and span two decades.
    """
    metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    order = list(dict.fromkeys(str(record.get("phase", "")) for record in records))
    for record in records:
        for name, value in record.items():
            if name not in ("phase", "epoch", "step") and isinstance(value, numbers.Real):
                metrics[name][str(record.get("phase", ""))].append((record["step"], value))
    return [_curve(name, phases, order) for name, phases in metrics.items()]


def _curve(name, phases, order):
    bands, lost, ends = {}, 0, []
    for phase, values in phases.items():
        values = np.array(values, float)
        finite = values[np.isfinite(values).all(1)]
        lost += len(values) - len(finite)
        if not len(finite):
            continue
        starts = np.arange(0, len(finite), -(-len(finite) // RUNS))
        x, y = np.add.reduceat(finite, starts).T / np.diff(starts, append=len(finite))
        low, high = (f.reduceat(finite[:, 1], starts) for f in (np.minimum, np.maximum))
        bands[phase] = [np.round(part, 6).tolist() for part in (x, y, low, high)]
        ends += [low.min(), high.max()]
    log = bool(ends) and bool(0 < 100 * min(ends) < max(ends))
    label = f"{name} ({lost} not finite)" if lost else name
    return Plot("curve", [{"phases": bands, "order": order, "log": log}], label, 11)


def scores(summary: list[Row]) -> list[Table]:
    """Tables of a verdict's means with their intervals, one for each column of table 1."""
    whole, made = [row for row in summary if row["by"] == "all"], []
    for split, title in SPLITS.items():
        rows = {(r["net"], r["metric"]): r for r in whole if r["column"] == split}
        present = dict.fromkeys(metric for _, metric in rows)
        metrics = [name for name in {**METRICS, **present} if name in present]  # the user's, too
        lines = []
        for net in dict.fromkeys(net for net, _ in rows):
            row = next(row for key, row in rows.items() if key[0] == net)
            size = f"{row['skulls']} skulls, {row['cases']} cases"
            cells = [_mean(rows.get((net, metric))) for metric in metrics]
            lines.append([f"{net}\n{size}", *cells])
        made.append(Table(title, ["net", *(METRICS.get(m, m) for m in metrics)], lines))
    return [table for table in made if table.rows]


def _nets(verdict):
    lines = []
    for net, about in (verdict.get("nets") or {}).items():
        empty = [case["empty"] for case in verdict.get("cases") or [] if case["net"] == net]
        stores = [f"{s['path']}, {s['pairs']} pairs" for s in about.get("stores", [])]
        cells = [about.get(name, "") for name in ("updates", "augment", "seed")]
        count = f"{sum(empty)} of {len(empty)}" if empty else ""
        lines.append([net, "; ".join(stores) or "nothing", *map(str, cells), count])
    return Table(
        "", ["net", "trained on", "updates", "augment", "seed", "empty predictions"], lines
    )


def differences(rows: list[Row]) -> Table:
    """Differences between nets, and on which side of zero their intervals lie."""
    lines = []
    for row in rows:
        says = ("lower", "higher")[row["mean"] > 0]  # of the user's own, it does not say better
        if row["metric"] in METRICS:
            says = ("worse", "better")[(row["mean"] > 0) != row["metric"].startswith("hd95")]
        if row["low"] is None:
            says = "no interval"
        elif row["low"] * row["high"] <= 0:
            says = "not told apart"
        metric = METRICS.get(row["metric"], row["metric"])
        nets = f"{row['net']} minus {row['minus']}"
        lines.append([nets, row["column"], metric, _mean(row, "+"), str(row["skulls"]), says])
    return Table("", ["nets", "column", "metric", "mean", "skulls", "the first is"], lines)


def groups(summary: list[Row]) -> list[tuple[str, str, list[Plot]]]:
    """Charts of the means by kind of defect and by skull: title, which pairs, a chart a metric."""
    made = []
    for by, title in (("kind", "By kind of defect"), ("skull", "By skull")):
        rows = [row for row in summary if row["by"] == by and row["mean"] is not None]
        split = next((s for s in SPLITS if any(row["column"] == s for row in rows)), None)
        rows = [row for row in rows if row["column"] == split]
        charts = [_dots(rows, metric, title) for metric in ("dice", "hd95_mm")]
        charts = [chart for chart in charts if chart.figures[0]["rows"]]
        made += [(title, f"{SPLITS[split]}.", charts)] if charts else []
    return made


def _dots(rows, metric, title):
    rows = [row for row in rows if row["metric"] == metric]
    rows = [r | {"says": f"{r['net']}, {r['group']}: {_span(r)}"} for r in rows]
    high = 5 + 0.6 * len(rows) + 0.6 * len({row["group"] for row in rows})
    return Plot("dots", [{"rows": rows}], f"{METRICS[metric]}, {title.lower()}", high)


def copies(found: dict[str, Any]) -> list[tuple[str, str, Plot, Table]]:
    """How near generated skulls and pairs lie to training ones: title, words, bars, the closest."""
    made, columns = [], ["generated", "training pair", "its skull", "Dice"]
    for name in ("skull", "pair"):
        near = found.get(name) or {}
        if not near.get("generated"):
            continue
        title = f"Dice to the nearest training {name}"
        figure = {k: near.get(k) for k in ("generated", "held_out", "limit")} | {"title": title}
        rows = [
            [str(row["generated"]), str(row["training"]), row["name"], tables.number(row["dice"])]
            for row in near.get("closest") or []
        ]
        plot, closest = Plot("histogram", [figure], title, 15), Table("The closest", columns, rows)
        made.append((f"{name.title()}s", tables.copies(name, near), plot, closest))
    return made


def scatter(found: dict[str, Any]) -> Plot:
    """One of `maps.json`'s maps, thinned to 5000 points; the case is under the pointer."""
    points = found["points"]
    shown = points[:: max(1, -(-len(points) // POINTS))]
    label = f"{found['title']}, {len(shown)} of {len(points)} points"
    return Plot("map", [{"points": shown}], label, 30)


def pictures(paths: list[Path]) -> list[Picture]:
    """PNG files with their captions: large ones as JPEG, and those past 6 MB by name only."""
    made, spent, known = [], 0, list(PICTURES)
    order = {path: known.index(path.stem) if path.stem in known else len(known) for path in paths}
    for path in sorted(paths, key=order.get):
        data, kind = path.read_bytes(), "png"
        if len(data) > PICTURE_BYTES:
            picture, file, kind = Image.open(path).convert("RGB"), io.BytesIO(), "jpeg"
            picture.thumbnail((1840, 4000))
            picture.save(file, kind, quality=85)
            data = file.getvalue()
        source = ""
        if spent + len(data) < PICTURES_BYTES:
            spent += len(data)
            source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        made.append(Picture(path.name, PICTURES.get(path.stem, path.stem), source))
    return made


def _stale(config, metrics):
    """A line where the numbers are of other settings than the config that lies beside them."""
    before = metrics.get("config") or config
    changed = [name for name in SETTINGS if before.get(name) != config.get(name)]
    line = "the numbers are of an earlier config; since then changed: " + ", ".join(changed)
    return [f"{line}: run the stage evaluate"] if changed else []


def _facts(config, versions, stores):
    facts = {"model": config.get("model_name"), "commit": versions.get("commit")}
    facts["hardware"] = ", ".join(map(str, versions.get("devices") or []))
    seconds = versions.get("seconds") or {}
    facts["time"] = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items())
    if len(seconds) > 10:  # of a sweep
        facts["time"] = f"{sum(seconds.values()) / 60:.0f} minutes over {len(seconds)} runs"
    for one in stores:
        name, about, rows = one.path.stem, one.attrs, one.rows()
        left = len(np.setdiff1d(one.every(), rows))
        facts[f"{name} pairs left out"] = left and f"{left}, listed in leave_out.txt"
        size = f"{one.size}³ voxels, {about['voxel_mm']:.3g} mm a side"
        facts[f"{name} pairs"] = f"{one.count} of {size}"
        if name == "real":
            split = one.column("split")[rows].tolist()
            facts["split"] = ", ".join(f"{n} {split.count(k)}" for k, n in enumerate(store.SPLITS))
            facts |= {"skulls": len(about["names"]), "kinds": ", ".join(about["kinds"])}
            facts["licence of the data"] = about["licence"]
    return {name: value for name, value in facts.items() if value}


def _details(config, versions, stores):
    parts = {"Config": config, "Versions": versions}
    for one in stores:
        parts[f"Data: {one.path.name}"] = {**one.attrs, "recipe": one.recipe}
    names = ["field", "value"]
    return [Table(title, names, list(map(list, _leaves(part)))) for title, part in parts.items()]


def _scene(pairs):
    """Some pairs of a store to turn: (title, their labels, plot); None where it has none."""
    if pairs.missing():
        return None
    # Spread over the store: different skulls and, since kinds take turns, different kinds.
    rows, shown = pairs.rows(), []
    rows = rows[np.linspace(0, len(rows) - 1, min(4 * PAIRS, len(rows))).astype(int)]
    names, kinds = pairs.names(pairs.column("skull")[rows]), pairs.column("kind")[rows]
    for row, name, kind, bits in zip(rows.tolist(), names, kinds, pairs.load(rows), strict=True):
        skull, defect = np.moveaxis(store.unpack(bits, pairs.size), -1, 0)
        if skull.any() and defect.any():
            kind = pairs.attrs["kinds"][kind] if kind >= 0 else ""
            label = ", ".join(filter(None, [name, kind, f"pair {row}"]))
            shown.append((label, skull, defect))
    if not shown:
        return None
    shown = shown[:: max(1, len(shown) // PAIRS)][:PAIRS]
    figures = [scene(skull, defect, pairs.attrs["voxel_mm"]) for _, skull, defect in shown]
    title = f"{pairs.path.stem.title()} pairs"
    return title, [label for label, *_ in shown], Plot("scene", figures, title, 25)


def _last_of_all(path):
    return path.name != "train.jsonl", path.name


def _table(found, title):
    """A table of a JSON file."""
    rows = [list(map(str, row)) for row in found.get("rows") or []]
    return Table(title, found.get("columns") or [], rows, found.get("notes") or [])


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested dicts and lists of dicts as text, each with its dotted name."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}".strip("."))
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "-" if value is None else f"{value:.4g}" if type(value) is float else str(value)


def _span(row, sign=""):
    return tables.span(row, sign, digits=1 if row["metric"].endswith("mm") else 3)


def _mean(row, sign=""):
    """A mean, and below it its interval."""
    return "-" if row is None else _span(row, sign).replace(" [", "\n[")
