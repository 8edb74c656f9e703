"""A sweep that a config file declares: `sweep(add)` beside its `get_config`; its runs, its table.

def sweep(add):
    for penalty in (1.0, 10.0):
        for seed in range(3):
            add({"model.penalty": penalty}, seed=seed)
"""

import copy
import csv
import hashlib
import io
import re
from typing import Any, NamedTuple

import numpy as np
from ml_collections.config_flags import config_path

from skullgen.core import files
from skullgen.core.errors import UserError

SHOWN = {  # title of a column that is printed -> the number in it
    "test Dice": "vnet.test.dice",
    "at 512³": "vnet.test.dice_512",
    "bDSC": "vnet.test.bdsc",
    "HD95, mm": "vnet.test.hd95_mm",
    "real pairs: test Dice": "vnet_real.test.dice",
    "nearest skull": "quality.skull.nearest_training_dice.generated",
    "nearest defect": "quality.defect.nearest_training_dice.generated",
    "copies": "quality.copies.skull.share_above",
    "empty defects": "quality.removed.empty_defects",
}
NEAR = "mean Dice of a generated {} with the training one most like it; of an unseen real one"
MEANS = {  # title -> what it says, and the number that it is held against
    "test Dice": ("of the V-Net trained on generated pairs, on unseen skulls", None),
    "real pairs: test Dice": ("of the V-Net trained on the real pairs", None),
    "nearest skull": (NEAR.format("skull"), "quality.skull.nearest_training_dice.held_out"),
    "nearest defect": (NEAR.format("defect"), "quality.defect.nearest_training_dice.held_out"),
    "copies": ("share of skulls nearer to a training one than 95 % of unseen ones are", None),
    "empty defects": ("share of generated pairs without a defect", None),
}


class Job(NamedTuple):
    """One run: its folder, the folders that it needs, and `make() -> config`."""

    name: str
    needs: tuple[str, ...]
    make: Any


def folder_name(parts):
    """The words of a folder's name, joined: without a slash or a comma, of 120 bytes at most."""
    name = "-".join(parts).replace("/", "_").replace(",", "+")
    if len(name.encode()) > 120:  # a file system's names have 255 bytes
        name = f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def plan(config, declare, fixed=()):
    """The runs that `declare` (a config file's `sweep`) adds to: (list of Job, fields of each).

    config: what `get_config` returned, with the command line's overrides, which hold for all runs;
    fixed: their fields. `add({"model.penalty": 10.0}, seed=0)` adds a run with these fields, named
    as after `--config.`. A run's folder is named by them alone: more runs rename none. Raises
    UserError for a field that is not there, of another kind, or set twice.
    """
    runs = []
    declare(lambda *given, **more: runs.append(dict(*given, **more)))
    plan = [Job(_name(fields), (), lambda f=fields: _made(config, f)) for fields in runs]
    for job, fields in zip(plan, runs, strict=True):
        both = [field for field in fields if field in fixed]
        if both:
            raise UserError(f"--config.{both[0]} is set by sweep(add), too: leave one of them out")
        if [other.name for other in plan].count(job.name) > 1:
            raise UserError(f"sweep(add) adds the run {job.name} twice")
        job.make()
    if not plan:
        raise UserError("sweep(add) adds no run")
    return plan, runs


def _name(fields):
    parts = [f"{field}={_shown(value)}" for field, value in fields.items()]
    return re.sub(r"[^\w.=+-]+", "_", folder_name(parts) or "base", flags=re.ASCII)


def _shown(value):
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _made(config, fields):
    made = config.copy_and_resolve_references()
    made.phases = copy.deepcopy(made.phases)  # which a copy shares
    with made.unlocked():
        for field, value in fields.items():
            try:
                config_path.set_value(field, made, value)
            except (AttributeError, LookupError):
                raise UserError(f"sweep(add): the config has no field {field!r}") from None
            except (TypeError, ValueError) as error:
                raise UserError(f"sweep(add): config.{field} is {value!r}: {error}") from None
    return made


def numbers(result):
    """The numbers of a run's `metrics.json` (a dict): dotted name -> float.

    Of the verdict `net.column.metric`, means over skulls; of the rest their place in the file.
    """
    found = {
        f"{row['net']}.{row['column']}.{row['metric']}": row["mean"]
        for row in (result.get("verdict") or {}).get("summary", ())
        if row["by"] == "all"
    }
    return found | dict(_leaves(result.get("quality") or {}, "quality"))


