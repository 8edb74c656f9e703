"""The stages: each reads what the ones before it left in the work directory, and adds to it."""

import contextlib
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from skullgen.core import files, hosts, jobs, provenance
from skullgen.core.errors import UserError, plain
from skullgen.data import ingest, mixture, store, where
from skullgen.data.controls import Impossible
from skullgen.delivery import export, predict, release
from skullgen.evaluation import asked, explore, fidelity, judges, metrics, verdict
from skullgen.generation import generate
from skullgen.models import steps
from skullgen.report import card, figures, gallery, page, pictures, preview, tables
from skullgen.run.config import as_json
from skullgen.training import checkpoint, logs, loop, methods


def check(config: ConfigDict, names: list[str], workdir: Path) -> None:
    """UserError for what the stages `names` would find wrong with the config, hours later maybe."""
    if "ingest" in names:
        ingest.check(config.data)
    if config.model_name and {"generate", "explore"}.intersection(names):
        whose, _ = release.chosen(config, workdir)
        model = methods.load_model(whose.model_name, whose.model)
        methods.require_generates(whose.model_name, model)
    if "train" in names:
        for folder in (workdir / "checkpoints").glob("*"):  # all generators log in train.jsonl
            ours = folder.name in (config.model_name, *judges.NETS)
            if not ours and checkpoint.newest(folder):
                what = f"made with model_name {folder.name!r}, now {config.model_name!r}"
                raise UserError(f"{workdir}: {what}: set it back, or choose another --workdir")
        loop.check(_options(config))
        mixture.require_there([part[0] for part in mixture.named(config.stores, "stores")], workdir)
        methods.check(config.model_name, config.model, config.phases)
        if start := _start(config):
            model = methods.load_model(config.model_name, config.model)
            start(workdir / "checkpoints" / config.model_name, model)
    if "segment" in names:
        size, start = config.model.resolution, _start(config, "segment.")
        judges.check(config.segment, size, workdir, _options(config), start)
    own = {"generate": generate, "evaluate": metrics, "explore": explore}
    for stage in [name for name in own if name in names]:
        own[stage].check(config[stage])
    for stage, module in (("predict", predict), ("export", export)):
        if stage in names:
            module.check(config, names, workdir)
    if "evaluate" in names:
        others = mixture.named(config.evaluate.stores, "evaluate.stores")
        mixture.require_there([name for name, *_ in others], workdir)
    if "explore" in names:
        mixture.require_there(mixture.paths(config.explore.stores, workdir), workdir)


def versions() -> dict[str, Any]:
    """Versions of what a run's numbers depend on, and the devices."""
    return {**provenance.versions(), "devices": [d.device_kind for d in jax.local_devices()]}


def _share():
    """This process's share of what all make together."""
    return jax.process_index(), jax.process_count()


def _options(config):
    fields = "seed", "batch_size", "log_every", "save_every", "budget_mb"
    return loop.Options(*(config[name] for name in fields))


def _ingest(config, workdir):
    path, size = workdir / "real.zarr", config.model.resolution
    options = ingest.Options(config.workers, versions(), share=_share())
    if config.data.source == "store":
        root = Path(config.data.root)
        link(root, path, size)
        for store_name in (f"{name}.zarr" for name in judges.controls(config)):
            if store.exists(root.parent / store_name):
                link(root.parent / store_name, workdir / store_name, size)
        return
    source, pairs = ingest.run(path, size, config.data, options), config.segment.control_pairs
    _wait(path)
    for name in judges.controls(config):
        try:
            ingest.control(workdir / f"{name}.zarr", source, pairs, config.data, options)
        except Impossible as error:
            print(f"note: {error}")
        else:
            _wait(workdir / f"{name}.zarr")


def _wait(path):
    """Waits for the shares that the other processes of this run make of a store."""
    if hosts.several():
        if stop := hosts.largest(jobs.asked()):
            raise jobs.Stopped(stop, agreed=True)
        end = time.monotonic() + 100  # a shared disk may show late what others wrote
        while store.Store(path).missing() and time.monotonic() < end:
            time.sleep(0.5)
        store.Store(path).require_whole()


def link(source: Path, path: Path, size: int) -> None:
    """Makes `path` a link to another run's store of real pairs of `size` voxels a side."""
    pairs = store.Store(source)
    pairs.require_whole()
    if pairs.size != size:
        raise UserError(f"{source}: its pairs are not of config.model.resolution {size}")
    if not len(pairs.rows("train")):
        raise UserError(f"{source}: it has no pair of split train: name a store of real pairs")
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to a store that was moved
        with contextlib.suppress(FileExistsError):  # another process was first
            path.symlink_to(os.path.relpath(source.resolve(), path.parent.resolve()))
    if not path.samefile(source):
        raise UserError(f"{path} is not {source}: choose another --workdir")


