"""Tables of what pairs are worth: which runs they are made of, and what their results say.

A row is a mixture of pairs, on which a V-Net a seed is trained, all for as many updates:

  real            the training pairs; or fresh, transplants, phantoms, ceiling (`data.controls`)
  real plain      without augmentation
  fresh@3         of three training skulls only
  vae:1000        as many pairs of a generator
  best + vae:100  beside the best control; or of any row's parts

Every run is an ordinary one in a folder of its own. Runs need each other only by name.
"""

import copy
import itertools
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files, plugins
from skullgen.core.errors import UserError, in_range, one_of
from skullgen.data import mixture, store
from skullgen.evaluation import explore, intervals, judges, verdict
from skullgen.report import figures as drawing
from skullgen.report import pictures, tables
from skullgen.run import stages

RULES = {"mean training skull": "mean_skull", "mirror image": "mirror"}
NUMBERS = {  # of an entry -> column and metric of the cases; "": table.metric
    "train": ("train", ""),
    "validation": ("validation", ""),
    "selection": ("selection", "dice"),
    "native": ("test", "dice_native"),
    "ceiling": ("test", "ceiling_native"),
}
FLOOR, CEILING, BEST = "real", "ceiling", "best"  # rows that others are compared with


class Job(NamedTuple):
    """One run: its folder, those that it needs, its config; row: the (row, fold) of its numbers."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], ConfigDict]
    row: Any = None


class Part(NamedTuple):
    """Pairs of a control, a generator or a store: of `skulls` ("": all), so many ("": all)."""

    name: str
    skulls: str
    pairs: str


class Row(NamedTuple):
    """What the V-Nets of a row learn from; its text is its name."""

    text: str
    parts: tuple[Part, ...]
    augment: bool

    @property
    def control(self) -> bool:
        """Whether it may be the best control: of real skulls, no test skulls, no generator."""
        names = {part.name for part in self.parts}
        real = judges.CONTROLS.keys() - {CEILING, "phantoms"}
        return names <= real and not any(part.skulls for part in self.parts)


def row(text: str) -> Row:
    """A row of `table.rows`; UserError where it is none."""
    text, parts = " ".join(text.split()), []
    for word in text.removesuffix(" plain").split(" + "):
        part = re.fullmatch(r"([^@:\s]+)(?:@(\d+))?(?::(\d+))?", word)
        if not part:
            cure = "write for example real, fresh@3:1000, best + vae:100, real plain"
            raise UserError(f"table.rows: {text!r}: {word!r} names no pairs: {cure}")
        parts.append(Part(*(group or "" for group in part.groups())))
    return Row(text, tuple(parts), not text.endswith(" plain"))


def plan(config: ConfigDict, folder: Path) -> list[Job]:
    """The jobs of a config with `table`, each after those that it needs."""
    rows = [row(text) for text in dict.fromkeys(plugins.listed(config.table.rows))]
    _check(config, rows)
    numbers = range(max(config.table.folds, 1))
    return [job for number in numbers for job in _fold(config, folder, rows, number)]


def _fold(config, folder, rows, number):
    """The jobs of one fold, or of all where there are none: data, generators, V-Nets."""
    table, place = config.table, f"fold{number}/" * bool(config.table.folds)
    data, generators, nets = f"{place}data", [], []
    used = dict.fromkeys(part.name for one in rows for part in one.parts)
    models = [name for name in used if name in config.generators]
    learnt = [p[0] for m in models for p in mixture.named(config.generators[m].stores, "stores")]
    for model in models:
        for seed in range(table.seeds if table.refit else 1):
            make = partial(_generator, config, folder / data, model, seed)
            generators.append(Job(f"{place}{model}-s{seed}", (data,), make))
    names = {(one, seed): place + _name(one, seed) for one in rows for seed in range(table.seeds)}
    contenders = {one: [names[one, s] for s in range(table.seeds)] for one in rows if one.control}
    for (one, seed), name in names.items():
        needs, paths = [data], {}
        for part in one.parts:
            if part.name in config.generators:
                needs.append(f"{place}{part.name}-s{seed if table.refit else 0}")
                paths[part.name] = folder / needs[-1] / "generated.zarr"
            elif part.name == BEST:
                needs += [name for names in contenders.values() for name in names]
        choose = partial(best_control, folder, contenders)  # when they are scored
        make = partial(_net, config, folder / data, (one, seed), paths, choose)
        nets.append(Job(name, tuple(needs), make, (one, number)))
    controls = [n for n in judges.CONTROLS if n in used or f"{n}.zarr" in learnt]
    make = partial(_data, config, number, controls)
    nets.sort(key=lambda job: any(part.name == BEST for part in job.row[0].parts))
    return [Job(data, (), make), *generators, *nets]


def _name(one, seed):
    return re.sub(r"[^\w.+@=-]+", "-", one.text.replace(" + ", "+")) + f"-s{seed}"


def _check(config, rows):
    table, names = config.table, {*judges.CONTROLS, *config.generators, BEST}
    for part in [part for one in rows for part in one.parts]:
        if part.name not in names and not store.exists(part.name):
            one_of("table.rows", part.name, (*sorted(names), "the path of a store"))
    if not any(one.control for one in rows):
        raise UserError("table.rows has no control to compare with: add the row real")
    one_of("table.metric", table.metric, verdict.METRICS)
    for field, least in {"seeds": 1, "folds": 0, "pairs": 1}.items():
        in_range(f"table.{field}", table[field], least)
    in_range("data.folds", config.data.folds, 0, 0)  # table.folds sets it
    explore.check(config.explore)


def best_control(folder: Path, controls: dict[Row, list[str]]) -> Row:
    """The control with the highest mean Dice on the split `validation`; without it, the last."""
    scores = {}
    for one, names in controls.items():
        means = [_skulls(_verdict(folder / name), "selection") for name in names]
        values = [value for skulls in means for value in skulls.values()]
        scores[one] = np.mean(values) if values else None
    return list(scores)[-1] if None in scores.values() else max(scores, key=scores.get)


# --- The runs' configs ---------------------------------------------------------------------------


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


def _data(config, number, controls):
    base = _base(config, ("ingest",))
    base.data.folds, base.data.fold = config.table.folds, number
    base.segment.controls, base.segment.control_pairs = tuple(controls), config.table.pairs
    return base


def _generator(config, data, model, seed):
    base = _base(config, ("ingest", "train", "generate"), data, model)
    base.model.resolution, base.workers = config.model.resolution, config.workers
    base.seed = base.generate.seed = seed
    stores = []
    for name, *rest in mixture.named(base.stores, "stores"):
        path = str(data / name) if name in mixture.OWN else name
        stores.append(":".join([path, *filter(None, rest)]))
    base.stores = ",".join(stores)
    rows = [row(text) for text in plugins.listed(config.table.rows)]
    counts = [int(p.pairs or 0) for one in rows for p in one.parts if p.name == model]
    base.generate.count = max([*counts, config.table.pairs * (0 in counts)])
    return base


def _net(config, data, own, paths, choose):
    base, (one, seed), stores = _base(config, ("ingest", "segment", "evaluate"), data), own, []
    parts = [choose().parts if part.name == BEST else [part] for part in one.parts]
    for name, skulls, pairs in itertools.chain(*parts):
        path, split = paths.get(name, name), "all"
        if name in judges.CONTROLS:
            path, split, _ = judges.CONTROLS[name].split(":")
            path = data / path
        stores.append(f"{path}:{split}:{pairs or 'all'}" + f":{skulls}" * bool(skulls))
    base.segment.stores, base.segment.seed = ",".join(stores), seed
    base.segment.controls, base.segment.model.augment = (), one.augment
    base.evaluate.rules = (one.text, seed) == (FLOOR, 0)
    return base


# --- Their numbers -------------------------------------------------------------------------------


def _verdict(folder):
    """The verdict of a run; without cases where it is not evaluated yet."""
    return (files.read_json(folder / "metrics.json") or {}).get("verdict", {"cases": []})


def _skulls(judged, column, metric="dice", net="vnet"):
    """Means by skull of a V-Net's column of a verdict."""
    cases = [case for case in judged["cases"] if (case["column"], case["net"]) == (column, net)]
    return verdict.by_skull(cases, metric)


