"""Table 1 with controls: which runs it is made of, and the table that their results make.

Every run is an ordinary one in a folder of its own: data, generators, and a V-Net for each row,
count and seed, all trained for the same number of updates. Runs on a cluster's nodes are
independent but for the stores that they need, by name.
"""

from typing import NamedTuple

import numpy as np

from skullgen.core import files
from skullgen.core.errors import UserError, one_of
from skullgen.evaluation import metrics, verdict
from skullgen.run.variants import Job

CONTROLS = {  # row -> store, augmentation
    "real": ("real", False),
    "real + augmentation": ("real", True),
    "fresh defects": ("fresh", False),
    "fresh defects + augmentation": ("fresh", True),
}
RULES = {"mean training skull": "mean_skull", "mirror image": "mirror"}


class Row(NamedTuple):
    """A line of the table: its V-Nets' folders, one for each fold and seed."""

    title: str
    pairs: str
    folders: list[list[str]]

    def done(self, marks):
        """The row with only the folders whose job has a mark."""
        return self._replace(folders=[[n for n in fold if marks[n]] for fold in self.folders])


def plan(config, folder):
    """The jobs, in an order in which each comes after those that it needs, and the rows.

    config: an experiment with `table` and `generators` (`experiments/table1.py`). folder: of the
    sweep. Raises UserError for a model that is not among `config.generators`.
    """
    models = list(dict.fromkeys(filter(None, map(str.strip, config.table.models.split(",")))))
    for name in models:
        one_of("table.models", name, sorted(config.generators))
    one_of("table.metric", config.table.metric, verdict.METRICS)
    if (
        not _counts(config)
        or config.table.seeds < 1
        or min(config.table.folds, config.table.fresh) < 0
    ):
        raise UserError(
            f"table.counts {config.table.counts!r}, seeds {config.table.seeds}, folds "
            f"{config.table.folds}, fresh {config.table.fresh}: counts are numbers of 1 or more, "
            "comma-separated, seeds 1 or more, the others 0 or more"
        )
    if config.data.folds or "," in str(folder):
        raise UserError(
            "config.data.folds: set config.table.folds"
            if config.data.folds
            else f"{folder}: a sweep's folder has no comma in its name: choose another --workdir"
        )
    parts = [_fold(config, folder, models, fold) for fold in range(max(config.table.folds, 1))]
    rows = [Row(*key, [nets[key] for _, nets in parts]) for key in parts[0][1]]
    return [job for jobs, _ in parts for job in jobs], rows


def _counts(config):
    """The numbers of pairs, rising; [] where the field is no list of numbers."""
    parts = [part.strip() for part in config.table.counts.split(",")]
    good = all(part.isdecimal() and int(part) for part in parts)
    return sorted({int(part) for part in parts}) if good else []


def _fold(config, folder, models, fold):
    """A fold's jobs, and the folders of its V-Nets: (title, pairs) -> one a seed."""
    table, place = config.table, f"fold{fold}/" if config.table.folds else ""
    counts = _counts(config)
    seeds, data, most = range(table.seeds), f"{place}data", str(counts[-1])
    jobs, nets = [Job(data, (), lambda: _data(config, fold))], {}

    def generator(model, seed):
        return f"{place}{model}-s{seed if table.refit else 0}"

    def made(model, seed, count):
        return f"{folder / generator(model, seed) / 'generated.zarr'}:all:{count}"

    def kept(title):
        source, _ = CONTROLS[title]
        count = "all" if source == "real" else table.fresh
        return f"{folder / data / source}.zarr:train:{count}"

    def net(title, pairs, seed, needs, stores, augment=False):
        name = f"{place}{title}-{pairs}-s{seed}".replace(" + ", "+").replace(" ", "_")
        made = (config, folder / data, stores, augment, seed, (title, seed) == ("real", 0))
        jobs.append(Job(name, (data, *needs), lambda: _net(*made)))
        nets.setdefault((title, pairs), []).append(name)

    def best(model, seed):
        def stores():
            controls = {title: names for (title, _), names in nets.items() if title in CONTROLS}
            title = best_control(folder, controls)
            return f"{kept(title)},{made(model, seed, most)}", CONTROLS[title][1]

        return stores

    for model in models:
        for seed in seeds if table.refit else (0,):
            needs = (config, model, seed, counts[-1])
            jobs.append(
                Job(
                    generator(model, seed),
                    (data,),
                    lambda needs=needs: _generator(folder / data, *needs),
                )
            )
    for seed in seeds:
        for title, (source, augment) in CONTROLS.items():
            if source == "fresh" and not table.fresh:
                continue
            net(
                title,
                "all" if source == "real" else str(table.fresh),
                seed,
                (),
                kept(title),
                augment,
            )
    controls = [name for names in nets.values() for name in names]
    for seed in seeds:
        for model in models:
            needs = (generator(model, seed),)
            for count in counts:
                net(model, str(count), seed, needs, made(model, seed, count))
            both = f"{kept('real')},{made(model, seed, most)}"
            net(f"real + {model}", most, seed, needs, both)
            net(f"best control + {model}", most, seed, (*needs, *controls), best(model, seed))
    return jobs, nets


