"""Table 1 with controls: which runs it is made of, and the table that their results make.

Every run is an ordinary one in a folder of its own: data, generators, and a V-Net for each row,
count and seed, all trained for the same number of updates. Runs on a cluster's nodes are
independent but for the stores that they need, by name.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files, plugins
from skullgen.core.errors import UserError, in_range, one_of
from skullgen.evaluation import metrics, verdict
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

    def done(self, marks: dict[str, Any]) -> "Row":
        """The row with only the folders whose job has a mark."""
        return self._replace(folders=[[n for n in fold if marks[n]] for fold in self.folders])


class Net(NamedTuple):
    """A V-Net to train: its row, its seed, the folders that it needs, and its stores.

    stores: `segment.stores` and whether it is augmented, or a function that returns both.
    """

    title: str
    pairs: str
    seed: int
    needs: tuple[str, ...]
    stores: tuple[str, bool] | Callable[[], tuple[str, bool]]


class Fold(NamedTuple):
    """One fold of the cross-validation, or all where there are none."""

    config: ConfigDict
    folder: Path
    number: int

    @property
    def place(self) -> str:
        """How the folders of its runs begin."""
        return f"fold{self.number}/" if self.config.table.folds else ""

    @property
    def data(self) -> str:
        """The folder of its data."""
        return f"{self.place}data"

    @property
    def real(self) -> Path:
        """Its real pairs."""
        return self.folder / self.data / "real.zarr"

    def generator(self, model: str, seed: int) -> str:
        """The folder of a generator; one for all seeds, unless `table.refit`."""
        return f"{self.place}{model}-s{seed if self.config.table.refit else 0}"

    def made(self, model: str, seed: int, count: int) -> str:
        """The generated pairs of a model, as a part of `segment.stores`."""
        return f"{self.folder / self.generator(model, seed) / 'generated.zarr'}:all:{count}"

    def control(self, title: str) -> str:
        """The pairs of a control, as a part of `segment.stores`."""
        source, _ = CONTROLS[title]
        count = "all" if source == "real" else self.config.table.fresh
        return f"{self.folder / self.data / source}.zarr:train:{count}"

    def net(self, net: Net) -> str:
        """The folder of a V-Net."""
        name = f"{self.place}{net.title}-{net.pairs}-s{net.seed}"
        return name.replace(" + ", "+").replace(" ", "_")


def plan(config: ConfigDict, folder: Path) -> tuple[list[Job], list[Row]]:
    """The jobs, in an order in which each comes after those that it needs, and the rows.

    config: an experiment with `table` and `generators` (`experiments/table1.py`). folder: of the
    sweep. Raises UserError for a wrong field of `config.table`.
    """
    _check(config, folder)
    folds = [Fold(config, folder, number) for number in range(max(config.table.folds, 1))]
    plan, rows = [], {}
    for fold in folds:
        nets = [*_controls(fold), *_mixtures(fold)]
        plan += [Job(fold.data, (), partial(_data, fold)), *_generators(fold)]
        for net in nets:
            plan.append(Job(fold.net(net), (fold.data, *net.needs), partial(_net, fold, net)))
        for row in dict.fromkeys((net.title, net.pairs) for net in nets):
            names = [fold.net(net) for net in nets if (net.title, net.pairs) == row]
            rows.setdefault(row, []).append(names)
    return plan, [Row(*row, names) for row, names in rows.items()]


def _check(config, folder):
    table = config.table
    for name in plugins.listed(table.models):
        one_of("table.models", name, sorted(config.generators))
    one_of("table.metric", table.metric, verdict.METRICS)
    if not _counts(config):
        raise UserError("table.counts is empty: numbers of pairs, comma-separated")
    for count in _counts(config):
        in_range("table.counts", count, 1)
    in_range("table.seeds", table.seeds, 1)
    in_range("table.folds", table.folds, 0)
    in_range("table.fresh", table.fresh, 0)
    if config.data.folds:
        raise UserError("config.data.folds: set config.table.folds")
    if "," in str(folder):
        raise UserError(
            f"{folder}: a sweep's folder has no comma in its name: choose another --workdir"
        )


def _counts(config):
    """The numbers of pairs, rising."""
    return sorted(
        {int(part) if part.isdecimal() else 0 for part in plugins.listed(config.table.counts)}
    )


def _models(fold):
    return list(dict.fromkeys(plugins.listed(fold.config.table.models)))


def _generators(fold) -> Iterator[Job]:
    for model in _models(fold):
        for seed in range(fold.config.table.seeds) if fold.config.table.refit else (0,):
            make = partial(_generator, fold, model, seed)
            yield Job(fold.generator(model, seed), (fold.data,), make)


def _controls(fold) -> list[Net]:
    """The V-Nets of real pairs and of fresh defects."""
    table = fold.config.table
    return [
        Net(title, str(pairs), seed, (), (fold.control(title), augment))
        for seed in range(table.seeds)
        for title, (source, augment) in CONTROLS.items()
        if (pairs := "all" if source == "real" else table.fresh)
    ]


def _mixtures(fold) -> Iterator[Net]:
    """The V-Nets of generated pairs, alone and with others."""
    counts = _counts(fold.config)
    most = counts[-1]
    controls = tuple(map(fold.net, _controls(fold)))
    for seed in range(fold.config.table.seeds):
        for model in _models(fold):
            needs, made = (fold.generator(model, seed),), partial(fold.made, model, seed)
            for count in counts:
                yield Net(model, str(count), seed, needs, (made(count), False))
            both = f"{fold.control('real')},{made(most)}", False
            yield Net(f"real + {model}", str(most), seed, needs, both)
            best = partial(_with_best, fold, made(most))
            title = f"best control + {model}"
            yield Net(title, str(most), seed, (*needs, *controls), best)


def _with_best(fold, made):
    """The stores of the best control with generated pairs: known when the controls are scored."""
    folders = {}
    for net in _controls(fold):
        folders.setdefault(net.title, []).append(fold.net(net))
    title = best_control(fold.folder, folders)
    return f"{fold.control(title)},{made}", CONTROLS[title][1]


def best_control(folder: Path, controls: dict[str, list[str]]) -> str:
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
    base = copy.deepcopy(config)
    with base.unlocked():
        del base.table, base.generators
        base.stages = stages
    return base


def _data(fold):
    base = _base(fold.config, ("ingest",))
    base.data.folds, base.data.fold = fold.config.table.folds, fold.number
    base.segment.fresh = fold.config.table.fresh
    return base


def _generator(fold, model, seed):
    config = fold.config
    base = copy.deepcopy(config.generators[model])
    base.model.resolution = config.model.resolution
    base.stages = ("ingest", "train", "generate")
    base.seed = base.generate.seed = seed
    base.generate.count = _counts(config)[-1]
    base.workers = config.workers
    base.data.update(config.data)
    base.data.update(source="store", root=str(fold.real))
    return base


def _net(fold, net):
    base = _base(fold.config, ("ingest", "segment", "evaluate"))
    base.data.update(source="store", root=str(fold.real))
    stores, augment = net.stores() if callable(net.stores) else net.stores
    base.segment.stores, base.segment.model.augment = stores, augment
    base.segment.seed, base.segment.reference, base.segment.fresh = net.seed, False, 0
    base.evaluate.rules = (net.title, net.seed) == ("real", 0)
    return base


def _values(folder, column, metric="dice", net="vnet"):
    """Means by skull of a V-Net's column; {} where it is not evaluated yet."""
    result = files.read_json(folder / "metrics.json")
    cases = result["verdict"]["cases"] if result else []
    chosen = [case for case in cases if case["column"] == column and case["net"] == net]
    return verdict.by_skull(chosen, metric)


def gather(config: ConfigDict, folder: Path, rows: list[Row], done: str) -> tables.Table:
    """The table of the V-Nets that are evaluated; writes `table1.json`, which has its numbers too.

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
    real = next((entry for entry in entries if entry["title"] == "real"), None)
    for entry in entries:
        for name, other in (("minus_real", real), ("minus_best", best)):
            entry[name] = None if other in (None, entry) else _minus(entry, other)
    title = f"Table 1: mean {metric} on real pairs; every V-Net has as many updates"
    notes = _remarks(config, entries, best, done)
    table = tables.Table(title, list(COLUMNS), list(map(_line, entries)), notes)
    files.write_json(folder / "table1.json", {**table._asdict(), "entries": entries})
    return table


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
    number, span = tables.number, tables.span
    return [
        *(entry["title"], entry["pairs"], number(entry["train"]), number(entry["validation"])),
        *(span(entry), number(entry["seed_sd"]), number(entry["grid"])),
        f"{number(entry['native'])} ({number(entry['ceiling'])})",
        *(span(entry["minus_real"], "+"), span(entry["minus_best"], "+")),
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
