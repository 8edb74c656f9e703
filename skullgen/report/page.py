"""`report.html`: all that a work directory holds on one page, which needs no network.

Fragments are HTML, as in `markup`. Volumes are bool [D, D, D], RAS.
"""

import base64
import io
import numbers
import re
from importlib import resources
from urllib.parse import quote

import numpy as np
from PIL import Image
from plotly.offline import get_plotlyjs

from skullgen.core import files
from skullgen.data import store
from skullgen.delivery import mesh
from skullgen.report.markup import anchor, listing, plot, section, table, text
from skullgen.training import logs

PAIRS = 5  # in a scene
POINTS = 5000  # in a map
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


def write(workdir):
    """Writes `report.html` from what the work directory holds, whole or not at all; its path."""
    names = ("config.json", "metrics.json", "maps.json", "table1.json", "sweep.json")
    config, metrics, found, table1, swept = (_json(workdir / name) for name in names)
    verdict, quality = (metrics.get(name) or {} for name in ("verdict", "quality"))
    parts = {
        "Warnings": listing([*(metrics.get("warnings") or []), *_stale(config, metrics)]),
        "What was run": _run(workdir, config),
        "Pairs to turn": _scenes(workdir),
        "Pairs to leaf through": _galleries(workdir),
        "Verdict": scores(verdict),
        "Differences between nets": differences(verdict.get("differences") or []),
        "By kind and by skull": groups(verdict.get("summary") or []),
        "Table 1": table(table1.get("columns"), table1.get("rows"), table1.get("title", ""))
        + listing(table1.get("notes")),
        "Sweep": table(swept.get("columns"), swept.get("rows"), "Its runs, seeds together")
        + listing(swept.get("notes")),
        "Copies": copies(quality.get("copies") or {}),
        "Generated pairs in numbers": amounts(quality),
        "Maps": "".join(map(scatter, found.get("maps") or [])),
        "Pictures": pictures(sorted((workdir / "figures").glob("*.png"))),
        "Training": "".join(map(_log, sorted(workdir.glob("*.jsonl"), key=_last_of_all))),
    }
    parts = {anchor(title): (title, body) for title, body in parts.items() if body}
    fill = {
        "title": text(f"skullgen: {config.get('model_name') or 'pairs'}, {workdir.resolve().name}"),
        "contents": "".join(f'<li><a href="#{k}">{v[0]}</a></li>' for k, v in parts.items()),
        "body": "".join(section(*part) for part in parts.values()),
        "plotly": get_plotlyjs(),
    }
    page = resources.files("skullgen").joinpath("page.html").read_text(encoding="utf-8")
    path = workdir / "report.html"
    # In one pass, so that what is filled in is not filled in turn.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], page)
    files.replace(path, page.encode())
    return path


def scene(title, pairs, voxel_mm):
    """A pair that can be turned, chosen among pairs (label, skull, defect) of some voxel's side.

    Its axes, in mm, span the frame; the defect is first seen from its own side.
    """
    figures = [mesh.scene(skull, defect, voxel_mm) for _, skull, defect in pairs]
    choice = "".join(f'<option value="{n}">{text(p[0])}</option>' for n, p in enumerate(pairs))
    return (
        f'<div class="scene"><h3>{text(title)}</h3><div class="controls"><label>Pair '
        f'<select autocomplete="off">{choice}</select></label><label>Skull <input type="range" '
        'max="1" step="0.1" value="0.6" autocomplete="off" aria-label="Opacity of the skull">'
        f"</label></div>{plot('scene', figures, title, 25)}</div>"
    )