def best_control(folder, controls):
    """The control with the highest mean Dice on the split `validation`, which judges nothing else.

    Without such a split it is the last, fresh defects with augmentation, chosen beforehand.
    controls: row -> folders of its V-Nets.
    """
    found = {
        title: [v for name in names for v in _values(folder / name, "selection").values()]
        for title, names in controls.items()
    }
    if not all(found.values()):  # no such split, as in SkullBreak: what should be best
        return list(controls)[-1]
    return max(found, key=lambda title: np.mean(found[title]))


def _base(config, stages):
    base = config.copy_and_resolve_references()
    with base.unlocked():
        del base.table, base.generators
        base.stages = stages
    return base


def _data(config, fold):
    base = _base(config, "ingest")
    base.data.folds, base.data.fold = config.table.folds, fold
    base.segment.fresh = config.table.fresh
    return base


def _generator(data, config, model, seed, count):
    base = config.generators[model].copy_and_resolve_references()
    base.model.resolution = config.model.resolution
    base.stages = "ingest,train,generate"
    base.seed = base.generate.seed = seed
    base.generate.count = count
    base.workers = config.workers
    base.data.update(config.data)
    base.data.update(source="store", root=str(data / "real.zarr"))
    return base


def _net(config, data, stores, augment, seed, rules):
    base = _base(config, "ingest,segment,evaluate")
    base.data.update(source="store", root=str(data / "real.zarr"))
    if callable(stores):  # known only when the controls are scored
        stores, augment = stores()
    base.segment.stores, base.segment.model.augment = stores, augment
    base.segment.seed, base.segment.reference, base.segment.fresh = seed, False, 0
    base.evaluate.rules = rules
    return base


def _values(folder, column, metric="dice", net="vnet"):
    """Means by skull of a V-Net's column; {} where it is not evaluated yet."""
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    cases = files.read_json(path)["verdict"]["cases"]
    chosen = [case for case in cases if case["column"] == column and case["net"] == net]
    return verdict.by_skull(chosen, metric)


def gather(config, folder, rows, done):
    """Writes `table1.json` from the V-Nets that are evaluated; returns it.

    rows: as `plan` returns them. done: how many of the jobs are, in words.
    """
    metric = config.table.metric
    entries = [_entry(folder, row, "vnet", metric) for row in rows]
    rules = [
        _entry(folder, real._replace(title=title, pairs="-"), net, metric)
        for real in rows
        if real.title == "real"
        for title, net in RULES.items()
    ]
    entries = [entry for entry in [*rules, *entries] if entry["skulls"]]
    controls = [entry for entry in entries if entry["title"] in CONTROLS]
    # Chosen where nothing is judged: on the split `validation`.
    if all(entry["selection"] is not None for entry in controls):
        best = max(controls, key=lambda entry: entry["selection"], default=None)
    else:
        best = controls[-1] if controls else None
    for entry in entries:
        for name, other in (("minus_real", _find(entries, "real")), ("minus_best", best)):
            entry[name] = None if other in (None, entry) else _minus(entry, other)
    table = {
        "title": f"Table 1: mean {metric} on real pairs; every V-Net has as many updates",
        "columns": [
            "trained on",
            "pairs",
            "train",
            "learnt from",
            "test [95 % interval]",
            "sd of seeds",
            "test, model's grid",
            "test, native (ceiling)",
            "test minus real only",
            "test minus best control",
        ],
        "rows": [_line(entry) for entry in entries],
        "notes": _remarks(config, entries, best, done),
        "entries": entries,
    }
    files.write_json(folder / "table1.json", table)
    return table


