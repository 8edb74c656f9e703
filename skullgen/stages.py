"""The stages: each reads what the ones before it left in the work directory, and adds to it."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from skullgen import (
    checkpoint,
    defects,
    evaluate,
    generate,
    hosts,
    ingest,
    jobs,
    logs,
    page,
    quality,
    report,
    segment,
    sources,
    store,
    train,
)
from skullgen.errors import UserError, one_of, plain

PACKAGES = "skullgen jax jaxlib flax optax orbax-checkpoint numpy scipy zarr".split()


def versions():
    """Versions of what a run's numbers depend on, the commit, and the devices."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    found["devices"] = [str(device.device_kind) for device in jax.local_devices()]
    found["commit"] = commit()
    return found


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
        one_of("data.source", config.data.source, (*sorted(sources.PLANS), "store"))
        if config.data.source == "store" and config.get("segment") and config.segment.fresh:
            raise UserError(
                "segment.fresh needs complete skulls to cut, which data.source=store has not: set "
                "it to 0, or name the source of the skulls"
            )
    if {"train", "generate"}.intersection(names) or ("explore" in names and config.model_name):
        model = _model(config)
        if {"generate", "explore"}.intersection(names):
            _generates(config, model)
        if "train" in names:
            train.phases(config.phases, model)
            train.divides("batch_size", config.batch_size)
    if "segment" in names:
        segment.check(config.segment, config.model.resolution, workdir)
    if "explore" in names:
        store.require_there(config.explore.stores.split(","), workdir)


def _model(config):
    return train.load_model(config.model_name, config.model)


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
        if store.missing(path):
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
        if not store.missing(path):
            return
        time.sleep(0.5)
    store.require_whole(path)


def _fresh(config, path, real, share):
    """Cuts the training skulls anew into the store `path`."""
    skulls = len(np.unique(store.open_store(real)["skull"][:][store.rows(real, "train")]))
    cuts = math.ceil(config.segment.fresh / (skulls * len(defects.KINDS)))
    held = store.recipe(path)
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
    """Makes `path` a link to a store of real pairs that another run ingested."""
    store.require_whole(source)
    if store.open_store(source)["pairs"].shape[1] != size:
        raise UserError(f"{source}: its pairs are not of config.model.resolution {size}")
    [store.open_store(source).attrs[name] for name in ("kinds", "names", "licence", "voxel_mm")]
    if not len(store.rows(source, "train")):
        raise UserError(f"{source}: it has no pair of split train: name a store of real pairs")
    if path.exists() and not path.samefile(source):
        raise UserError(f"{path} is not {source}: choose another --workdir")
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to a store that was moved
        with contextlib.suppress(FileExistsError):  # another process was first
            path.symlink_to(os.path.relpath(source.resolve(), path.parent.resolve()))


def _train(config, workdir):
    model, real = _model(config), workdir / "real.zarr"
    store.require_whole(real, "ingest")
    train.train(
        model,
        train.phases(config.phases, model),
        [store.Part(real, store.rows(real, "train"))],
        workdir / "train.jsonl",
        workdir / "checkpoints" / config.model_name,
        seed=config.seed,
        batch=config.batch_size,
        save_every=config.save_every,
        tensorboard=workdir / "tensorboard" if config.tensorboard else None,
        **_common(config),
    )


def _common(config):
    return {name: config[name] for name in ("log_every", "keep", "budget_mb")}


def _generates(config, model):
    if model.decode is None or model.latents is None:
        raise UserError(f"model_name is {config.model_name!r}: it has no latents and decode")


def _trained(config, workdir, step=None):
    """The generator and its newest state, or that of a step."""
    model = _model(config)
    _generates(config, model)
    folder = workdir / "checkpoints" / config.model_name
    step = step or checkpoint.newest(folder)
    if not step:
        raise UserError(f"{folder}: no checkpoint; run the stage `train` first")
    with contextlib.closing(checkpoint.manager(folder)) as manager:
        return model, checkpoint.restore(manager, model, step)


def _channels(config):
    head = config.model.get("head", "independent")
    return config.generate.channels or ("exclusive" if head == "exclusive" else "independent")


def _tell_unfinished(config, workdir, model, newest):
    """A warning where the newest checkpoint is not the last one of the plan."""
    pairs = len(store.rows(workdir / "real.zarr", "train"))
    plan = train.phases(config.phases, model)
    end = train.schedule(plan, pairs, config.batch_size)[-1]
    if newest < end and hosts.lead():
        where = f"{config.model_name} is of update {newest}, before the end of training, {end}"
        print(
            f"warning: the newest checkpoint of {where}: the stage `train` goes on", file=sys.stderr
        )