def curves(records):
    """A small chart for each metric of a log (dicts as in train.jsonl), a colour for each phase.

    Of long logs runs of updates are drawn: their mean, in a band from the least to the largest.
    The axis is logarithmic where all values are positive and span two decades.
    """
    found, charts = {}, ""
    order = list(dict.fromkeys(str(record.get("phase", "")) for record in records))
    for record in records:
        for name, value in record.items():
            if name not in ("phase", "epoch", "step") and isinstance(value, numbers.Real):
                phase = found.setdefault(name, {}).setdefault(str(record.get("phase", "")), [])
                phase.append((record["step"], value))
    for name, phases in found.items():
        figure, lost, ends = {"phases": {}, "order": order}, 0, []
        for phase, values in phases.items():
            values = np.array(values, float)
            good = values[np.isfinite(values).all(1)]
            lost += len(values) - len(good)
            if not len(good):
                continue
            starts = np.arange(0, len(good), -(-len(good) // 300))
            x, y = np.add.reduceat(good, starts).T / np.diff(starts, append=len(good))
            low, high = (f.reduceat(good[:, 1], starts) for f in (np.minimum, np.maximum))
            figure["phases"][phase] = [np.round(part, 6).tolist() for part in (x, y, low, high)]
            ends += [low.min(), high.max()]
        figure["log"] = bool(ends) and 0 < 100 * min(ends) < max(ends)
        title = f"{name} ({lost} not finite)" if lost else name
        charts += f"<div><h4>{text(title)}</h4>{plot('curve', [figure], name, 11)}</div>"
    return f'<div class="grid">{charts}</div>' if charts else ""


def scores(verdict):
    """Tables of a verdict's means (`metrics.json`) with their intervals, and what the nets are."""
    body, summary = "", [row for row in verdict.get("summary") or [] if row["by"] == "all"]
    for split, title in SPLITS.items():
        rows = {(r["net"], r["metric"]): r for r in summary if r["column"] == split}
        found = dict.fromkeys(metric for _, metric in rows)  # and the user's own
        metrics = [name for name in dict.fromkeys([*METRICS, *found]) if name in found]
        lines = []
        for net in dict.fromkeys(net for net, _ in rows):
            row = next(row for key, row in rows.items() if key[0] == net)
            size = f"{row['skulls']} skulls, {row['cases']} cases"
            lines.append([(net, size), *(_mean(rows.get((net, metric))) for metric in metrics)])
        titles = [METRICS.get(metric, metric) for metric in metrics]
        body += table(["net", *titles], lines, title)
    lines = []
    for net, about in (verdict.get("nets") or {}).items():
        empty = [case["empty"] for case in verdict.get("cases") or [] if case["net"] == net]
        stores = [f"{s['path']}, {s['pairs']} pairs" for s in about.get("stores", [])]
        fields = [about.get(name, "") for name in ("updates", "augment", "seed")]
        trained = "; ".join(stores) or "nothing"
        lines.append([net, trained, *fields, f"{sum(empty)} of {len(empty)}" if empty else ""])
    nets = table(["net", "trained on", "updates", "augment", "seed", "empty predictions"], lines)
    kinds = ", ".join(sorted({str(row["interval"]) for row in summary} - {"none"}) or ["none"])
    note = (
        f"Brackets: 95 % intervals ({kinds}). Dice, bDSC and HD95: the model's grid, "
        f"{verdict.get('voxel_mm')} mm a voxel. Upsampling to the other grids: "
        f"{verdict.get('rule')}, threshold {verdict.get('threshold')}. Ceiling: what the truth "
        "itself scores at the source's grid after the same way down and up."
    )
    return body and f'{body}<p class="note">{text(note)}</p>{nets}'


def differences(rows):
    """A table of differences between nets, and on which side of zero their intervals lie."""
    lines = []
    for row in rows:
        better = (row["mean"] > 0) != row["metric"].startswith("hd95")
        says = "better" if better else "worse"
        if row["metric"] not in METRICS:  # which of two values is the better one, it does not say
            says = "higher" if row["mean"] > 0 else "lower"
        if row["low"] is None or row["low"] * row["high"] <= 0:
            says = "not told apart" if row["low"] is not None else "no interval"
        metric = METRICS.get(row["metric"], row["metric"])
        nets = f"{row['net']} minus {row['minus']}"
        lines.append([nets, row["column"], metric, _mean(row, "+"), row["skulls"], says])
    return table(["nets", "column", "metric", "mean", "skulls", "the first is"], lines)


def groups(rows):
    """Charts of the means by kind of defect and by skull, with their intervals, for each net."""
    body = ""
    for by, title in (("kind", "By kind of defect"), ("skull", "By skull")):
        rest = [row for row in rows if row["by"] == by and row["mean"] is not None]
        split = next((s for s in SPLITS if any(row["column"] == s for row in rest)), None)
        charts = ""
        for metric in ("dice", "hd95_mm"):
            mine = [r for r in rest if (r["column"], r["metric"]) == (split, metric)]
            mine = [r | {"says": f"{r['net']}, {r['group']}: {' '.join(_mean(r))}"} for r in mine]
            if mine:
                high = 5 + 0.6 * len(mine) + 0.6 * len({row["group"] for row in mine})
                chart = plot("dots", [{"rows": mine}], f"{METRICS[metric]}, {title}", high)
                charts += f"<div><h4>{METRICS[metric]}</h4>{chart}</div>"
        if charts:
            body += f'<h3>{title}</h3><p class="note">{SPLITS[split]}.</p>'
            body += f'<div class="grid wide">{charts}</div>'
    return body


def copies(found):
    """How near generated skulls and pairs lie to training ones, in words, bars and a table."""
    body = ""
    for name in ("skull", "pair"):
        near = found.get(name) or {}
        if not near.get("generated"):
            continue
        says = f"{len(near['generated'])} generated {name}s"
        if near.get("limit") is None:
            says += " were compared; without held-out real ones nothing says how near is too near."
        else:
            says = (
                f"{near['share_above']:.0%} of {says} lie nearer to a training {name} (Dice above "
                f"{near['limit']:.3f}, the dashed line) than 95 % of {len(near['held_out'])} "
                "unseen real ones do. Where nothing is copied, 5 % are expected to."
            )
        title = f"Dice to the nearest training {name}"
        figure = {k: near.get(k) for k in ("generated", "held_out", "limit")} | {"title": title}
        chart = plot("histogram", [figure], title, 15)
        rows = [
            [row["generated"], row["training"], row["name"], _number(row["dice"])]
            for row in near.get("closest") or []
        ]
        rows = table(["generated", "training pair", "its skull", "Dice"], rows, "The closest")
        body += f"<div><h3>{name.title()}s</h3><p>{says}</p>{chart}{rows}</div>"
    return f'<div class="grid wide">{body}</div>' if body else ""


def amounts(quality):
    """Tables of `quality`'s numbers for each channel, and of what post-processing removed."""
    channels = [name for name in ("skull", "defect") if quality.get(name)]
    columns = [dict(_flat(quality[name])) for name in channels]
    rows = [(key, *(column.get(key) for column in columns)) for key in (columns or [{}])[0]]
    removed = list(_flat(quality.get("removed") or {}))
    for lines in (rows, removed):
        lines[:] = [(re.sub(r"[._]", " ", key), *values) for key, *values in lines]
    return table(["mean", *channels], rows) + table(["post-processing", ""], removed)


def scatter(found):
    """One of `maps.json`'s maps, thinned to 5000 points; the case is under the pointer."""
    points = found["points"]
    shown = points[:: max(1, -(-len(points) // POINTS))]
    title = f"{found['title']}, {len(shown)} of {len(points)} points"
    return f"<h3>{text(title)}</h3>{plot('map', [{'points': shown}], title, 30)}"


def pictures(paths):
    """PNG files with their captions: large ones as JPEG, and those past 6 MB by name only."""
    body, spent, known = "", 0, {name: number for number, name in enumerate(PICTURES)}
    for path in sorted(paths, key=lambda path: known.get(path.stem, len(known))):
        data, kind, name = path.read_bytes(), "png", PICTURES.get(path.stem, path.stem)
        if len(data) > PICTURE_BYTES:
            picture, file, kind = Image.open(path).convert("RGB"), io.BytesIO(), "jpeg"
            picture.thumbnail((1840, 4000))
            picture.save(file, kind, quality=85)
            data = file.getvalue()
        fits = spent + len(data) < PICTURES_BYTES
        spent += len(data) * fits
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        image = (
            f'<img alt="{text(name)}" src="{source}">' if fits else text(f"figures/{path.name}: ")
        )
        body += f"<figure>{image}<figcaption>{text(name)}</figcaption></figure>"
    return body


def _stale(config, metrics):
    """A line where the numbers are of other settings than the config that lies beside them."""
    parts = ("data", "model", "phases", "generate", "segment", "evaluate")
    held = metrics.get("config") or config
    changed = [name for name in parts if held.get(name) != config.get(name)]
    line = "the numbers are of an earlier config; since then changed: " + ", ".join(changed)
    return [f"{line}: run the stage evaluate"] if changed else []


def _run(workdir, config):
    versions = _json(workdir / "versions.json")
    facts = {"model": config.get("model_name"), "commit": versions.get("commit")}
    facts["hardware"] = ", ".join(map(str, versions.get("devices") or []))
    seconds = versions.get("seconds") or {}
    facts["time"] = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items())
    if len(seconds) > 10:  # of a sweep
        facts["time"] = f"{sum(seconds.values()) / 60:.0f} minutes over {len(seconds)} runs"
    details = {"Config": config, "Versions": versions}
    for name in ("real", "generated"):
        if not store.exists(workdir / f"{name}.zarr"):
            continue
        group = store.Store(workdir / f"{name}.zarr")
        about, (count, side) = dict(group.attrs), group["pairs"].shape[:2]
        left = len(np.setdiff1d(store.Store(group.root).every(), store.Store(group.root).rows()))
        facts[f"{name} pairs left out"] = left and f"{left}, listed in leave_out.txt"
        facts[f"{name} pairs"] = f"{count} of {side}³ voxels, {about['voxel_mm']:.3g} mm a side"
        if name == "real":
            split = group.column("split")[store.Store(workdir / "real.zarr").rows()].tolist()
            facts["split"] = ", ".join(f"{n} {split.count(k)}" for k, n in enumerate(store.SPLITS))
            facts |= {"skulls": len(about["names"]), "kinds": ", ".join(about["kinds"])}
            facts["licence of the data"] = about["licence"]
        details[f"Data: {name}.zarr"] = about
    facts = {name: value for name, value in facts.items() if value}
    body = "".join(f"<div><dt>{k}</dt><dd>{text(v)}</dd></div>" for k, v in facts.items())
    body = f'<dl class="facts">{body}</dl>' if facts else ""
    for title, values in details.items():
        if rows := list(_flat(values)):
            body += (
                f"<details><summary>{title}</summary>{table(['field', 'value'], rows)}</details>"
            )
    return body


def _scenes(workdir):
    body = ""
    for name in ("real", "generated"):
        path = workdir / f"{name}.zarr"
        if not store.exists(path) or store.Store(path).missing():
            continue
        group, pairs = store.Store(path), []
        # Spread over the store: different skulls and, since kinds take turns, different kinds.
        rows = store.Store(path).rows()
        rows = rows[np.linspace(0, len(rows) - 1, min(4 * PAIRS, len(rows))).astype(int)]
        size, columns = group.size, {k: group[k][:] for k in ("skull", "kind")}
        for row, bits in zip(rows.tolist(), store.Store(path).load(rows), strict=True):
            lists = {"skull": group.attrs["names"], "kind": group.attrs["kinds"]}
            known = [lists[k][c[row]] for k, c in columns.items() if c[row] >= 0]
            skull, defect = np.moveaxis(store.unpack(bits, size), -1, 0)
            if skull.any() and defect.any():
                pairs.append((", ".join([*known, f"pair {row}"]), skull, defect))
        if pairs:
            step = max(1, len(pairs) // PAIRS)
            body += scene(f"{name.title()} pairs", pairs[::step][:PAIRS], group.attrs["voxel_mm"])
    return body and f'<div class="grid wide">{body}</div>'


def _galleries(workdir):
    body = ""
    for path in sorted(workdir.glob("gallery/*/index.html")):
        name = text(path.parent.name)
        body += f'<li><a href="gallery/{quote(path.parent.name)}/index.html">{name}</a></li>'
    return body and f"<ul>{body}</ul>"


def _log(path):
    charts = curves(logs.read(path))
    return charts and f"<h3>{text(path.name)}</h3>{charts}"


def _last_of_all(path):
    return path.name != "train.jsonl", path.name


def _json(path):
    return files.read_json(path) or {}


def _flat(value, name=""):
    """The leaves of nested dicts and lists of dicts, each with its dotted name."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}".strip("."))
    else:
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        shown = "–" if shown is None else shown
        yield name, f"{shown:.4g}" if isinstance(shown, float) else shown


def _number(value, sign="", digits=3):
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def _mean(row, sign=""):
    if row is None or row["mean"] is None:
        return "–", ""
    digits = 1 if row["metric"].endswith("mm") else 3
    mean, low, high = (_number(row[k], sign, digits) for k in ("mean", "low", "high"))
    return mean, "" if row["low"] is None else f"[{low}, {high}]"
