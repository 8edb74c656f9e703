"""A work directory and the stages that fill it; `launch.py` is its command line.

Stages meet only through files in the work directory. Only fields that determine work already
done are locked; a run goes on where it stopped.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path

import jax

from skullgen import checkpoint, evaluate, generate, ingest, jobs, report, store, train
from skullgen.errors import UserError, one_of

RANGES = {  # lowest and highest value of a field
    **dict.fromkeys(
        ("seed", "data.seed", "generate.seed", "workers", "generate.first"), (0, 2**31)
    ),
    **dict.fromkeys(("batch_size", "log_every", "save_every", "keep"), (1, math.inf)),
    **dict.fromkeys(("data.skulls", "data.cuts", "generate.count"), (1, math.inf)),
    **dict.fromkeys(("generate.batch_size", "evaluate.pairs"), (1, math.inf)),
    **dict.fromkeys(("budget_mb", "generate.dust_mm3"), (0, math.inf)),
    **dict.fromkeys(("data.threshold", "generate.threshold"), (0.001, 1)),
    **dict.fromkeys(("data.test_fraction", "data.validation_fraction"), (0, 1)),
    **dict.fromkeys(("model.resolution", "model.latent", "model.groups"), (1, math.inf)),
}
PACKAGES = "skullgen jax jaxlib flax optax orbax-checkpoint numpy scipy zarr".split()


def run(config, workdir):
    """Runs `config.stages` in order in `workdir`, which is made."""
    names = [name.strip() for name in config.stages.split(",") if name.strip()]
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        raise UserError(
            f"stages is {config.stages!r}: name some of {', '.join(STAGES)}, comma-separated"
        )
    check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with alone(workdir):
        prepare(config, workdir)
        for name in names:
            start = time.monotonic()
            print(f"== {name}", flush=True)
            STAGES[name](config, workdir)
            print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
            jobs.check()


@contextlib.contextmanager
def alone(workdir):
    """Holds the work directory's lock, which the system lets go when the process ends."""
    with open(workdir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{workdir}: another run works here ({file.read().strip()}): wait for its end, "
                "or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def check(config):
    """UserError for a number that is out of range, before anything is written."""
    for field, (low, high) in RANGES.items():
        value = config
        for part in field.split("."):
            value = value.get(part) if value is not None else None
        if value is not None and not low <= value <= high:
            upper = f" to {high}" if high < math.inf else " or more"
            raise UserError(f"config.{field} is {value}: it must be {low}{upper}")
    if config.get("generate"):
        one_of("generate.connectivity", config.generate.connectivity, (6, 18, 26))
        one_of("generate.channels", config.generate.channels, ("", "independent", "exclusive"))


def prepare(config, workdir):
    """Checks that the work directory may go on with this config; writes config and versions.

    Raises UserError, by name, for a locked field that changed.
    """
    new = json.loads(config.to_json_best_effort())
    path = workdir / "config.json"
    if path.exists():
        old = json.loads(path.read_text())
        for field in _locked(old, new, workdir):
            raise UserError(
                f"{workdir}: config.{field} was {_get(old, field)!r} and is now "
                f"{_get(new, field)!r}, but work that it determines is done here: "
                "set it back, or choose another --workdir"
            )
    _write_json(path, new)
    _write_json(workdir / "versions.json", versions())


def _locked(old, new, workdir):
    """The fields that changed although work that they determine is done, in order."""
    done = []
    real = workdir / "real.zarr"
    begun = store.recipe(real) is not None and store.missing(real) != store.shards(real)
    step = checkpoint.newest(workdir / "checkpoints" / old["model_name"])
    if begun or step:
        done += [f"data.{name}" for name in {**old["data"], **new["data"]} if name != "root"]
        done += ["model.resolution"]
    if step:
        done += ["seed", "batch_size", "model_name"]
        done += [f"model.{name}" for name in {**old["model"], **new["model"]}]
        done += _locked_phases(old, new, workdir, step)
    return [field for field in dict.fromkeys(done) if _get(old, field) != _get(new, field)]


def _locked_phases(old, new, workdir, step):
    """Phases that were finished are locked whole, the one in progress but for a longer end."""
    if store.recipe(workdir / "real.zarr") is None:  # taken away: no telling how long epochs were
        return [f"phases[{number}]" for number in range(len(old["phases"]))]
    pairs = len(store.rows(workdir / "real.zarr", "train"))
    fields, begin = [], 0
    for number, spec in enumerate(old["phases"]):
        where = f"phases[{number}]"
        if begin >= step:
            break
        phase = train.Phase(**spec)
        end = begin + train.schedule([phase], pairs, old["batch_size"])[0]
        if number >= len(new["phases"]):
            return [*fields, where]
        now = train.Phase(**new["phases"][number])
        longer = begin + train.schedule([now], pairs, old["batch_size"])[0]
        last = number == len(old["phases"]) - 1 or step < end
        same = (phase.step, phase.batches) == (now.step, now.batches)
        if not (same and (longer == end or (last and longer >= step))):
            fields.append(where)
        begin = end
    return fields


def _get(config, field):
    """The value at `a.b` or `a[2]` of nested dicts and lists; None where there is none."""
    for part in field.replace("[", ".").replace("]", "").split("."):
        if isinstance(config, list):
            config = config[int(part)] if int(part) < len(config) else None
        else:
            config = (config or {}).get(part)
    return config


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


def _write_json(path, value):
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def _model(config):
    return train.load_model(config.model_name, config.model)


def _ingest(config, workdir):
    path = workdir / "real.zarr"
    ingest.run(path, config.model.resolution, config.data, versions(), config.workers)


def _train(config, workdir):
    model = _model(config)
    train.train(
        model,
        train.phases(config.phases, model),
        workdir,
        workdir / "checkpoints" / config.model_name,
        seed=config.seed,
        batch=config.batch_size,
        log_every=config.log_every,
        save_every=config.save_every,
        keep=config.keep,
        budget_mb=config.budget_mb,
        tensorboard=config.tensorboard,
    )


def _generate(config, workdir):
    model = _model(config)
    if model.decode is None or model.latents is None:
        raise UserError(f"model_name is {config.model_name!r}: it has no latents and decode")
    folder = workdir / "checkpoints" / config.model_name
    if not checkpoint.newest(folder):
        raise UserError(f"{folder}: no checkpoint; run the stage `train` first")
    with contextlib.closing(checkpoint.manager(folder)) as manager:
        state = checkpoint.restore(manager, model)
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
        aside = _aside(path, held["step"])
        path.rename(aside)
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
        channels=settings.channels or config.model.get("head", "independent"),
        voxel_mm=real["voxel_mm"],
        size=config.model.resolution,
        workers=config.workers,
        attributes=attributes,
    )
    count = len(store.rows(path))
    more = f" (generate.count is {settings.count}; none is thrown away)"
    print(f"{path}: {count} pairs{more if count > settings.count else ''}")


def _aside(path, step):
    """A free name for an older store."""
    names = (path.with_name(f"{path.stem}-step{step}-{n}.zarr") for n in range(10**6))
    return next(name for name in names if not name.exists())


def _evaluate(config, workdir):
    result = evaluate.quality(
        workdir / "real.zarr", workdir / "generated.zarr", pairs=config.evaluate.pairs
    )
    _write_json(workdir / "metrics.json", result)
    print("\n".join(evaluate.describe(result)))


def _report(config, workdir):
    for path in report.pictures(workdir):
        print(path)


STAGES = {
    "ingest": _ingest,
    "train": _train,
    "generate": _generate,
    "evaluate": _evaluate,
    "report": _report,
}
