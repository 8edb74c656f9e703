"""Table 1 with controls: which runs it is made of, and the table that their results make.

Every run is an ordinary one in a folder of its own: data, generators, and a V-Net for each row,
count and seed, all trained for the same number of updates. Runs on a cluster's nodes are
independent but for the stores that they need, by name.
"""

import copy
from collections.abc import Callable, Iterator
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
    """A V-Net to train: its row, its seed, the folders that it needs, and its stores.

    stores: () -> `segment.stores`, and whether it is augmented.
    """

    title: str
    pairs: str
    seed: int
    needs: tuple[str, ...]
    stores: Callable[[], tuple[str, bool]]


class _Fold(NamedTuple):
    """The runs of one fold of the cross-validation, or all where there are none."""

    config: ConfigDict
    folder: Path
    number: int

    def place(self, name):
        """The folder of a run, in the sweep's."""
        return f"fold{self.number}/{name}" if self.config.table.folds else name

    def generator(self, model, seed):
        """The folder of a generator; one for all seeds, unless `table.refit`."""
        return self.place(f"{model}-s{seed if self.config.table.refit else 0}")

    def net(self, net):
        """The folder of a V-Net."""
        name = f"{net.title}-{net.pairs}-s{net.seed}"
        return self.place(name.replace(" + ", "+").replace(" ", "_"))

    def control(self, title):
        """The stores of a control, and whether it is augmented."""
        source, augment = CONTROLS[title]
        count = "all" if source == "real" else self.config.table.fresh
        return f"{self.folder / self.place('data') / source}.zarr:train:{count}", augment

    def mixture(self, title, made):
        """The stores of generated pairs, beside a control or, without a title, alone."""
        if not title:
            return made, False
        if title == "best control":  # known when the controls are scored
            folders = {}
            for net in self.controls():
                folders.setdefault(net.title, []).append(self.net(net))
            title = best_control(self.folder, folders)
        pairs, augment = self.control(title)
        return f"{pairs},{made}", augment

    def controls(self) -> list[_Net]:
        """The V-Nets of real pairs and of fresh defects."""
        table = self.config.table
        return [
            _Net(title, str(pairs), seed, (), partial(self.control, title))
            for seed in range(table.seeds)
            for title, (source, _) in CONTROLS.items()
            if (pairs := "all" if source == "real" else table.fresh)
        ]

    def mixtures(self) -> Iterator[_Net]:
        """The V-Nets of generated pairs, alone and with others."""
        counts, most = _counts(self.config), _counts(self.config)[-1]
        controls = tuple(map(self.net, self.controls()))
        rows = [*(("", count, ()) for count in counts), ("real", most, ())]
        for seed in range(self.config.table.seeds):
            for model in _models(self.config):
                folder = self.generator(model, seed)
                for control, count, needs in [*rows, ("best control", most, controls)]:
                    made = f"{self.folder / folder / 'generated.zarr'}:all:{count}"
                    title = f"{control} + {model}" if control else model
                    stores = partial(self.mixture, control, made)
                    yield _Net(title, str(count), seed, (folder, *needs), stores)

    def jobs(self) -> list[Job]:
        """Data and generators."""
        data, table = self.place("data"), self.config.table
        seeds = range(table.seeds) if table.refit else (0,)
        return [
            Job(data, (), partial(_data, self)),
            *(
                Job(self.generator(model, seed), (data,), partial(_generator, self, model, seed))
                for model in _models(self.config)
                for seed in seeds
            ),
        ]


def plan(config: ConfigDict, folder: Path) -> tuple[list[Job], list[Row]]:
    """The jobs, each after those that it needs, and the rows.

    config: an experiment with `table` and `generators` (`experiments/table1.py`). folder: of the
    sweep.
    """
    _check(config, folder)
    jobs, rows = [], {}
    for number in range(max(config.table.folds, 1)):
        fold = _Fold(config, folder, number)
        jobs += fold.jobs()
        for net in [*fold.controls(), *fold.mixtures()]:
            needs = fold.place("data"), *net.needs
            jobs.append(Job(fold.net(net), needs, partial(_net, fold, net)))
            row = rows.setdefault((net.title, net.pairs), {})
            row.setdefault(number, []).append(fold.net(net))
    return jobs, [Row(*row, list(folds.values())) for row, folds in rows.items()]


def _check(config, folder):
    table = config.table
    for name in plugins.listed(table.models):
        one_of("table.models", name, sorted(config.generators))
    one_of("table.metric", table.metric, verdict.METRICS)
    if not _counts(config):
        raise UserError("table.counts is empty: numbers of pairs, comma-separated")
    for count in _counts(config):
        in_range("table.counts", count, 1)
    for field, least in {"seeds": 1, "folds": 0, "fresh": 0}.items():
        in_range(f"table.{field}", table[field], least)
    explore.check(config.explore)
    if config.data.folds:
        raise UserError("config.data.folds: set config.table.folds")
    if "," in str(folder):
        raise UserError(
            f"{folder}: a sweep's folder has no comma in its name: choose another --workdir"
        )


def _counts(config):
    """The numbers of pairs, rising."""
    parts = plugins.listed(config.table.counts)
    return sorted({int(part) if part.isdecimal() else 0 for part in parts})