def _generate(config, workdir):
    newest = hosts.first(checkpoint.newest(workdir / "checkpoints" / config.model_name))
    model, state = _trained(config, workdir, int(newest))
    _tell_unfinished(config, workdir, model, int(newest))
    settings, share = config.generate, jobs.share(config.share)
    path = workdir / "generated.zarr"
    recipe = {
        "model_name": config.model_name,
        "model": json.loads(config.model.to_json_best_effort()),
        "step": int(state.step),
        "weights": checkpoint.fingerprint(state),
        "generate": {k: v for k, v in settings.to_dict().items() if k != "count"},
        "device": jax.local_devices()[0].device_kind,
    }
    held = store.recipe(path)
    tag = f"-step{held['step']}" if held else ""
    other = held is not None and held != recipe
    _set_aside(path, other, share, tag, "another checkpoint or settings")
    if share != (0, 1) and not hosts.several() and store.recipe(path) is not None:
        held = len(store.rows(path))
        if held < settings.count:
            raise UserError(
                f"{path} holds {held} pairs, and shares cannot make it larger: set generate.count "
                f"to {held}, or start without share"
            )
    real = store.open_store(workdir / "real.zarr").attrs
    attributes = {
        "recipe": recipe,
        "voxel_mm": real["voxel_mm"],
        "kinds": real["kinds"],
        "names": [],
        "licence": f"as of the pairs that it was trained on: {real['licence']}",
        "versions": versions(),
    }
    generate.run(
        model,
        state,
        path,
        settings,
        channels=_channels(config),
        voxel_mm=real["voxel_mm"],
        size=config.model.resolution,
        workers=config.workers,
        attributes=attributes,
        share=share,
    )
    _whole(path)
    left = sum(map(len, store.missing(path)))
    if left:
        print(f"{path}: {left} pairs are left to other shares")
        return
    count = len(store.rows(path))
    more = f" (generate.count is {settings.count}; none is thrown away)"
    print(f"{path}: {count} pairs{more if count > settings.count else ''}")


def _segment(config, workdir):
    segment.run(
        config.segment,
        config.model.resolution,
        workdir,
        tensorboard=config.tensorboard,
        **_common(config),
    )


def _evaluate(config, workdir):
    real, made = workdir / "real.zarr", workdir / "generated.zarr"
    result, lines, unfinished = {}, [], []
    if store.recipe(made) is not None:
        result["quality"] = quality.quality(real, made, pairs=config.evaluate.pairs)
        lines += quality.describe(result["quality"])
    size = config.model.resolution
    try:
        nets = segment.trained(config.segment, size, workdir) if segment.begun(workdir) else {}
    except segment.Unfinished as error:
        if not result:
            raise
        nets, unfinished = {}, [f"no verdict: {error}"]
    if nets:
        options = dict(size=size, settings=config.evaluate, workers=config.workers)
        verdict = evaluate.verdict(real, nets, **options)
        result["verdict"] = {"nets": segment.about(config.segment, nets), **verdict}
        lines += ["", *evaluate.describe(result["verdict"])]
    if not result:
        raise UserError(f"{workdir}: nothing to evaluate; run `generate` or `segment` first")
    result["commit"] = commit()
    result["config"] = json.loads(config.to_json_best_effort())
    notes = _notes(config, workdir)
    result["warnings"] = [*unfinished, *notes, *evaluate.warnings(result)]
    path = workdir / "metrics.json"
    if unfinished and "verdict" in (logs.read_json(path) or {}):
        print(f"{path} holds a verdict: it is now {jobs.set_aside(path)}")
    logs.write_json(path, result)
    lines += [f"warning: {line}" for line in result["warnings"]]
    print("\n".join(map(plain, lines)))


def _notes(config, workdir):
    """The warnings of the model's own log."""
    records = logs.read(workdir / "train.jsonl")
    lines = train.notes(_model(config), train.epochs(records)) if records else []
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def _explore(config, workdir):
    settings, real = config.explore, workdir / "real.zarr"
    size = config.model.resolution
    nets = segment.trained(config.segment, size, workdir) if segment.begun(workdir) else {}
    unfitted = [net for net in nets.values() if all(p.path.samefile(real) for p in net[2])]
    made, named = workdir / "generated.zarr", settings.stores.split(",")
    stores = [store.found(name.strip(), workdir) for name in named if name.strip()]
    if not stores and store.recipe(made) is not None:
        stores = [made]
    names = [p.resolve().parent.name if p.name == made.name else p.stem for p in stores]
    if len(set(names)) < len(names):  # runs of one name in two places
        names = list(map(str, stores))
    report.maps(workdir, dict(zip(names, stores, strict=True)), unfitted, settings, size)
    report.segmentations(workdir, real, nets, config.evaluate.threshold, size)
    if config.model_name:
        model, state = _trained(config, workdir)
        channels, options = _channels(config), config.generate
        report.interpolation(workdir, model, state, settings, options, channels, size)


def compare(workdir, runs):
    """Figures 3 and 5 of a sweep: the generators in one map, a test case by every V-Net.

    runs: title -> (config, folder) of one V-Net of each row, the one on real pairs first.
    """
    nets, stores = {}, {}
    for title, (config, folder) in runs.items():
        size = config.model.resolution
        nets[title] = segment.trained(config.segment, size, folder)["vnet"]
        parts = nets[title][2]
        if len(parts) == 1 and parts[0].path.name == "generated.zarr":
            stores[title] = parts[0].path
    config, folder = next(iter(runs.values()))
    real = folder / "real.zarr"
    report.maps(workdir, stores, [next(iter(nets.values()))], config.explore, size, real)
    report.segmentations(workdir, real, nets, config.evaluate.threshold, size)


def _report(config, workdir):
    with logs.as_written(workdir):
        for path in report.pictures(workdir):
            print(path)
        print(page.write(workdir))


STAGES = {
    "ingest": _ingest,
    "train": _train,
    "generate": _generate,
    "segment": _segment,
    "evaluate": _evaluate,
    "explore": _explore,
    "report": _report,
}
TOGETHER = {"ingest", "train", "generate", "segment"}  # what several processes share
