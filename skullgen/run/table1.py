"""Table 1 with controls: which runs it is made of, and the table that their results make.

Every run is an ordinary one in a folder of its own: data, generators, and a V-Net for each row,
count and seed, all trained for the same number of updates. Runs need each other only by name.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files, plugins
from skullgen.core.errors import UserError, in_range, one_of
from skullgen.evaluation import explore, metrics, verdict
from skullgen.report import tables

CONTROLS = {  # row -> store, augmentation
    "real": ("real", False),
    "real + augmentation": ("real", True),
    "fresh defects": ("fresh", False),
    "fresh defects + augmentation": ("fresh", True),
}
RULES = {"mean training skull": "mean_skull", "mirror image": "mirror"}
COLUMNS = (
    *("trained on", "pairs", "train", "learnt from", "test [95 % interval]", "sd of seeds"),
    *("test, model's grid", "test, native (ceiling)"),
    *("test minus real only", "test minus best control"),
)
NUMBERS = {  # of an entry -> column and metric of the cases; "": table.metric
    "train": ("train", ""),
    "validation": ("validation", ""),
    "selection": ("selection", "dice"),
    "grid": ("test", "dice"),
    "native": ("test", "dice_native"),
    "ceiling": ("test", "ceiling_native"),
}


class Job(NamedTuple):
    """One run: its folder, the folders that it needs, and `make() -> config`."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], ConfigDict]


class Row(NamedTuple):
    """A line of the table: its V-Nets' folders, one for each fold and seed."""

    title: str
    pairs: str
    folders: list[list[str]]


class _Net(NamedTuple):
    """A V-Net: its row, its seed, and what it learns from: a control, a generator's pairs."""

    title: str
    pairs: str
    seed: int
    control: str = ""
    model: str = ""


class _Fold(NamedTuple):
    """One fold of the cross-validation, or all where there are none; place: before its folders."""

    config: ConfigDict
    folder: Path
    number: int
    place: str

    def name(self, net):
        """The folder of a V-Net."""
        name = f"{net.title}-{net.pairs}-s{net.seed}"
        return self.place + name.replace(" + ", "+").replace(" ", "_")

    def generator(self, model, seed):
        """The folder of a generator; one for all seeds, unless `table.refit`."""
        return f"{self.place}{model}-s{seed if self.config.table.refit else 0}"

    def controls(self):
        """The folders of each control's V-Nets, which best controls need."""
        nets = [net for net in _nets(self.config) if not net.model]
        return {net.title: [self.name(n) for n in nets if n.title == net.title] for net in nets}

    def jobs(self):
        """Data, generators, V-Nets."""
        data, table = f"{self.place}data", self.config.table
        jobs = [Job(data, (), partial(_data, self))]
        for model in _models(self.config):
            for seed in range(table.seeds if table.refit else 1):
                make = partial(_generator, self, model, seed)
                jobs.append(Job(self.generator(model, seed), (data,), make))
        for net in _nets(self.config):
            needs = [data, *[self.generator(net.model, net.seed)] * bool(net.model)]
            if net.control == "best control":
                needs += [name for names in self.controls().values() for name in names]
            jobs.append(Job(self.name(net), tuple(needs), partial(_net, self, net)))
        return jobs


def plan(config: ConfigDict, folder: Path) -> tuple[list[Job], list[Row]]:
    """The jobs of a config with `table`, each after those that it needs, and the rows."""
    _check(config, folder)
    numbers, place = range(max(config.table.folds, 1)), "fold{}/" * bool(config.table.folds)
    folds = [_Fold(config, folder, number, place.format(number)) for number in numbers]
    nets = _nets(config)
    rows = [
        Row(*row, [[fold.name(net) for net in nets if net[:2] == row] for fold in folds])
        for row in dict.fromkeys(net[:2] for net in nets)
    ]
    return [job for fold in folds for job in fold.jobs()], rows


def _models(config):
    return list(dict.fromkeys(plugins.listed(config.table.models)))


