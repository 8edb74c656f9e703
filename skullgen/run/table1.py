"""Table 1 with controls: which runs it is made of, and the table that their results make.

Every run is an ordinary one in a folder of its own: data, generators, and a V-Net for each row,
count and seed, all trained for the same number of updates. Runs need each other only by name.
"""

import copy
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files
from skullgen.core.errors import UserError, in_range, one_of
from skullgen.data import store
from skullgen.evaluation import explore, judges, metrics, verdict
from skullgen.report import pictures, tables
from skullgen.run import stages

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
    """One run: its folder, the folders that it needs, `make() -> config`.

    row: where its numbers stand: (title, pairs, fold) of table 1, None for what only makes pairs.
    """

    name: str
    needs: tuple[str, ...]
    make: Callable[[], ConfigDict]
    row: Any = None


class _Net(NamedTuple):
    """A V-Net: its row, its seed, and what it learns from: a control, a generator's pairs."""

    title: str
    pairs: str
    seed: int
    control: str = ""
    model: str = ""


def plan(config: ConfigDict, folder: Path) -> list[Job]:
    """The jobs of a config with `table`, each after those that it needs."""
    _check(config, folder)
    numbers = range(max(config.table.folds, 1))
    return [job for number in numbers for job in _fold(config, folder, number)]


def _fold(config, folder, number):
    """The jobs of one fold, or of all where there are none: data, generators, V-Nets."""
    table, place = config.table, f"fold{number}/" * bool(config.table.folds)
    data, generators, controls = f"{place}data", [], {}
    for model in _models(config):
        for seed in range(table.seeds if table.refit else 1):
            make = partial(_generator, config, folder / data, model, seed)
            generators.append(Job(f"{place}{model}-s{seed}", (data,), make))
    nets = []
    for net in _nets(config):
        name = f"{place}{net.title}-{net.pairs}-s{net.seed}".replace(" + ", "+").replace(" ", "_")
        generator = f"{place}{net.model}-s{net.seed if table.refit else 0}"
        needs = [data, *[generator] * bool(net.model)]
        if net.control == "best control":
            needs += [name for names in controls.values() for name in names]
        elif not net.model:
            controls.setdefault(net.title, []).append(name)
        choose = partial(best_control, folder, controls)  # when they are scored
        generated = folder / generator / "generated.zarr"
        make = partial(_net, config, folder / data, net, generated, choose)
        nets.append(Job(name, tuple(needs), make, (net.title, net.pairs, number)))
    return [Job(data, (), partial(_data, config, number)), *generators, *nets]


def _models(config):
    return list(dict.fromkeys(config.table.models))


def _nets(config):
    """The V-Nets: of real and of fresh pairs, then of generated ones, alone and beside those."""
    seeds, counts = range(config.table.seeds), list(map(str, sorted(set(config.table.counts))))
    sizes = {"real": "all", "fresh": str(config.table.fresh or "")}
    rows = [*(("", count) for count in counts), ("real", counts[-1]), ("best control", counts[-1])]
    for seed in seeds:
        for title, (source, _) in CONTROLS.items():
            if sizes[source]:
                yield _Net(title, sizes[source], seed, title)
    for seed in seeds:
        for model in _models(config):
            for control, count in rows:
                title = f"{control} + {model}" if control else model
                yield _Net(title, count, seed, control, model)


def _check(config, folder):
    table = config.table
    for name in _models(config):
        one_of("table.models", name, sorted(config.generators))
    one_of("table.metric", table.metric, verdict.METRICS)
    for count in table.counts or (None,):
        in_range("table.counts", count, 1)
    for field, least in {"seeds": 1, "folds": 0, "fresh": 0}.items():
        in_range(f"table.{field}", table[field], least)
    in_range("data.folds", config.data.folds, 0, 0)  # table.folds sets it
    explore.check(config.explore)
    if "," in str(folder):
        raise UserError(f"{folder}: no comma may be in its name: choose another --workdir")


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


def _base(config, stages, data=None, model=""):
    """The table's config, or a generator's; data: the folder of the fold's pairs."""
    base = copy.deepcopy(config.generators[model] if model else config)
    with base.unlocked():
        if not model:
            del base.table, base.generators
        base.stages = stages
    base.data.update(config.data)
    if data:
        base.data.update(source="store", root=str(data / "real.zarr"))
    return base


def _data(config, number):
    base, table = _base(config, ("ingest",)), config.table
    base.data.folds, base.data.fold, base.segment.fresh = table.folds, number, table.fresh
    return base


def _generator(config, data, model, seed):
    base = _base(config, ("ingest", "train", "generate"), data, model)
    base.model.resolution, base.workers = config.model.resolution, config.workers
    base.seed = base.generate.seed = seed
    base.generate.count = max(config.table.counts)
    return base