def _rows(jobs, done):
    """Row -> for each fold the folders of the V-Nets that are done, one a seed."""
    rows = {}
    for name, _, _, place in [job for job in jobs if job.row]:
        rows.setdefault(place[0], {}).setdefault(place[1], []).extend([name] * (name in done))
    return {one: list(folds.values()) for one, folds in rows.items() if all(folds.values())}


def gather(
    config: ConfigDict, folder: Path, jobs: list[Job], done: Collection[str]
) -> tables.Table:
    """The table of the rows that are done in every fold; writes `table.json`, with its numbers."""
    rows, entries, metric = _rows(jobs, done), [], config.table.metric
    controls = {one: [*itertools.chain(*rows[one])] for one in rows if one.control}
    best = best_control(folder, controls).text if controls else ""
    for one, folds in rows.items():
        entries.append(_entry(folder, one.text, folds, metric))
        if one.text == FLOOR:  # its first run scores the rules
            first = [fold[:1] for fold in folds]
            rules = [_entry(folder, text, first, metric, net) for text, net in RULES.items()]
            entries = [*(entry for entry in rules if entry["tests"]), *entries]
    by_text = {entry["row"]: entry for entry in entries}
    tests = list(dict.fromkeys(test for entry in entries for test in entry["tests"]))
    columns = ["trained on", "train", "learnt from"]
    for test in tests:
        _compare([entry for entry in entries if test in entry["tests"]], test, best)
        minus = f"minus {best}" if best != FLOOR else "minus best control"
        columns += [f"{test} [95 %]", f"minus {FLOOR}", minus, "share of headroom"]
    columns += ["sd of seeds", "test, native (ceiling)", "still rose by"]
    title = f"Mean {metric} on real pairs; every V-Net has as many updates"
    lines = [_line(entry, tests) for entry in entries]
    notes = _remarks(config, by_text, tests, best, f"{len(done)} of {len(jobs)} runs are done")
    table = tables.Table(title, columns, lines, notes)
    files.write_json(folder / "table.json", {**table._asdict(), "entries": entries})
    return table