def _nets(config):
    """The V-Nets: of real and of fresh pairs, then of generated ones, alone and beside those."""
    seeds, counts = range(config.table.seeds), list(map(str, _counts(config)))
    sizes = {"real": "all", "fresh": str(config.table.fresh or "")}
    rows = [*(("", count) for count in counts), ("real", counts[-1]), ("best control", counts[-1])]
    return [
        *(
            _Net(title, sizes[source], seed, title)
            for seed in seeds
            for title, (source, _) in CONTROLS.items()
            if sizes[source]
        ),
        *(
            _Net(f"{control} + {model}" if control else model, count, seed, control, model)
            for seed in seeds
            for model in _models(config)
            for control, count in rows
        ),
    ]


def _check(config, folder):
    table, counts = config.table, _counts(config)
    for name in _models(config):
        one_of("table.models", name, sorted(config.generators))
    one_of("table.metric", table.metric, verdict.METRICS)
    in_range("table.counts", counts[0] if counts else None, 1)
    for field, least in {"seeds": 1, "folds": 0, "fresh": 0}.items():
        in_range(f"table.{field}", table[field], least)
    in_range("data.folds", config.data.folds, 0, 0)  # table.folds sets it
    explore.check(config.explore)
    if "," in str(folder):
        raise UserError(f"{folder}: no comma may be in its name: choose another --workdir")


def _counts(config):
    """The numbers of pairs, rising."""
    parts = plugins.listed(config.table.counts)
    return sorted({int(part) if part.isdecimal() else 0 for part in parts})


def best_control(folder: Path, controls: dict[str, list[str]]) -> str:
    """The control with the highest mean Dice on the split `validation`, which judges nothing else.

    controls: row -> folders of its V-Nets. Without such a split (SkullBreak) it is the last, fresh
    defects with augmentation, chosen beforehand.
    """
    scores = {}
    for title, names in controls.items():
        values = [v for name in names for v in _values(_cases(folder / name), "selection").values()]
        scores[title] = np.mean(values) if values else None
    return list(scores)[-1] if None in scores.values() else max(scores, key=scores.get)


def _base(fold, stages, model=""):
    """The table's config, or a generator's, with the pairs of the fold."""
    base = copy.deepcopy(fold.config.generators[model] if model else fold.config)
    with base.unlocked():
        if not model:
            del base.table, base.generators
        base.stages = stages
    base.data.update(fold.config.data)
    if "segment" in stages or model:
        base.data.update(source="store", root=str(fold.folder / f"{fold.place}data" / "real.zarr"))
    return base


def _data(fold):
    base, table = _base(fold, ("ingest",)), fold.config.table
    base.data.folds, base.data.fold, base.segment.fresh = table.folds, fold.number, table.fresh
    return base


def _generator(fold, model, seed):
    base = _base(fold, ("ingest", "train", "generate"), model)
    base.model.resolution, base.workers = fold.config.model.resolution, fold.config.workers
    base.seed = base.generate.seed = seed
    base.generate.count = _counts(fold.config)[-1]
    return base


def _net(fold, net):
    base, stores, control = _base(fold, ("ingest", "segment", "evaluate")), [], net.control
    if control == "best control":  # known when the controls are scored
        control = best_control(fold.folder, fold.controls())
    source, base.segment.model.augment = CONTROLS.get(control, ("", False))
    if source:
        count = "all" if source == "real" else fold.config.table.fresh
        stores.append(f"{fold.folder / f'{fold.place}data' / source}.zarr:train:{count}")
    if net.model:
        generated = fold.folder / fold.generator(net.model, net.seed) / "generated.zarr"
        stores.append(f"{generated}:all:{net.pairs}")
    base.segment.stores = ",".join(stores)
    base.segment.seed, base.segment.reference, base.segment.fresh = net.seed, False, 0
    base.evaluate.rules = (net.title, net.seed) == ("real", 0)
    return base


def _cases(folder):
    """The cases of a run; [] where it is not evaluated yet."""
    result = files.read_json(folder / "metrics.json")
    return result["verdict"]["cases"] if result else []


def _values(cases, column, metric="dice", net="vnet"):
    """Means by skull of a V-Net's column."""
    return verdict.by_skull([c for c in cases if (c["column"], c["net"]) == (column, net)], metric)


