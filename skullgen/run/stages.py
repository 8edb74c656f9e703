"""The stages: each reads what the ones before it left in the work directory, and adds to it."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path

import jax
import numpy as np

from skullgen.core import files, hosts, jobs, plugins
from skullgen.core.errors import UserError, plain
from skullgen.data import defects, ingest, sources, store
from skullgen.delivery import export, predict, release
from skullgen.evaluation import fidelity, judges, metrics, verdict
from skullgen.generation import generate
from skullgen.report import card, gallery, page, pictures, preview
from skullgen.training import checkpoint, contract, logs, loop, trained

PACKAGES = "skullgen jax jaxlib flax optax orbax-checkpoint numpy scipy zarr".split()


def versions():
    """Versions of what a run's numbers depend on, the commit, and the devices."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    found["devices"] = [str(device.device_kind) for device in jax.local_devices()]
    return {**found, "commit": commit()}


def commit():
    """The commit of the source tree that this package runs from, `+` where it is changed."""
    source = Path(__file__).parent
    try:
        ask = ["git", "-C", str(source), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def check(config, names, workdir):
    """UserError for what the stages `names` would find wrong with the config, hours later maybe."""
    if "ingest" in names:
        source = config.data.source
        if source != "store":
            ingest.planner(source)
            defects.kinds_of(config.data)
        if source not in sources.PLANS and config.get("segment") and config.segment.fresh:
            raise UserError(
                f"segment.fresh needs complete skulls to cut, which data.source={source} has not: "
                "set it to 0, or name the source of the skulls"
            )
    if {"train", "generate"}.intersection(names) or ("explore" in names and config.model_name):
        making = {"generate", "explore"}.intersection(names)
        model = trained.model(release.chosen(config, workdir)[0] if making else config)
        if making:
            trained.require_generates(config, model)
        if "train" in names:
            loop.phases(config.phases, model)
            loop.divides("batch_size", config.batch_size)
            contract.require(
                config.model_name, config.model, config.model.resolution, config.phases
            )
            _left_out(config, workdir)
    if "segment" in names:
        judges.check(config.segment, config.model.resolution, workdir)
    if "predict" in names:
        predict.check(config, names, workdir)
    if "evaluate" in names:
        metrics.own(config.evaluate)
    if "export" in names:
        export.check(config, names, workdir)
    for name in {"explore", "gallery"}.intersection(names):
        store.require_there(config[name].stores.split(","), workdir)


def _ingest(config, workdir):
    share = jobs.share(config.share)
    path, size = workdir / "real.zarr", config.model.resolution
    if config.data.source == "store":
        link(Path(config.data.root), path, size)
    else:
        ingest.run(path, size, config.data, versions(), config.workers, share=share)
        _whole(path)
    if config.get("segment") and config.segment.fresh:
        fresh = workdir / "fresh.zarr"
        if store.Store(path).missing():
            print(f"{fresh}: begun when {path} is whole; start this share again then")
            return
        _fresh(config, fresh, path, share)
        _whole(fresh)


def _whole(path):
    """Waits for the shares that the other processes of this run make of a store."""
    if not hosts.several():
        return
    stop = hosts.largest(jobs.asked())
    if stop:
        raise jobs.Stopped(stop, agreed=True)
    for _ in range(200):  # a shared disk may show what others wrote a minute later
        if not store.Store(path).missing():
            return
        time.sleep(0.5)
    store.Store(path).require_whole()


def _fresh(config, path, real, share):
    """Cuts the training skulls anew into the store `path`."""
    skulls = len(np.unique(store.Store(real).column("skull")[store.Store(real).rows("train")]))
    cuts = math.ceil(config.segment.fresh / (skulls * len(defects.kinds_of(config.data))))
    held = store.Store(path).recipe
    before = held["config"]["cuts"] if held else cuts
    _set_aside(path, before != cuts, share, "", f"{before} cuts")
    options = dict(cuts=cuts, versions=versions(), workers=config.workers, share=share)
    ingest.fresh(path, config.model.resolution, config.data, **options)


def _set_aside(path, other, share, tag, what):
    """Sets a store of other pairs aside: process 0 does; UserError where shares are being made."""
    if not hosts.first(int(other)):
        return
    if share != (0, 1) and not hosts.several():
        raise UserError(f"{path} holds pairs of {what}: move it away, then start every share again")
    if hosts.lead():
        print(f"{path} held pairs of {what}: it is now {jobs.set_aside(path, tag)}")
    hosts.first(0)


def link(source, path, size):
    """Makes `path` a link to a store of real pairs of `size` voxels a side that another run made.

    Raises UserError for a store that is not whole, of another size, or not of real pairs.
    """
    store.Store(source).require_whole()
    if store.Store(source).size != size:
        raise UserError(f"{source}: its pairs are not of config.model.resolution {size}")
    [store.Store(source).attrs[name] for name in ("kinds", "names", "licence", "voxel_mm")]
    if not len(store.Store(source).rows("train")):
        raise UserError(f"{source}: it has no pair of split train: name a store of real pairs")
    if path.exists() and not path.samefile(source):
        raise UserError(f"{path} is not {source}: choose another --workdir")
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to a store that was moved
        with contextlib.suppress(FileExistsError):  # another process was first
            path.symlink_to(os.path.relpath(source.resolve(), path.parent.resolve()))


def _left_out(config, workdir):
    """The note beside the checkpoints, and the training pairs to leave out; UserError if others."""
    real, folder = workdir / "real.zarr", workdir / "checkpoints" / config.model_name
    left, note = [], folder / "left_out.json"
    if store.exists(real):
        left = np.setdiff1d(
            store.Store(real).every("train"), store.Store(real).rows("train")
        ).tolist()
    began = (files.read_json(note) or {}).get("pairs", [])
    if began != left and checkpoint.newest(folder):
        held = f"without {len(began)}: list those of {note}" if began else "with all: list none"
        raise UserError(
            f"{real / 'leave_out.txt'} lists {len(left)} training pairs, but {folder} was trained "
            f"{held} to go on with it, or train anew: another --workdir, and "
            f"--config.data.source=store --config.data.root={real}"
        )
    return note, left


def _train(config, workdir):
    model, real = trained.model(config), workdir / "real.zarr"
    store.Store(real).require_whole("ingest")
    note, left = _left_out(config, workdir)
    if hosts.lead() and (left or note.exists()):
        note.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(note, {"pairs": left})
        print(f"{real}: {len(left)} training pairs are left out")
    loop.tell_code(config.model_name, note.parent, going_on=True)
    loop.train(
        model,
        loop.phases(config.phases, model),
        [store.Part(real, store.Store(real).rows("train"))],
        workdir / "train.jsonl",
        workdir / "checkpoints" / config.model_name,
        seed=config.seed,
        batch=config.batch_size,
        save_every=config.save_every,
        tensorboard=workdir / "tensorboard" if config.tensorboard else None,
        watch=_watch(config, workdir, model) if hosts.lead() else None,
        **_common(config),
    )


def _watch(config, workdir, model):
    options = dict(channels=trained.channels(config), threshold=config.generate.threshold)
    folder, minutes = workdir / "figures" / "training", config.preview_minutes
    return preview.watcher(model, workdir / "real.zarr", folder, minutes=minutes, **options)


def _common(config):
    return {name: config[name] for name in ("log_every", "keep", "budget_mb")}


def _generate(config, workdir):
    config, folder = release.chosen(config, workdir)
    newest = hosts.first(checkpoint.newest(folder / "checkpoints" / config.model_name))
    model, state = trained.generator(config, folder, int(newest))
    if folder == workdir:
        trained.tell_unfinished(config, workdir, model, int(newest))
    settings, share = config.generate, jobs.share(config.share)
    path, free = workdir / "generated.zarr", ("count", "weights")  # whose sum tells what they are
    code = plugins.sums([config.model_name])
    recipe = {
        "model_name": config.model_name,
        "model": json.loads(config.model.to_json_best_effort()),
        "step": int(state.step),
        "weights": checkpoint.fingerprint(state),
        "generate": {k: v for k, v in settings.to_dict().items() if k not in free},
        "device": jax.local_devices()[0].device_kind,
        **({"code": code} if code else {}),
    }
    held = store.Store(path).recipe
    tag = f"-step{held['step']}" if held else ""
    what = "another checkpoint, model file or settings"
    _set_aside(path, held not in (None, recipe), share, tag, what)
    if share != (0, 1) and not hosts.several() and store.exists(path):
        held = store.Store(path).count
        if held < settings.count:
            raise UserError(
                f"{path} holds {held} pairs, and shares cannot make it larger: set generate.count "
                f"to {held}, or start without share"
            )
    real = release.about(folder, config.model_name)
    attributes = {
        **real,
        "recipe": recipe,
        "names": [],
        "licence": f"as of the pairs that it was trained on: {real['licence']}",
        "versions": versions(),
    }
    generate.run(
        model,
        state,
        path,
        settings,
        channels=trained.channels(config),
        voxel_mm=real["voxel_mm"],
        size=config.model.resolution,
        workers=config.workers,
        attributes=attributes,
        share=share,
    )
    _whole(path)
    left = sum(map(len, store.Store(path).missing()))
    if left:
        print(f"{path}: {left} pairs are left to other shares")
        return
    count = len(store.Store(path).every())
    more = f" (generate.count is {settings.count}; none is thrown away)"
    print(f"{path}: {count} pairs{more if count > settings.count else ''}")
    if hosts.lead():
        card.write(path)


def _segment(config, workdir):
    judges.run(
        config.segment,
        config.model.resolution,
        workdir,
        tensorboard=config.tensorboard,
        **_common(config),
    )


def _evaluate(config, workdir):
    real, made = workdir / "real.zarr", workdir / "generated.zarr"
    result, lines, unfinished = {}, [], []
    if store.exists(made):
        result["generated"] = card.identity(made)
        learnt = loop.learnt(workdir, config.model_name)
        result["quality"] = fidelity.quality(real, made, pairs=config.evaluate.pairs, learnt=learnt)
        lines += fidelity.describe(result["quality"])
    size = config.model.resolution
    try:
        nets = judges.trained(config.segment, size, workdir) if judges.begun(workdir) else {}
    except judges.Unfinished as error:
        if not result:
            raise
        nets, unfinished = {}, [f"no verdict: {error}"]
    if nets:
        options = dict(size=size, settings=config.evaluate, workers=config.workers)
        judged = verdict.verdict(real, nets, **options)
        result["verdict"] = {"nets": judges.about(config.segment, nets), **judged}
        lines += ["", *verdict.describe(result["verdict"])]
    if not result:
        raise UserError(f"{workdir}: nothing to evaluate; run `generate` or `segment` first")
    result["commit"] = commit()
    result["config"] = json.loads(config.to_json_best_effort())
    notes = _notes(config, workdir)
    if left := len(np.setdiff1d(store.Store(real).every("test"), store.Store(real).rows("test"))):
        notes.append(f"{left} test pairs that {real.name}/leave_out.txt lists are not judged")
    result["warnings"] = [*unfinished, *notes, *verdict.warnings(result)]
    path = workdir / "metrics.json"
    if unfinished and "verdict" in (files.read_json(path) or {}):
        print(f"{path} holds a verdict: it is now {jobs.set_aside(path)}")
    files.write_json(path, result)
    if "quality" in result:
        card.write(made, result)
    lines += [f"warning: {line}" for line in result["warnings"]]
    print("\n".join(map(plain, lines)))


def _notes(config, workdir):
    """The warnings of the model's own log."""
    records = logs.read(workdir / "train.jsonl")
    lines = loop.notes(trained.model(config), loop.epochs(records)) if records else []
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def _explore(config, workdir):
    settings, real = config.explore, workdir / "real.zarr"
    size = config.model.resolution
    nets = judges.trained(config.segment, size, workdir) if judges.begun(workdir) else {}
    unfitted = [net for net in nets.values() if all(p.path.samefile(real) for p in net[2])]
    made = workdir / "generated.zarr"
    stores = [store.find(name, workdir) for name in plugins.listed(settings.stores)]
    stores = stores or [made] * (store.exists(made))
    names = [p.resolve().parent.name if p.name == made.name else p.stem for p in stores]
    if len(set(names)) < len(names):  # runs of one name in two places
        names = list(map(str, stores))
    pictures.maps(workdir, dict(zip(names, stores, strict=True)), unfitted, settings, size)
    pictures.segmentations(workdir, real, nets, config.evaluate.threshold, size)
    if config.model_name:
        config, folder = release.chosen(config, workdir)
        model, state = trained.generator(config, folder)
        channels, options = trained.channels(config), config.generate
        pictures.interpolation(workdir, model, state, settings, options, channels, size)


def compare(workdir, runs):
    """Figures 3 and 5 of a sweep: the generators in one map, a test case by every V-Net.

    runs: title -> (config, folder) of one V-Net of each row, the one on real pairs first.
    """
    nets, stores = {}, {}
    for title, (config, folder) in runs.items():
        size = config.model.resolution
        nets[title] = judges.trained(config.segment, size, folder)["vnet"]
        parts = nets[title][2]
        if len(parts) == 1 and parts[0].path.name == "generated.zarr":
            stores[title] = parts[0].path
    config, folder = next(iter(runs.values()))
    real = folder / "real.zarr"
    pictures.maps(workdir, stores, [next(iter(nets.values()))], config.explore, size, real)
    pictures.segmentations(workdir, real, nets, config.evaluate.threshold, size)


def _report(config, workdir):
    with logs.as_written(workdir):
        for path in pictures.pictures(workdir):
            print(path)
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
    "predict": predict.run,
    "export": export.stage,
}
TOGETHER = {"ingest", "train", "generate", "segment"}  # what several processes share