def _start(config, section=""):
    """How the generator, or all V-Nets, get what they start from; None: random weights."""
    where = (config.segment if section else config).get("init_from", "")

    def read():
        folder = release.place(where)
        theirs = methods.load_config(folder)
        if not section:
            return methods.generator(theirs, folder).state
        name, size = judges.choose(folder), theirs.model.resolution
        return judges.newest(theirs.segment, size, folder, name).state

    return partial(methods.start, f"{section}init_from={where}", read) if where else None


def _seen(config, workdir):
    """Warnings of weights to start from that have learnt from skulls that are for test here."""
    mine, lines = workdir / "real.zarr", []
    for weights in {config.get("init_from", ""), config.segment.get("init_from", "")} - {""}:
        theirs = Path(os.path.expanduser(weights), "real.zarr")
        both = store.exists(mine) and store.exists(theirs)
        if seen := both and _skulls(mine, "test") & _skulls(theirs, "train"):
            what = f"{weights} has learnt from {len(seen)} of the test skulls, as {min(seen)}"
            cure = f"that run's own are data.test={','.join(sorted(_skulls(theirs, 'test')))}"
            lines.append(f"{what}: no score on them is a test; {cure}")
    return lines


def _skulls(path, split):
    pairs = store.Store(path)
    return set(pairs.names(pairs.column("skull")[pairs.every(split)])) - {""}


def _train(config, workdir):
    name, real = config.model_name, store.Store(workdir / "real.zarr")
    real.require_whole("ingest")
    if count := len(real.every("train")) - len(real.rows("train")):
        print(f"{real.path}: {count} training pairs are left out")
    parts = mixture.parts(config.stores or judges.CONTROLS["real"], workdir, config.seed, "stores")
    model, folder = methods.load_model(name, config.model), workdir / "checkpoints" / name
    sheets = preview.watcher(model, workdir / "figures" / "training", config)
    network = methods.recipe(name, config.model)
    place = loop.Place(workdir / "train.jsonl", folder, network, sheets, start=_start(config))
    print(*(f"warning: {plain(line)}\n" for line in _seen(config, workdir)), sep="", end="")
    loop.train(model, methods.phases(config.phases, model), parts, place, _options(config))


def _generate(config, workdir):
    config, folder = release.chosen(config, workdir)
    newest = hosts.first(checkpoint.newest(folder / "checkpoints" / config.model_name))
    net = methods.generator(config, folder, int(newest))
    about, settings = release.about(folder, config.model_name), as_json(config.generate)
    count, real, train = settings.pop("count"), None, None
    del settings["weights"]  # their sum tells what they are
    if store.exists(workdir / "real.zarr"):
        real = store.Store(workdir / "real.zarr")
        rows = loop.training_rows(workdir, config.model_name)
        train = real.path.resolve(), tuple(rows.tolist())
    bounds = where.bounds(dict(config.generate.where), real, "generate.where")
    wanted = generate.asked(config.generate.labels, about["kinds"])
    if config.generate.labels and not net.model.conditional:
        cure = "train it with --config.model.condition=True, or leave generate.labels empty"
        raise UserError(f"generate.labels: {config.model_name} was trained without labels: {cure}")
    settings["where"] = {name: list(ends) for name, ends in bounds.items()}
    if unknown := [n for n, text in config.generate.where.items() if text and n not in bounds]:
        print(f"note: generate.where: {', '.join(unknown)} as real: no real.zarr here: not asked")
    recipe = {
        **methods.recipe(config.model_name, config.model),
        **{"step": int(net.state.step), "weights": checkpoint.fingerprint(net.state)},
        **{"generate": settings, "device": jax.local_devices()[0].device_kind},
    }
    licence = f"as of the pairs that it was trained on: {about['licence']}"
    attributes = {**about, "names": [], "licence": licence, "versions": versions()}
    size, channels = config.model.resolution, methods.channels(config)
    plan = generate.Plan(size, channels, attributes, recipe, train, bounds, wanted)
    path = workdir / "generated.zarr"
    generate.run(net, path, config.generate, plan, config.workers, _share())
    _wait(path)
    total = len(store.Store(path).every())
    more = f" (generate.count is {count}; none is thrown away)" * (total > count)
    print(f"{path}: {total} pairs{more}")
    if hosts.lead():
        card.write(path)


def _segment(config, workdir):
    size, start = config.model.resolution, _start(config, "segment.")
    print(*(f"warning: {plain(line)}\n" for line in _seen(config, workdir)), sep="", end="")
    judges.train(config.segment, size, workdir, _options(config), start)