def _net(config, data, net, generated, choose):
    base, stores = _base(config, ("ingest", "segment", "evaluate"), data), []
    control = choose() if net.control == "best control" else net.control
    source, base.segment.model.augment = CONTROLS.get(control, ("", False))
    if source:
        count = "all" if source == "real" else config.table.fresh
        stores.append(f"{data / source}.zarr:train:{count}")
    if net.model:
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


def _rows(jobs, done):
    """(title, pairs) -> for each fold the folders of the V-Nets that are done, one a seed."""
    rows = {}
    for name, _, _, row in [job for job in jobs if job.row]:
        title, pairs, fold = row
        folds = rows.setdefault((title, pairs), {})
        folds.setdefault(fold, []).extend([name] * (name in done))
    return {row: list(folds.values()) for row, folds in rows.items() if any(folds.values())}


def gather(
    config: ConfigDict, folder: Path, jobs: list[Job], done: Collection[str]
) -> tables.Table:
    """The table of the V-Nets that are done; writes `table1.json`, which has its numbers too."""
    metric, rows = config.table.metric, _rows(jobs, done)
    real = rows.get(("real", "all"))
    every = [((title, "-"), real, net) for title, net in RULES.items() if real]
    every += [(row, folds, "vnet") for row, folds in rows.items()]
    entries = [e for place in every if (e := _entry(folder, *place, metric))["skulls"]]
    controls = {e["title"]: e["runs"] for e in entries if e["title"] in CONTROLS}
    best = best_control(folder, controls) if controls else None
    for entry in entries:
        for name, title in (("minus_real", "real"), ("minus_best", best)):
            other = next((e for e in entries if e["title"] == title), entry)
            ours, theirs = entry["skulls"], other["skulls"]
            paired = [value - theirs[skull] for skull, value in ours.items() if skull in theirs]
            entry[name] = None if other is entry else {**_interval(paired), "than": title}
    title = f"Table 1: mean {metric} on real pairs; every V-Net has as many updates"
    notes = _remarks(config, entries, best, f"{len(done)} of {len(jobs)} runs are done")
    table = tables.Table(title, list(COLUMNS), list(map(_line, entries)), notes)
    files.write_json(folder / "table1.json", {**table._asdict(), "entries": entries})
    return table


def figures(config: ConfigDict, folder: Path, jobs: list[Job], done: Collection[str]) -> None:
    """Figures 3 and 5: the generators in one map, a test case by one V-Net of each row."""
    rows = _rows(jobs, done).items()
    firsts = {title: next(name for fold in folds for name in fold) for (title, _), folds in rows}
    if "real" not in firsts:
        return
    path = folder / "real.zarr"
    stages.link(folder / firsts["real"] / path.name, path, config.model.resolution)
    makes, nets = {job.name: job.make for job in jobs}, {}
    for title, name in firsts.items():
        if not title.startswith("best"):
            own = makes[name]()
            nets[title] = judges.load(own.segment, own.model.resolution, folder / name)["vnet"]
    alone = {title: net.parts[0].store for title, net in nets.items() if len(net.parts) == 1}
    generated = {title: one for title, one in alone.items() if one.path.name == "generated.zarr"}
    real = store.Store(path)
    pictures.maps(folder, real, generated, [nets["real"]], config.explore)
    pictures.segmentations(folder, real, nets, config.evaluate.threshold)


def _entry(folder, row, folds, net, metric):
    """One row's numbers: per-skull means over seeds, the folds' skulls together."""
    runs = [[_cases(folder / name) for name in fold] for fold in folds]

    def mean(column, of):
        """The mean of the runs' means: each seed may have pairs of its own."""
        every = [_values(cases, column, of or metric, net) for fold in runs for cases in fold]
        means = [np.mean(list(values.values())) for values in every if values]
        return float(np.mean(means)) if means else None

    by_skull = [[v for c in fold if (v := _values(c, "test", metric, net))] for fold in runs]
    tests = {
        f"{number} {skull}": float(np.mean([one[skull] for one in fold]))
        for number, fold in enumerate(by_skull)
        for skull in (fold[0] if fold else ())
    }
    # One number a seed, over all folds: the spread that another seed would show.
    turns = zip(*by_skull, strict=False)
    means = [np.mean([v for one in turn for v in one.values()]) for turn in turns]
    return {
        **{"title": row[0], "pairs": row[1], "seeds": len(means), "skulls": tests},
        **_interval(list(tests.values())),
        "seed_sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        **{name: mean(*place) for name, place in NUMBERS.items()},
        "runs": [name for fold in folds for name in fold],
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