def _entry(folder, text, folds, metric, net="vnet"):
    """One row's numbers: for each test a number a skull and seed.

    A skull of `evaluate.stores`, which all folds are tested on, has their mean: it is one.
    """
    seeds, tests = min(map(len, folds)), {}
    runs = {name: _verdict(folder / name) for fold in folds for name in fold[:seeds]}
    columns = dict.fromkeys(case["column"] for its in runs.values() for case in its["cases"])
    for column in [name for name in columns if name.startswith("test")]:
        skulls = {}  # -> for each seed, a number a fold
        for fold in folds:
            for seed, name in enumerate(fold[:seeds]):
                for skull, value in _skulls(runs[name], column, metric, net).items():
                    skulls.setdefault(skull, [[] for _ in range(seeds)])[seed].append(value)
        values = [[float(np.mean(some)) for some in by_seed] for by_seed in skulls.values()]
        if values:
            its = intervals.interval(np.array(values))._asdict()
            tests[column] = {"skulls": list(skulls), "values": values, **its}

    def mean(column, of):
        """The mean of the runs' means: each seed may have pairs of its own."""
        every = [_skulls(its, column, of or metric, net) for its in runs.values()]
        means = [np.mean(list(values.values())) for values in every if values]
        return float(np.mean(means)) if means else None

    nets = [its.get("nets", {}).get(net, {}) for its in runs.values()]
    rises = [one["rise"] for one in nets if one.get("rise") is not None]
    spread = np.array(tests["test"]["values"]).mean(0) if "test" in tests else []
    return {
        **{"row": text, "seeds": seeds, "tests": tests, "runs": list(runs)},
        **{name: mean(*place) for name, place in NUMBERS.items()},
        "seed_sd": float(np.std(spread, ddof=1)) if len(spread) > 1 else None,
        "rise": max(rises, default=None),
        "curves": [one.get("curve", []) for one in nets],
    }


def _compare(entries, test, best):
    """Adds to each row of a test how it stands beside the floor, the best control, the ceiling."""
    values = {}
    for entry in entries:
        its = entry["tests"][test]
        values[entry["row"]] = dict(zip(its["skulls"], map(np.array, its["values"]), strict=True))
    ceiling = next((text for text in values if _is_ceiling(text)), "")

    def minus(text, other):
        """By the skulls and seeds that both have; None where there is no other."""
        if text == other or other not in values:
            return None
        ours, theirs = values[text], values[other]
        seeds = min(len(skull) for skull in [*ours.values(), *theirs.values()])
        return np.array([ours[n][:seeds] - theirs[n][:seeds] for n in ours if n in theirs])

    for entry in entries:
        gain, above, below = (minus(entry["row"], other) for other in (FLOOR, best, ceiling))
        every = gain is not None and below is not None and len(gain) == len(below)
        share = intervals.share(gain, gain - below) if every else None
        entry["tests"][test] |= {
            "minus_floor": None if gain is None else intervals.interval(gain)._asdict(),
            "minus_best": None if above is None else intervals.interval(above)._asdict(),
            "share": share and share._asdict(),
        }