def gather(config: ConfigDict, folder: Path, rows: list[Row], done: str) -> tables.Table:
    """The table of the V-Nets that are evaluated; writes `table1.json`, which has its numbers too.

    rows: as `plan` returns them. done: how many of the jobs are, in words.
    """
    metric = config.table.metric
    real = [row.folders for row in rows if row.title == "real"]
    every = [(Row(title, "-", *real), net) for title, net in RULES.items() if real]
    every += [(row, "vnet") for row in rows]
    entries = [e for row, net in every if (e := _entry(folder, row, net, metric))["skulls"]]
    controls = {e["title"]: e["runs"] for e in entries if e["title"] in CONTROLS}
    best = best_control(folder, controls) if controls else None
    for entry in entries:
        for name, title in (("minus_real", "real"), ("minus_best", best)):
            other = next((e for e in entries if e["title"] == title), entry)
            ours, theirs = entry["skulls"], other["skulls"]
            paired = [value - theirs[skull] for skull, value in ours.items() if skull in theirs]
            entry[name] = None if other is entry else {**_interval(paired), "than": title}
    title = f"Table 1: mean {metric} on real pairs; every V-Net has as many updates"
    notes = _remarks(config, entries, best, done)
    table = tables.Table(title, list(COLUMNS), list(map(_line, entries)), notes)
    files.write_json(folder / "table1.json", {**table._asdict(), "entries": entries})
    return table


def _entry(folder, row, net, metric):
    """One row's numbers: per-skull means over seeds, the folds' skulls together."""
    runs = [[_cases(folder / name) for name in fold] for fold in row.folders]

    def values(column, metric):
        """For each fold the seeds' values, by skull."""
        every = [[_values(cases, column, metric, net) for cases in fold] for fold in runs]
        return [list(filter(None, fold)) for fold in every]

    def mean(column, of):
        """The mean of the runs' means: each seed may have pairs of its own."""
        means = [np.mean(list(v.values())) for fold in values(column, of or metric) for v in fold]
        return float(np.mean(means)) if means else None

    folds = values("test", metric)
    tests = {
        f"{number} {skull}": float(np.mean([one[skull] for one in fold]))
        for number, fold in enumerate(folds)
        for skull in (fold[0] if fold else ())
    }
    # One number a seed, over all folds: the spread that another seed would show.
    turns = zip(*folds, strict=False)
    means = [np.mean([v for one in turn for v in one.values()]) for turn in turns]
    return {
        **{"title": row.title, "pairs": row.pairs, "seeds": len(means), "skulls": tests},
        **_interval(list(tests.values())),
        "seed_sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        **{name: mean(*place) for name, place in NUMBERS.items()},
        "runs": [name for fold in row.folders for name in fold],
    }


def _interval(values):
    names = ("mean", "low", "high", "interval")
    return dict(zip(names, metrics.interval(values) if values else (None,) * 4, strict=True))


def _line(entry):
    names = ("train", "validation", "seed_sd", "grid", "native", "ceiling")
    train, validation, sd, grid, native, ceiling = (tables.number(entry[name]) for name in names)
    minus = [tables.span(entry[name], "+") for name in ("minus_real", "minus_best")]
    test = tables.span(entry)
    cells = [train, validation, test, sd, grid, f"{native} ({ceiling})"]
    return [entry["title"], entry["pairs"], *cells, *minus]


def _remarks(config, entries, best, done):
    settings, table = config.segment, config.table
    skulls = max((len(entry["skulls"]) for entry in entries), default=0)
    kinds = ", ".join(sorted({e["interval"] for e in entries if e["interval"]})) or "none"
    spread = "for each seed" if table.refit else "(its spread is in no interval)"
    return [
        f"{done}. {skulls} test skulls; intervals: {kinds}; {table.seeds} seeds, one generator "
        f"{spread}; every V-Net has {settings.updates} updates of {settings.batch_size} pairs at "
        f"{config.model.resolution}^3.",
        "train: the V-Net's own pairs. learnt from (paper: validation): the generators' pairs. "
        "test: skulls that nothing was trained on, all pairs; of the others at most "
        "evaluate.cases (0: all). A mixture draws equally from its parts.",
        f"best control: {best or '-'}, chosen on the split `validation`, which judges nothing "
        "(beforehand, where there is none; in `best control + ...` fold by fold).",
    ]
