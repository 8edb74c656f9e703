"""The networks that judge: V-Nets trained by the one loop on any mixture of stores (section 5).

`vnet` learns from `config.segment.stores`; beside it stands one for each of `segment.controls`.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from skullgen.core import hosts, plugins, provenance
from skullgen.core.errors import UserError, in_range, one_of
from skullgen.core.types import Phase
from skullgen.data import mixture, store
from skullgen.evaluation import metrics
from skullgen.generation import generate
from skullgen.models import steps
from skullgen.training import checkpoint, logs, loop, methods
from skullgen.training.methods import Trained

CONTROLS = {  # what pairs must beat, and what none can: name -> pairs
    "real": "real.zarr:train:all",
    "fresh": "fresh.zarr:all:all",
    "transplants": "transplants.zarr:all:all",
    "phantoms": "phantoms.zarr:all:all",
    "ceiling": "ceiling.zarr:all:all",
}
NETS = ("vnet", *(f"vnet_{name}" for name in CONTROLS))
CURVE_PAIRS, CURVE_BATCH = 40, 8  # of the split `validation`, at most, for a learning curve
Start = loop.Start | None
RISE = 0.01  # of Dice in the last quarter of training: with more, a net has not converged


class Unfinished(UserError):
    """A network that is not trained to its end, or not on these pairs."""


def mixtures(settings: ConfigDict, workdir: Path) -> dict[str, list[mixture.Part]]:
    """The pairs of each network, by its name; no stores means the run's `generated.zarr`.

    A control that ingest could not make, and said so, has no network.
    """
    if not settings.stores:
        store.Store(workdir / "generated.zarr").require_whole("generate")
    nets = {"vnet": settings.stores or "generated.zarr:all:all"}
    for name in plugins.listed(settings.controls):
        there = store.exists(workdir / CONTROLS[name].partition(":")[0])
        if there and CONTROLS[name] != settings.stores:
            nets[f"vnet_{name}"] = CONTROLS[name]
    return {name: mixture.parts(stores, workdir, settings.seed) for name, stores in nets.items()}


def controls(config: ConfigDict) -> list[str]:
    """The controls whose pairs `ingest` makes: those that any network is to learn from."""
    named = (*mixture.named(config.stores, "stores"), *mixture.named(config.segment.stores))
    stores, wanted = {name for name, *_ in named}, plugins.listed(config.segment.controls)
    every = [name for name in CONTROLS if name in wanted or f"{name}.zarr" in stores]
    return [name for name in every if name != "real"]


def check(
    settings: ConfigDict, size: int, workdir: Path, options: loop.Options, start: Start = None
) -> None:
    """UserError for what the stage `segment` would find wrong with `config.segment`."""
    model, *_ = _load(settings, size)
    if start:
        start(_folder(workdir, NETS[0]), model)
    methods.check(settings.model_name, _sized(settings, size), section="segment.")
    in_range("segment.updates", settings.updates, 1)
    in_range("segment.control_pairs", settings.control_pairs, 1)
    for name in plugins.listed(settings.controls):
        one_of("segment.controls", name, CONTROLS)
    loop.check(_own(settings, options), "segment.")
    mixture.require_there([name for name, *_ in mixture.named(settings.stores)], workdir)


def _own(settings, options):
    fields = dict(seed=settings.seed, batch=settings.batch_size, save_every=settings.save_every)
    return options._replace(**fields)


def _sized(settings, size):
    return ConfigDict({**settings.model, "resolution": size})


def _load(settings, size):
    """The network, its recipe and its one phase."""
    name, own = settings.model_name, _sized(settings, size)
    model = methods.load_model(name, own, "segment.")
    if model.predict is None or "segment" not in model.steps:
        raise UserError(f"segment.model_name is {name!r}: it lacks the step `segment` or predict")
    plan = [Phase("segment", updates=settings.updates)]
    return model, methods.recipe(name, own, "segment."), plan


def train(
    settings: ConfigDict, size: int, workdir: Path, options: loop.Options, start: Start = None
) -> None:
    """Trains what is not trained yet, or goes on; options: the run's own; start: of all nets."""
    model, network, plan = _load(settings, size)
    nets = mixtures(settings, workdir)
    for name in plugins.listed(settings.controls):
        if f"vnet_{name}" not in nets and CONTROLS[name] != settings.stores:
            print(f"note: no V-Net of {name}: ingest makes its pairs, or says why not")
    for name, parts in nets.items():
        folder, pairs = _folder(workdir, name), sum(len(part.rows) for part in parts)
        done = hosts.first(checkpoint.newest(folder)) == settings.updates
        print(f"{name}: {settings.updates} updates on {pairs} pairs{' are done' * done}")
        log, scores = workdir / f"segment-{name}.jsonl", _scorer(model, workdir, size)
        place = loop.Place(log, folder, network, scores=scores, start=start)
        loop.train(model, plan, parts, place, _own(settings, options))