def _leaves(value, name):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, int | float):
        yield name, float(value)


def gather(config, folder, runs, done):
    """The table of a sweep's finished runs: means and deviations over seeds, a dict.

    config: the sweep's. runs: name -> fields of the finished ones. done: how many there are, in
    words. Runs that differ in nothing but seeds (`seed`, `generate.seed`, ...) share a row. Writes
    `sweep.json` (all numbers, of every run too), `sweep.csv` (all numbers) and `sweep.md` in
    `folder`.
    """
    fields = list(dict.fromkeys(f for own in runs.values() for f in own if not _is_seed(f)))
    found, rows = {}, {}
    for name, own in runs.items():
        place = tuple(_shown(own.get(f, config_path.get_value(f, config))) for f in fields)
        rows.setdefault(place, []).append(name)
        found[name] = numbers(files.read_json(folder / name / "metrics.json") or {})
    entries = [
        {
            "fields": dict(zip(fields, place, strict=True)),
            "runs": names,
            "numbers": _means([found[name] for name in names]),
        }
        for place, names in rows.items()
    ]
    known = list(dict.fromkeys(key for entry in entries for key in entry["numbers"]))
    own = {
        key.removeprefix("vnet.test."): key for key in known if re.match(r"vnet\.test\..*\.", key)
    }
    shown = {title: key for title, key in {**SHOWN, **own}.items() if key in known}
    columns = [*fields, "runs", *shown]
    lines = [
        [
            *e["fields"].values(),
            str(len(e["runs"])),
            *(_cell(e["numbers"].get(k)) for k in shown.values()),
        ]
        for e in entries
    ]
    notes = [f"{done}. Mean ± standard deviation over the runs of a row."]
    if not known:
        notes[0] += " No run has a metrics.json: name the stage `evaluate`."
    over_all = _means(list(found.values()))
    for title, (words, key) in MEANS.items():
        if title in shown:
            notes.append(f"{title}: {words}" + (f" {_cell(over_all.get(key))}." if key else "."))
    heads = list(shown.items())[:4]
    for name in runs:
        values = [f"{title} {found[name][key]:.3f}" for title, key in heads if key in found[name]]
        notes.append(": ".join([name, *[", ".join(values)] * bool(values)]))
    made = [{"name": n, "fields": runs[n], "numbers": found[n]} for n in runs]
    table = {"title": "Sweep", "columns": columns, "rows": lines, "notes": notes}
    files.write_json(folder / "sweep.json", {**table, "entries": entries, "runs": made})
    files.replace(folder / "sweep.csv", _csv(fields, known, entries).encode())
    files.replace(folder / "sweep.md", ("\n".join(describe(table)) + "\n").encode())
    return table


def _is_seed(field):
    return field.rpartition(".")[2] == "seed"


def _means(found):
    """Name -> mean, sd (None of one run) and number of the runs that have it."""
    made = {}
    for key in dict.fromkeys(key for one in found for key in one):
        values = [one[key] for one in found if key in one]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        made[key] = {"mean": float(np.mean(values)), "sd": sd, "runs": len(values)}
    return made


def _cell(found):
    if found is None:
        return "-"
    return f"{found['mean']:.3f}" + ("" if found["sd"] is None else f" ± {found['sd']:.3f}")


def _csv(fields, known, entries):
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([*fields, "runs", *(f"{key}{end}" for key in known for end in ("", " sd"))])
    for entry in entries:
        values = [entry["numbers"].get(key, {}) for key in known]
        cells = [value.get(what) for value in values for what in ("mean", "sd")]
        writer.writerow([*entry["fields"].values(), len(entry["runs"]), *cells])
    return file.getvalue()


def describe(table):
    """The table of `gather` as lines of Markdown."""
    cells = [table["columns"], *table["rows"]]
    wide = [max(len(row[i]) for row in cells) for i in range(len(table["columns"]))]
    cells.insert(1, ["-" * width for width in wide])
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, wide, strict=True)) + " |"
        for row in cells
    ]
    return [*lines, "", *(f"- {note}" for note in table["notes"])]
