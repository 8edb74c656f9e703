"""The networks that judge: V-Nets trained by the one loop on any mixture of stores (section 5).

Two of a kind: `vnet`, on `config.segment.stores`, and its yardstick `vnet_real`, on the run's own
real training pairs. settings: an experiment's `config.segment`; size: `D`, voxels a side.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from skullgen.core import hosts, provenance
from skullgen.core.errors import UserError, in_range
from skullgen.core.types import Phase
from skullgen.data import mixture, store
from skullgen.training import checkpoint, loop, methods
from skullgen.training.methods import Trained

REAL = "real.zarr:train:all"
NETS = ("vnet", "vnet_real")


class Unfinished(UserError):
    """A network that is not trained to its end, or not on these pairs."""


def mixtures(settings: ConfigDict, workdir: Path) -> dict[str, list[mixture.Part]]:
    """The pairs of each network, by its name; no stores means the run's `generated.zarr`."""
    if not settings.stores:
        store.Store(workdir / "generated.zarr").require_whole("generate")
    nets = {"vnet": settings.stores or "generated.zarr:all:all"}
    if settings.reference and settings.stores != REAL:
        nets["vnet_real"] = REAL
    return {name: mixture.parts(stores, workdir, settings.seed) for name, stores in nets.items()}


def check(settings: ConfigDict, size: int, workdir: Path, options: loop.Options) -> None:
    """UserError for what the stage `segment` would find wrong with `config.segment`."""
    _load(settings, size)
    methods.check(settings.model_name, _sized(settings, size), size, section="segment.")
    in_range("segment.updates", settings.updates, 1)
    in_range("segment.fresh", settings.fresh, 0)
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


def train(settings: ConfigDict, size: int, workdir: Path, options: loop.Options) -> None:
    """Trains what is not trained yet, or goes on; options: the run's own."""
    (model, network, plan), board = _load(settings, size), options.tensorboard
    for name, parts in mixtures(settings, workdir).items():
        folder, pairs = _folder(workdir, name), sum(len(part.rows) for part in parts)
        done = hosts.first(checkpoint.newest(folder)) == settings.updates
        print(f"{name}: {settings.updates} updates on {pairs} pairs{' are done' * done}")
        place = loop.Place(workdir / f"segment-{name}.jsonl", folder, network)
        own = _own(settings, options)._replace(tensorboard=board and board / name)
        loop.train(model, plan, parts, place, own)


def load(settings: ConfigDict, size: int, workdir: Path) -> dict[str, Trained]:
    """The trained networks; Unfinished where one is not, or was with other settings or pairs."""
    (model, network, plan), nets = _load(settings, size), {}
    for name, parts in mixtures(settings, workdir).items():
        folder = _folder(workdir, name)
        now = loop.recipe(plan, parts, network, settings.seed, settings.batch_size)
        before, updates = provenance.read(folder), checkpoint.newest(folder)
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


def about(settings: ConfigDict, nets: dict[str, Trained]) -> dict[str, Any]:
    """What trained networks are made of, in words for `metrics.json`."""
    shared, result = {"updates": settings.updates, "seed": settings.seed}, {}
    shared["augment"] = settings.model.get("augment", False)
    for name, net in nets.items():
        stores = [{"path": str(part.store.path), "pairs": len(part.rows)} for part in net.parts]
        result[name] = {"stores": stores, **shared}
    return result


def begun(workdir: Path) -> bool:
    """Whether a network of this work directory has a checkpoint."""
    return checkpoint.newest(_folder(workdir, "vnet")) > 0


def _folder(workdir, name):
    return workdir / "checkpoints" / name
