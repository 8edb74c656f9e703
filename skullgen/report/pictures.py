"""The pictures of a run: pairs, interpolation, a case by every net; and its maps."""

import functools
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import files
from skullgen.data import store
from skullgen.data.store import Store
from skullgen.evaluation import explore, metrics, verdict
from skullgen.generation import generate
from skullgen.report import figures
from skullgen.training import methods
from skullgen.training.methods import Trained

VIEWS = 8  # pairs in a picture


def pictures(workdir: Path) -> None:
    """Draws what the work directory holds into its `figures/`."""
    paths = [workdir / f"{name}.zarr" for name in ("real", "generated")]
    stores = [store.Store(path) if store.exists(path) else None for path in paths]
    sheets = {f"{one.path.stem}_pairs": _pairs(one) for one in stores if one and not one.missing()}
    quality = (files.read_json(workdir / "metrics.json") or {}).get("quality")
    if quality and all(stores):
        sheets["closest"] = _closest(*stores, quality["copies"]["skull"]["closest"])
    for name, sheet in sheets.items():
        if len(sheet[0]):
            figures.pair_sheet(workdir / "figures" / f"{name}.png", *sheet)


def _pairs(pairs):
    """Up to `VIEWS` pairs that are not empty, chosen by number, not by looks, and a title."""
    rows = pairs.rows()
    if pairs.path.stem == "real":  # different skulls and, since the kinds take turns, kinds
        rows = rows[np.linspace(0, len(rows) - 1, min(VIEWS, len(rows))).astype(int)]
    masks = store.unpack(pairs.load(rows[: 4 * VIEWS]), pairs.size)
    masks = masks[masks.any(axis=(1, 2, 3)).all(axis=-1)][:VIEWS]
    return masks, f"{pairs.path.stem.title()} pairs"


def _closest(real, made, rows):
    """Generated pairs, each before the training pair that it is closest to, title and captions."""
    bits, captions = [], []
    for row in rows:
        bits += [made.load([row["generated"]]), real.load([row["training"]])]
        captions += [f"generated {row['generated']}: Dice {row['dice']:.3f}"]
        captions += [f"{row['name']}, pair {row['training']}"]
    title = "Closest generated skulls, each before the training skull that it is closest to"
    return store.unpack(np.concatenate(bits), real.size), title, captions


def maps(
    workdir: Path, real: Store, stores: dict[str, Store], nets: list[Trained], settings: ConfigDict
) -> None:
    """Figure 3 as `maps.json`: real and generated pairs, by the features of the first of `nets`."""
    groups = [("real, train", real, ("train",)), ("real, held out", real, ("validation", "test"))]
    groups += [(name, pairs, ()) for name, pairs in stores.items()]
    groups = [
        explore.Group(name, *explore.pick(pairs, splits, settings.pairs, settings.seed))
        for name, pairs, splits in groups
    ]
    groups, features = [group for group in groups if len(group.bits)], None
    if nets and nets[0].model.features is not None:
        features = functools.partial(explore.network_features, nets[0], size=real.size, batch=8)
    options = {name: settings[name] for name in ("seed", "perplexity", "umap")}
    places = explore.maps(groups, real.size, features, **options)
    files.write_json(workdir / "maps.json", places)


def segmentations(workdir: Path, real: Store, nets: dict[str, Trained], threshold: float) -> None:
    """Figure 5: the test case whose defect is of the middle size, by every net and rule."""
    rows = real.rows("test")
    if not nets or not len(rows):
        return
    voxels = real.column("voxels")[rows, 1]
    row = int(rows[np.argsort(voxels, kind="stable")[len(rows) // 2]])
    bits = real.load([row])
    skull, truth = np.moveaxis(store.unpack(bits, real.size)[0], -1, 0)
    predict = {name: verdict.network(net, real.size, 1) for name, net in nets.items()}
    predict["mean skull"] = verdict.mean_skull(real.load(real.rows("train")), real.size)
    predict["mirror image"] = verdict.mirror(real.size)
    implants, captions = [truth], ["the true implant"]
    for name, one in predict.items():
        implants.append(one(bits)[0] >= threshold)
        captions.append(f"{name}: Dice {metrics.dice(implants[-1], truth):.3f}")
    pairs = np.stack([np.stack([skull, implant], -1) for implant in implants])
    path = workdir / "figures" / "segmentation.png"
    figures.pair_sheet(path, pairs, f"Test pair {row}", captions)


def interpolation(workdir: Path, real: Store, net: Trained, config: ConfigDict) -> None:
    """Figure 4: between two real skulls, best unseen ones; without an encoder, between draws."""
    settings = config.explore
    bits, names = explore.pick(real, ("test", "validation"), 2, settings.seed)
    if len(bits) < 2:
        bits, names = explore.pick(real, ("train",), 2, settings.seed)
    ends = store.unpack(bits, real.size)
    rules = generate.rules(config.generate, methods.channels(config), real.attrs["voxel_mm"])
    z = explore.ends(net, ends, settings.seed)
    ways = explore.interpolation(net, z, settings.steps, rules)
    between = "two draws" if net.model.encode is None else " and ".join(names)
    path, title = workdir / "figures" / "interpolation.png", f"Between {between}, in latent space"
    figures.strip(path, dict(zip(("linear", "spherical"), ways, strict=True)), title)