def _models(config):
    return list(dict.fromkeys(plugins.listed(config.table.models)))


def best_control(folder: Path, controls: dict[str, list[str]]) -> str:
    """The control with the highest mean Dice on the split `validation`, which judges nothing else.

    controls: row -> folders of its V-Nets. Without such a split (SkullBreak) it is the last, fresh
    defects with augmentation, chosen beforehand.
    """
    scores = {}
    for title, names in controls.items():
        values = [v for n in names for v in _values(_cases(folder / n), "selection").values()]
        scores[title] = np.mean(values) if values else None
    return _best(scores)


def _best(scores):
    """The title with the highest score; the last where one has none."""
    return list(scores)[-1] if None in scores.values() else max(scores, key=scores.get)


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
    base.data.update(source="store", root=str(fold.folder / fold.place("data") / "real.zarr"))
    return base


def _net(fold, net):
    base = _base(fold.config, ("ingest", "segment", "evaluate"))
    base.data.update(source="store", root=str(fold.folder / fold.place("data") / "real.zarr"))
    base.segment.stores, base.segment.model.augment = net.stores()
    base.segment.seed, base.segment.reference, base.segment.fresh = net.seed, False, 0
    base.evaluate.rules = (net.title, net.seed) == ("real", 0)
    return base


def _cases(folder):
    """The cases of a run; [] where it is not evaluated yet."""
    result = files.read_json(folder / "metrics.json")
    return result["verdict"]["cases"] if result else []


def _values(cases, column, metric="dice", net="vnet"):
    """Means by skull of a V-Net's column."""
    chosen = [case for case in cases if case["column"] == column and case["net"] == net]
    return verdict.by_skull(chosen, metric)


def gather(config: ConfigDict, folder: Path, rows: list[Row], done: str) -> tables.Table:
    """The table of the V-Nets that are evaluated; writes `table1.json`, which has its numbers too.

    rows: as `plan` returns them. done: how many of the jobs are, in words.
    """
    metric = config.table.metric
    real = next((row for row in rows if row.title == "real"), None)
    rules = RULES.items() if real else ()
    entries = [
        *(_entry(folder, Row(title, "-", real.folders), net, metric) for title, net in rules),
        *(_entry(folder, row, "vnet", metric) for row in rows),
    ]
    entries = {(e["title"], e["pairs"]): e for e in entries if e["skulls"]}
    scores = {title: e["selection"] for (title, _), e in entries.items() if title in CONTROLS}
    best = _best(scores) if scores else None
    for entry in entries.values():
        for name, title in (("minus_real", "real"), ("minus_best", best)):
            other = next((e for e in entries.values() if e["title"] == title), entry)
            entry[name] = None if other is entry else _minus(entry, other)
    title = f"Table 1: mean {metric} on real pairs; every V-Net has as many updates"
    entries = list(entries.values())
    notes = _remarks(config, entries, best, done)
    table = tables.Table(title, list(COLUMNS), list(map(_line, entries)), notes)
    files.write_json(folder / "table1.json", {**table._asdict(), "entries": entries})
    return table


def _entry(folder, row, net, metric):
    """One row's numbers: per-skull means over seeds, the folds' skulls together."""
    runs = [[_cases(folder / name) for name in fold] for fold in row.folders]

    def values(column, metric=metric):
        """For each fold the seeds' values, by skull."""
        every = [[_values(cases, column, metric, net) for cases in fold] for fold in runs]
        return [[one for one in fold if one] for fold in every]

    def mean_of(*column):
        """The mean of the runs' means: each seed may have pairs of its own."""
        means = [np.mean(list(one.values())) for fold in values(*column) for one in fold]
        return float(np.mean(means)) if means else None

    tests = {
        f"{number} {skull}": float(np.mean([one[skull] for one in fold]))
        for number, fold in enumerate(values("test"))
        for skull in (fold[0] if fold else ())
    }
    # One number a seed, over all folds: the spread that another seed would show.
    turns = zip(*values("test"), strict=False)
    means = [np.mean([v for one in turn for v in one.values()]) for turn in turns]
    return {
        "title": row.title,
        "pairs": row.pairs,
        "seeds": len(means),
        "skulls": tests,
        **_interval(list(tests.values())),
        "seed_sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "train": mean_of("train"),
        "validation": mean_of("validation"),
        "selection": mean_of("selection", "dice"),
        "grid": mean_of("test", "dice"),
        "native": mean_of("test", "dice_native"),
        "ceiling": mean_of("test", "ceiling_native"),
        "runs": [name for fold in row.folders for name in fold],
    }


def _interval(values):
    names = ("mean", "low", "high", "interval")
    return dict(zip(names, metrics.interval(values) if values else (None,) * 4, strict=True))


def _minus(entry, other):
    ours, theirs = entry["skulls"], other["skulls"]
    paired = [value - theirs[skull] for skull, value in ours.items() if skull in theirs]
    return {**_interval(paired), "than": other["title"]}


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
        f"best control: {best or '-'}, chosen on the split `validation`, which "
        "judges nothing (beforehand, where there is none; in `best control + ...` fold by fold).",
    ]