def _find(entries, title):
    return next((entry for entry in entries if entry["title"] == title), None)


def _entry(folder, row, net, metric):
    """One row's numbers: per-skull means over seeds, the folds' skulls together."""
    entry = {"title": row.title, "pairs": row.pairs}
    names = [name for fold in row.folders for name in fold]

    def values(column, metric):
        """For each fold the seeds' values, by skull."""
        found = [[_values(folder / name, column, metric, net) for name in f] for f in row.folders]
        return [[one for one in fold if one] for fold in found]

    tests = {
        f"{number} {skull}": float(np.mean([one[skull] for one in fold]))
        for number, fold in enumerate(values("test", metric))
        for skull in (fold[0] if fold else ())
    }
    mean, low, high, kind = metrics.interval(list(tests.values())) if tests else (None,) * 4
    # One number a seed, over all folds: the spread that another seed would show.
    turns = zip(*values("test", metric), strict=False)
    means = [np.mean([v for one in turn for v in one.values()]) for turn in turns]

    def mean_of(column, metric=metric):
        """The mean of the runs' means: each seed may have pairs of its own."""
        runs = [list(one.values()) for fold in values(column, metric) for one in fold]
        return float(np.mean([np.mean(one) for one in runs])) if runs else None

    return {
        **entry,
        "seeds": len(means),
        "skulls": tests,
        "mean": mean,
        "low": low,
        "high": high,
        "interval": kind,
        "seed_sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "train": mean_of("train"),
        "validation": mean_of("validation"),
        "selection": mean_of("selection", "dice"),
        "grid": mean_of("test", "dice"),
        "native": mean_of("test", "dice_native"),
        "ceiling": mean_of("test", "ceiling_native"),
        "runs": names,
    }


def _minus(entry, other):
    paired = [
        value - other["skulls"][s] for s, value in entry["skulls"].items() if s in other["skulls"]
    ]
    mean, low, high, kind = metrics.interval(paired)
    return {"mean": mean, "low": low, "high": high, "interval": kind, "than": other["title"]}


def _line(entry):
    def number(value, sign=""):
        return "-" if value is None else f"{value:{sign}.3f}"

    def span(values, sign=""):
        if values is None or values["low"] is None:
            return number(values and values["mean"], sign)
        return f"{values['mean']:{sign}.3f} [{values['low']:{sign}.3f}, {values['high']:{sign}.3f}]"

    return [
        entry["title"],
        entry["pairs"],
        number(entry["train"]),
        number(entry["validation"]),
        span(entry),
        number(entry["seed_sd"]),
        number(entry["grid"]),
        f"{number(entry['native'])} ({number(entry['ceiling'])})",
        span(entry["minus_real"], "+"),
        span(entry["minus_best"], "+"),
    ]


def _remarks(config, entries, best, done):
    generators = "for each seed" if config.table.refit else "(its spread is in no interval)"
    skulls = max((len(entry["skulls"]) for entry in entries), default=0)
    kinds = sorted({entry["interval"] for entry in entries if entry["interval"]})
    return [
        f"{done}. {skulls} test skulls; intervals: {', '.join(kinds) or 'none'}; "
        f"{config.table.seeds} seeds, one generator {generators}; every V-Net has "
        f"{config.segment.updates} updates of {config.segment.batch_size} pairs at "
        f"{config.model.resolution}^3.",
        "train: the V-Net's own pairs. learnt from (paper: validation): the generators' pairs. "
        "test: skulls that nothing was trained on. Scored: all test pairs, of the others "
        f"{f'at most {config.evaluate.cases}' if config.evaluate.cases else 'all'}. "
        "A mixture draws equally from its parts.",
        f"best control: {best['title'] if best else '-'}, chosen on the split `validation`, which "
        "judges nothing (beforehand, where there is none; in `best control + ...` fold by fold).",
    ]


def describe(table):
    """The table as lines of text."""
    cells = [table["columns"], *table["rows"]]
    wide = [max(len(row[i]) for row in cells) for i in range(len(table["columns"]))]
    lines = [
        "  ".join(
            text.ljust(w) if i < 2 else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in cells
    ]
    return [table["title"], *lines, *table["notes"]]