def _evaluate(config, workdir):
    real, path = store.Store(workdir / "real.zarr"), workdir / "generated.zarr"
    result, lines, notes, nets = {}, [], [], {}
    try:
        if judges.begun(workdir):
            nets = judges.load(config.segment, real.size, workdir)
    except judges.Unfinished as error:
        if not store.exists(path):
            raise
        notes = [f"no verdict: {error}"]
    if store.exists(path):
        pairs, rows = store.Store(path), loop.training_rows(workdir, config.model_name)
        result["generated"] = {"recipe": pairs.recipe, "pairs": pairs.count}
        result["quality"] = fidelity.fidelity(real, pairs, config.evaluate.pairs, rows)
        result["quality"]["distances"] = _distances(config, workdir, nets, rows)
        if got := asked.asked(real, pairs):
            result["quality"]["asked"] = got
        lines += tables.text(tables.fidelity(result["quality"]))
        for table in tables.distances(result["quality"]["distances"]):
            lines += ["", *tables.text(table)]
    if nets:
        parts = mixture.parts(config.evaluate.stores, workdir, 0, "evaluate.stores")
        titles = mixture.titles([part.store.path for part in parts])
        others = dict(zip(titles, parts, strict=True))
        judged = verdict.verdict(real, nets, config.evaluate, config.workers, others)
        result["verdict"] = {"nets": judges.about(config.segment, nets, workdir), **judged}
        lines += ["", *tables.text(tables.verdict(result["verdict"]))]
    if not result:
        raise UserError(f"{workdir}: nothing to evaluate; run `generate` or `segment` first")
    result["commit"], result["config"] = provenance.commit(), as_json(config)
    result["warnings"] = [*notes, *_notes(config, workdir, real), *verdict.warnings(result)]
    files.write_json(workdir / "metrics.json", result)
    lines += [f"warning: {line}" for line in result["warnings"]]
    print("\n".join(map(plain, lines)))


def _distances(config, workdir, nets, rows):
    """`fidelity.beside` of what the work directory holds."""
    real, stores = store.Store(workdir / "real.zarr"), {}
    for name in ("generated", "fresh", "transplants"):
        if store.exists(path := workdir / f"{name}.zarr"):
            stores[name] = store.Store(path)
            stores[name].require_whole()
    seen, features = set(real.rows("train").tolist()), {}
    for net in _of_real(nets, real)[:1]:
        if net.model.features and all(seen.issuperset(part.rows.tolist()) for part in net.parts):
            run = partial(explore.network_features, net, size=real.size, batch=8)
            features["the V-Net's bottleneck"] = run
    amounts = steps.augmentation(config.model) if "shift_mm" in config.model else None
    return fidelity.beside(real, stores, features, amounts, config.evaluate.pairs, rows)


def _of_real(nets, real):
    """The networks that saw real pairs only."""
    return [net for net in nets.values() if all(p.store.path == real.path for p in net.parts)]


def _notes(config, workdir, real):
    """The warnings of the model's own log, and of the store."""
    records, notes = logs.read(workdir / "train.jsonl"), _seen(config, workdir)
    if records:
        model = methods.load_model(config.model_name, config.model)
        lines = loop.notes(model, loop.epochs(records))
        notes += [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    if count := len(real.every("test")) - len(real.rows("test")):
        notes.append(f"{count} test pairs that {real.path.name}/leave_out.txt lists are not judged")
    return notes


def _explore(config, workdir):
    settings, real = config.explore, store.Store(workdir / "real.zarr")
    nets = judges.load(config.segment, real.size, workdir) if judges.begun(workdir) else {}
    generated = workdir / "generated.zarr"
    paths = [mixture.find(name, workdir) for name in mixture.paths(settings.stores, workdir)]
    paths = paths or [generated] * store.exists(generated)
    stores = dict(zip(mixture.titles(paths), map(store.Store, paths), strict=True))
    pictures.maps(workdir, real, stores, _of_real(nets, real), settings)
    pictures.segmentations(workdir, real, nets, config.evaluate.threshold)
    if config.model_name:
        config, folder = release.chosen(config, workdir)
        pictures.interpolation(workdir, real, methods.generator(config, folder), config)
    print(f"{workdir / 'maps.json'}, {workdir / 'figures'}")


def _report(config, workdir):
    pictures.pictures(workdir)
    print(page.write(workdir))


STAGES = {
    "ingest": _ingest,
    "train": _train,
    "generate": _generate,
    "segment": _segment,
    "evaluate": _evaluate,
    "explore": _explore,
    "gallery": gallery.run,
    "report": _report,
    "release": release.run,
    "predict": partial(predict.run, draw=figures.implant_sheet),
    "export": export.run,
}
TOGETHER = {"ingest", "train", "generate", "segment"}  # what several processes share
OUT = {"release", "predict", "export"}  # what only hands out