def _is_ceiling(text):
    return text.split(":")[0] == CEILING


def _line(entry, tests):
    cells = []
    for test in tests:
        its = entry["tests"].get(test, {})
        minus = [tables.span(its.get(name), "+") for name in ("minus_floor", "minus_best")]
        cells += [tables.span(its), *minus, tables.span(its.get("share"))]
    names = "train", "validation", "seed_sd", "native", "ceiling"
    train, learnt, sd, native, ceiling = (tables.number(entry[name]) for name in names)
    rise = tables.number(entry["rise"], "+")
    rise += " (not converged)" * ((entry["rise"] or 0) > judges.RISE)
    return [entry["row"], train, learnt, *cells, sd, f"{native} ({ceiling})", rise]


def _remarks(config, by_text, tests, best, done):
    settings, lines = config.segment, []
    ceiling = next((text for text in by_text if _is_ceiling(text)), "")
    for test in tests if ceiling else ():
        room = by_text[ceiling]["tests"].get(test, {}).get("minus_floor")
        if room:
            says = f"headroom on {test}, {ceiling} minus {FLOOR}: {tables.span(room, '+')}"
            within = room["low"] is None or room["low"] <= 0
            lines.append(f"{says}{': within noise, nothing can be told apart here' * within}.")
    slow = [text for text, e in by_text.items() if (e["rise"] or 0) > judges.RISE]
    if slow:
        what = f"{settings.updates} updates were too few for {', '.join(slow)}"
        lines.append(f"{what}: raise segment.updates before you trust a difference.")
    kinds = {its["kind"] for e in by_text.values() for its in e["tests"].values()} or {"none"}
    spread = "for each seed" if config.table.refit else "(its spread is in no interval)"
    return [
        *lines,
        f"{done}. Intervals: {', '.join(sorted(kinds))}; {config.table.seeds} seeds, one generator "
        f"{spread}; every V-Net has {settings.updates} updates of {settings.batch_size} pairs at "
        f"{config.model.resolution}^3, with augmentation but in rows that say plain.",
        "A mixture draws equally from its parts. still rose by: Dice on the split `validation` in "
        "the last quarter of training.",
        f"best control: {best or '-'}, chosen on the split `validation`, which judges nothing.",
    ]


def figures(config: ConfigDict, folder: Path, jobs: list[Job], done: Collection[str]) -> None:
    """The rows, drawn; figures 3 and 5: the generators in one map, a test case by every V-Net."""
    _picture(folder, config.table.metric)
    firsts = {one.text: next(iter(folds[0])) for one, folds in _rows(jobs, done).items()}
    if FLOOR not in firsts:
        return
    path = folder / "real.zarr"
    stages.link(folder / firsts[FLOOR] / path.name, path, config.model.resolution)
    makes, nets = {job.name: job.make for job in jobs}, {}
    for text, name in firsts.items():
        if BEST not in text:
            own = makes[name]()
            nets[text] = judges.load(own.segment, own.model.resolution, folder / name)["vnet"]
    alone = {text: net.parts[0].store for text, net in nets.items() if len(net.parts) == 1}
    generated = {text: one for text, one in alone.items() if one.path.name == "generated.zarr"}
    real = store.Store(path)
    pictures.maps(folder, real, generated, [nets[FLOOR]], config.explore)
    pictures.segmentations(folder, real, nets, config.evaluate.threshold)


def _picture(folder, metric):
    """The rows of `table.json`, drawn."""
    entries, tests = files.read_json(folder / "table.json")["entries"], {}
    for entry in entries:
        for test, its in entry["tests"].items():
            what = f"{test}: {len(its['skulls'])} skulls"
            tests.setdefault(what, {})[entry["row"]] = its
    lines = {FLOOR: "#b0b0b0"} | {e["row"]: "#e65900" for e in entries if _is_ceiling(e["row"])}
    title = f"Mean {metric} by what a V-Net learnt from, 95 % intervals; lines: {', '.join(lines)}"
    if tests:
        drawing.rows(folder / "figures" / "rows.png", tests, lines, title)