def _scorer(model, workdir, size):
    """What a learning curve shows: a state's mean Dice on the run's own split `validation`."""
    path = workdir / "real.zarr"
    pairs = store.Store(path) if store.exists(path) else None
    rows = pairs.rows("validation") if pairs else ()
    if not len(rows):
        return None
    rows = rows[np.linspace(0, len(rows) - 1, min(CURVE_PAIRS, len(rows))).astype(int)]
    bits = pairs.load(rows)
    truth = store.unpack(bits, size)[..., 1]
    run = jax.jit(lambda state, x: model.predict(state, steps.unpack(x, size)[..., 0]) >= 0.5)

    def scores(state):
        masks = generate.whole_batches(functools.partial(run, state), bits, CURVE_BATCH)
        return {"selection_dice": float(np.mean(list(map(metrics.dice, masks, truth))))}

    return scores


def load(settings: ConfigDict, size: int, workdir: Path) -> dict[str, Trained]:
    """The trained networks; Unfinished where one is not, or was with other settings or pairs."""
    (model, network, plan), nets = _load(settings, size), {}
    for name, parts in mixtures(settings, workdir).items():
        folder = _folder(workdir, name)
        now = loop.recipe(plan, parts, network, settings.seed, settings.batch_size)
        before, updates = provenance.read(folder), checkpoint.newest(folder)
        if start := settings.get("init_from", ""):  # `train` has compared its sum
            now["init_from"] = (before or {}).get("init_from", start)
        if updates and before and (other := provenance.differences(before, now)):
            cure = "set it back, or delete this folder and run the stage `segment` again"
            raise Unfinished(f"{folder}: trained with another {', '.join(other)}: {cure}")
        if updates != settings.updates:
            what = f"{updates} of {settings.updates} updates"
            raise Unfinished(f"{folder}: {what}: run the stage `segment` first")
        nets[name] = Trained(model, checkpoint.read(folder, model, settings.updates), parts)
    return nets


def newest(settings: ConfigDict, size: int, workdir: Path, name: str) -> Trained:
    """The newest state of the network `name` of `choose`, whatever became of its pairs."""
    (model, network, _), folder = _load(settings, size), _folder(workdir, name)
    return methods.restore(folder, model, network, checkpoint.newest(folder))


def choose(workdir: Path, name: str = "") -> str:
    """The trained network that `name` means ("": `vnet`, or the only one), or Unfinished."""
    there = [net for net in NETS if checkpoint.newest(_folder(workdir, net))]
    if not there or name not in ("", *there):
        folder = _folder(workdir, name or NETS[0])
        what = f"here is {there[0]}: name that" if there else "run the stage `segment` first"
        raise Unfinished(f"{folder}: no checkpoint; {what}")
    return name or there[0]


def about(settings: ConfigDict, nets: dict[str, Trained], workdir: Path) -> dict[str, Any]:
    """What trained networks are made of, and how they learnt, in words for `metrics.json`."""
    shared, result = {"updates": settings.updates, "seed": settings.seed}, {}
    shared["augment"] = settings.model.get("augment", False)
    shared["init_from"] = settings.get("init_from", "")
    for name, net in nets.items():
        stores = [{"path": str(part.store.path), "pairs": len(part.rows)} for part in net.parts]
        log = logs.read(workdir / f"segment-{name}.jsonl")
        curve = [[one["step"], one["selection_dice"]] for one in log if "selection_dice" in one]
        before = [dice for step, dice in curve if step <= 0.75 * settings.updates]
        rise = curve[-1][1] - before[-1] if before else None
        learnt = {"curve": curve, "rise": rise, "converged": None if rise is None else rise <= RISE}
        result[name] = {"stores": stores, **shared, **learnt}
    return result


def begun(workdir: Path) -> bool:
    """Whether a network of this work directory has a checkpoint."""
    return checkpoint.newest(_folder(workdir, "vnet")) > 0


def _folder(workdir, name):
    return workdir / "checkpoints" / name
