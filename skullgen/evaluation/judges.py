"""The networks that judge: V-Nets trained by the one loop on any mixture of stores (section 5).

Two of a kind: `vnet`, on `config.segment.stores`, and its yardstick `vnet_real`, on the run's own
real training pairs. Each has a folder of checkpoints, and beside it a file that says what it
is made of: a network of other pairs or settings is set aside, never taken for this one.
"""

import hashlib
import json

import numpy as np

from skullgen.core import files, hosts, jobs
from skullgen.core.errors import UserError
from skullgen.core.types import Phase
from skullgen.data import store
from skullgen.training import checkpoint, contract, loop

REAL = "real.zarr:train:all"
NETS = ("vnet", "vnet_real")


class Unfinished(UserError):
    """A network that is not trained to its end, or not on these pairs."""


def mixtures(settings, workdir):
    """The networks of a run: name -> list of `store.Part`.

    settings: an experiment's `config.segment`; no stores means the run's `generated.zarr`.
    """
    made = workdir / "generated.zarr"
    if settings.stores:
        nets = {"vnet": store.mixture(settings.stores, workdir, settings.seed)}
    else:
        store.Store(made).require_whole("generate")
        nets = {"vnet": [store.Part(made, store.Store(made).rows())]}
    if settings.reference and settings.stores != REAL:
        nets["vnet_real"] = store.mixture(REAL, workdir, settings.seed)
    return nets


def check(settings, size, workdir):
    """UserError for a network that cannot be made, or stores that are named wrong or not there."""
    _load(settings, size)
    contract.require(settings.model_name, _sized(settings, size), size, section="segment.")
    loop.divides("segment.batch_size", settings.batch_size)
    store.require_there([name for name, *_ in store.named(settings.stores)], workdir)


def _sized(settings, size):
    """`config.segment.model` with the resolution."""
    config = settings.model.copy_and_resolve_references()
    with config.unlocked():
        config.resolution = size
    return config


def _load(settings, size):
    model = loop.load_model(settings.model_name, _sized(settings, size), "segment.")
    if model.predict is None or "segment" not in model.steps:
        raise UserError(
            f"segment.model_name is {settings.model_name!r}: it lacks the step `segment` or predict"
        )
    return model


def _identity(settings, parts):
    """All that determines a network but how long it is trained."""
    fields = json.loads(settings.to_json_best_effort())
    made = {name: fields[name] for name in ("model_name", "model", "seed", "batch_size")}
    return {**made, "stores": [_part(part) for part in parts]}


def _part(part):
    recipe = json.dumps(store.Store(part.path).recipe, sort_keys=True)
    return {
        "path": part.path.name,
        "pairs": len(part.rows),
        "rows": hashlib.sha256(np.asarray(part.rows, "<i8").tobytes()).hexdigest(),
        "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
    }


def run(settings, size, workdir, *, keep, log_every, budget_mb, tensorboard):
    """Trains what is not trained yet, or goes on.

    size: voxels a side. The others are the fields of that name of an experiment's config.
    """
    model = _load(settings, size)
    for name, parts in mixtures(settings, workdir).items():
        folder, log = _places(workdir, name)
        if hosts.lead():
            _begin(folder, log, _identity(settings, parts), settings.updates)
        loop.tell_code(settings.model_name, folder, going_on=True)
        pairs = sum(len(part.rows) for part in parts)
        done = hosts.first(checkpoint.newest(folder)) == settings.updates
        print(f"{name}: {settings.updates} updates on {pairs} pairs{' are done' * done}")
        loop.train(
            model,
            [Phase("segment", updates=settings.updates)],
            parts,
            log,
            folder,
            seed=settings.seed,
            batch=settings.batch_size,
            log_every=log_every,
            save_every=settings.save_every,
            keep=keep,
            budget_mb=budget_mb,
            tensorboard=workdir / "tensorboard" / name if tensorboard else None,
        )


def _begin(folder, log, identity, updates):
    """Sets a network of other pairs or settings aside, and writes what this one is made of."""
    newest = checkpoint.newest(folder)
    if newest and (_held(folder) != identity or newest > updates):
        aside = jobs.set_aside(folder)
        log.unlink(missing_ok=True)
        print(f"{folder} is of other pairs or settings: it is now {aside}")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "net.json", identity)


def trained(settings, size, workdir):
    """The trained networks: name -> (model, state, parts).

    Raises Unfinished where one is not trained to its end, or on other pairs.
    """
    model, nets = _load(settings, size), {}
    for name, parts in mixtures(settings, workdir).items():
        folder, _ = _places(workdir, name)
        whole = checkpoint.newest(folder) == settings.updates
        if not whole or _held(folder) != _identity(settings, parts):
            raise Unfinished(
                f"{folder}: not trained on these pairs for {settings.updates} updates: "
                "run the stage `segment` first"
            )
        loop.tell_code(settings.model_name, folder)
        nets[name] = (model, checkpoint.read(folder, model, settings.updates), parts)
    return nets


def newest(settings, size, workdir, name):
    """The newest state of the network `name`, whatever became of its pairs: (model, state).

    Raises Unfinished where it has no checkpoint, or was made with other settings.
    """
    model, folder = _load(settings, size), _places(workdir, name)[0]
    step = checkpoint.newest(folder)
    if not step:
        raise Unfinished(f"{folder}: no checkpoint; run the stage `segment` first")
    held, asked = _held(folder) or {}, _identity(settings, [])
    for field in ("model_name", "model"):
        if held.get(field) != asked[field]:
            raise Unfinished(
                f"{folder}: made with another segment.{field} than the config's: set it back"
            )
    loop.tell_code(settings.model_name, folder)
    return model, checkpoint.read(folder, model, step)


def choose(workdir, name=""):
    """The trained network of a work directory that `name` means; "": `vnet`, or the only one.

    Raises Unfinished, with the one that is there.
    """
    there = [net for net in NETS if checkpoint.newest(_places(workdir, net)[0])]
    if not there or name not in ("", *there):
        folder = _places(workdir, name or NETS[0])[0]
        what = f"here is {there[0]}: name that" if there else "run the stage `segment` first"
        raise Unfinished(f"{folder}: no checkpoint; {what}")
    return name or there[0]


def about(settings, nets):
    """What trained networks are made of, in words for `metrics.json`."""
    shared = {"updates": settings.updates, "seed": settings.seed}
    shared["augment"] = settings.model.get("augment", False)
    return {
        name: {"stores": [{"path": str(p.path), "pairs": len(p.rows)} for p in parts], **shared}
        for name, (_, _, parts) in nets.items()
    }


def begun(workdir):
    """Whether a network of this work directory has a checkpoint."""
    return checkpoint.newest(_places(workdir, "vnet")[0]) > 0


def _places(workdir, name):
    return workdir / "checkpoints" / name, workdir / f"segment-{name}.jsonl"


def _held(folder):
    return files.read_json(folder / "net.json")
