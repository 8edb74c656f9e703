"""The stages: each reads what the ones before it left in the work directory, and adds to it."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from pathlib import Path

import jax
import numpy as np

from skullgen import (
    checkpoint,
    defects,
    evaluate,
    explore,
    figures,
    generate,
    ingest,
    jobs,
    logs,
    page,
    quality,
    report,
    segment,
    store,
    train,
)
from skullgen.errors import UserError

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


def _model(config):
    return train.load_model(config.model_name, config.model)


def _ingest(config, workdir):
    path, size = workdir / "real.zarr", config.model.resolution
    if config.data.source == "store":
        _link(Path(config.data.root), path, size)
    else:
        ingest.run(path, size, config.data, versions(), config.workers)
    if config.get("segment") and config.segment.fresh:
        skulls = len(np.unique(store.open_store(path)["skull"][:][store.rows(path, "train")]))
        ingest.fresh(
            workdir / "fresh.zarr",
            size,
            config.data,
            cuts=math.ceil(config.segment.fresh / (skulls * len(defects.KINDS))),
            versions=versions(),
            workers=config.workers,
        )


def _link(source, path, size):
    """Makes `real.zarr` a link to a store that exists: any run's, real or generated."""
    store.require_whole(source, "that makes it")
    if store.open_store(source)["pairs"].shape[1] != size:
        raise UserError(f"{source}: its pairs are not of config.model.resolution {size}")
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to a store that was moved
        path.symlink_to(os.path.relpath(source, path.parent))


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


def _trained(config, workdir):
    """The generator and its newest state."""
    model = _model(config)
    if model.decode is None or model.latents is None:
        raise UserError(f"model_name is {config.model_name!r}: it has no latents and decode")
    folder = workdir / "checkpoints" / config.model_name
    if not checkpoint.newest(folder):
        raise UserError(f"{folder}: no checkpoint; run the stage `train` first")
    with contextlib.closing(checkpoint.manager(folder)) as manager:
        return model, checkpoint.restore(manager, model)


def _channels(config):
    head = config.model.get("head", "independent")
    return config.generate.channels or ("exclusive" if head == "exclusive" else "independent")


def _generate(config, workdir):
    model, state = _trained(config, workdir)
    settings = config.generate
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
    if held is not None and held != recipe:
        aside = jobs.set_aside(path, f"-step{held['step']}")
        print(f"{path} held pairs of another checkpoint or settings: it is now {aside}")
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
    )
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
    result, lines = {}, []
    if store.recipe(made) is not None:
        result["quality"] = quality.quality(real, made, pairs=config.evaluate.pairs)
        lines += quality.describe(result["quality"])
    if segment.begun(workdir):
        size = config.model.resolution
        nets = segment.trained(config.segment, size, workdir)
        options = dict(size=size, settings=config.evaluate, workers=config.workers)
        verdict = evaluate.verdict(real, nets, **options)
        result["verdict"] = {"nets": segment.about(config.segment, nets), **verdict}
        lines += ["", *evaluate.describe(result["verdict"])]
    if not result:
        raise UserError(f"{workdir}: nothing to evaluate; run `generate` or `segment` first")
    result["warnings"] = [*_notes(config, workdir), *evaluate.warnings(result)]
    logs.write_json(workdir / "metrics.json", result)
    print("\n".join([*lines, *(f"warning: {line}" for line in result["warnings"])]))


def _notes(config, workdir):
    """The warnings of the model's own log."""
    records = logs.read(workdir / "train.jsonl")
    lines = train.notes(_model(config), train.epochs(records)) if records else []
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def _explore(config, workdir):
    settings, real = config.explore, workdir / "real.zarr"
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    size = config.model.resolution
    nets = segment.trained(config.segment, size, workdir) if segment.begun(workdir) else {}
    groups = [
        ("real, train", *explore.pick(real, ("train",), settings.pairs, settings.seed)),
        (
            "real, held out",
            *explore.pick(real, ("validation", "test"), settings.pairs, settings.seed),
        ),
    ]
    for path in _generated(settings.stores, workdir):
        name = path.resolve().parent.name if path.name == "generated.zarr" else path.stem
        groups.append((name, *explore.pick(path, (), settings.pairs, settings.seed)))
    features = None
    if name := next(
        (name for name in ("vnet_real", "vnet") if _saw_only_real(nets, name, real)), ""
    ):
        model, state, _ = nets[name]
        if model.features is not None:

            def features(bits):
                return explore.network_features(
                    model, state, bits, size, config.evaluate.batch_size
                )

    maps = explore.maps(
        [group for group in groups if len(group[1])],
        size,
        features,
        seed=settings.seed,
        perplexity=settings.perplexity,
        umap=settings.umap,
    )
    logs.write_json(workdir / "maps.json", maps)
    figures.map_sheet(folder / "maps.png", maps)
    print(folder / "maps.png")
    _segmentations(nets, real, size, config, folder)
    if config.model_name:
        _interpolation(config, workdir, folder)


def _generated(stores, workdir):
    """The generated stores that a map shows: those named, or this run's, where it has one."""
    if stores:
        return [Path(name.strip()) for name in stores.split(",") if name.strip()]
    path = workdir / "generated.zarr"
    return [path] if store.recipe(path) is not None else []


def _saw_only_real(nets, name, real):
    """Whether a net saw only real pairs: features may not be fitted on what they judge."""
    return name in nets and all(part.path.samefile(real) for part in nets[name][2])


def _segmentations(nets, real, size, config, folder):
    """Figure 5: the first test case whose defect is of the middle size, by every net."""
    rows = store.rows(real, "test")
    if not nets or not len(rows):
        return
    defects_ = store.open_store(real)["voxels"][:][rows, 1]
    row = rows[np.argsort(defects_, kind="stable")[len(rows) // 2]]
    bits = store.load(real, [row])
    skull, truth = np.moveaxis(store.unpack(bits, size)[0], -1, 0)
    predict = {
        name: evaluate.network(model, state, size, 1) for name, (model, state, _) in nets.items()
    }
    predict |= {
        "mean skull": evaluate.mean_skull(store.load(real, store.rows(real, "train")), size),
        "mirror image": evaluate.mirror(size),
    }
    found = {name: one(bits)[0] >= config.evaluate.threshold for name, one in predict.items()}
    path = folder / "segmentation.png"
    figures.segmentation_sheet(path, skull, truth, found, title=f"Test pair {row}")
    print(path)


def _interpolation(config, workdir, folder):
    """Figure 4: between two held-out real skulls, or two draws where there is no encoder."""
    model, state = _trained(config, workdir)
    real, size = workdir / "real.zarr", config.model.resolution
    bits, names = explore.pick(real, ("test", "validation", "train"), 2, config.explore.seed)
    pairs = store.unpack(bits, size)
    settings = config.generate
    ways = explore.interpolation(
        model,
        state,
        explore.ends(model, state, pairs, config.explore.seed),
        count=config.explore.steps,
        channels=_channels(config),
        threshold=settings.threshold,
        dust=generate.dust(settings, store.open_store(real).attrs["voxel_mm"]),
        connectivity=settings.connectivity,
    )
    encodes = model.encode is not None
    between = " and ".join(names) if encodes else "two draws"
    figures.strip(
        folder / "interpolation.png",
        list(zip(("linear", "spherical"), ways, strict=True)),
        title=f"Interpolation in latent space between {between}",
        ends=pairs if encodes else None,
    )
    print(folder / "interpolation.png")


def _report(config, workdir):
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
