"""The pictures of a run: pairs, slices, maps, interpolation, a case by every net."""

import numpy as np

from skullgen.core import files
from skullgen.data import store
from skullgen.evaluation import explore, verdict
from skullgen.generation import generate
from skullgen.report import figures
from skullgen.training.methods import Trained

VIEWS = 8  # pairs in a picture
NAMES = (
    "real_pairs.png",
    "generated_pairs.png",
    "generated_slices.png",
    "real_and_generated.png",
    "closest.png",
)


def pictures(workdir):
    """Draws what the work directory holds into its `figures/`; returns the paths written.

    Generated pairs are the first that are not empty: chosen by number, not by looks.
    """
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    for old in NAMES:
        (folder / old).unlink(missing_ok=True)
    drawn = []

    def draw(name, make, *arguments, **options):
        make(folder / name, *arguments, **options)
        drawn.append(folder / name)

    real = _pairs(workdir / "real.zarr", spread=True)
    if len(real):
        draw("real_pairs.png", figures.pair_sheet, real, title="Real pairs")
    made = _pairs(workdir / "generated.zarr", spread=False)
    if not len(made) and store.exists(workdir / "generated.zarr"):
        print("no generated pair has both a skull and a defect: none is drawn")
    if len(made):
        draw("generated_pairs.png", figures.pair_sheet, made, title="Generated pairs")
        draw("generated_slices.png", figures.slice_sheet, made[:4], title="Generated pairs")
    if len(made) and len(real):
        draw(
            "real_and_generated.png",
            figures.comparison_sheet,
            real[:4],
            made[:4],
            title="Real pairs, generated pairs",
        )
    if len(closest := _closest(workdir)):
        draw("closest.png", *closest)
    return drawn


def _closest(workdir):
    """What draws the generated skulls that lie nearest to a training one, each beside it."""
    metrics, real = workdir / "metrics.json", workdir / "real.zarr"
    quality = (files.read_json(metrics) or {}).get("quality")
    if not quality:
        return ()
    size = store.Store(real).size
    bits, captions = [], []
    for found in quality["copies"]["skull"]["closest"]:
        number, row = found["generated"], found["training"]
        bits += [
            store.Store(workdir / "generated.zarr").load([number]),
            store.Store(real).load([row]),
        ]
        captions += [
            f"generated {number}: Dice {found['dice']:.3f}",
            f"{found['name']}, pair {row}",
        ]

    def draw(path):
        title = "Closest generated skulls, each before the training skull that it is closest to"
        pairs = store.unpack(np.concatenate(bits), size)
        figures.pair_sheet(path, pairs, title=title, captions=captions)

    return (draw,)


def maps(workdir, stores, nets, settings, size, real=None):
    """Figure 3: real pairs and those of the generated `stores` (name -> path) in one map.

    nets: (model, state, parts) of nets that saw only real pairs: the first one's features are
    mapped, where it has some. settings: `config.explore`. real: `real.zarr` where None.
    """
    real, count = real or workdir / "real.zarr", (settings.pairs, settings.seed)
    drawn = [("real, train", real, ("train",)), ("real, held out", real, ("validation", "test"))]
    drawn += [(name, path, ()) for name, path in stores.items()]
    groups = [
        explore.Group(name, *explore.pick(store.Store(path), splits, *count))
        for name, path, splits in drawn
    ]

    def features(bits):
        return explore.network_features(Trained(*nets[0]), bits, size, 8)

    found = explore.maps(
        [group for group in groups if len(group[1])],
        size,
        features if nets and nets[0][0].features is not None else None,
        seed=settings.seed,
        perplexity=settings.perplexity,
        umap=settings.umap,
    )
    files.write_json(workdir / "maps.json", found)
    figures.map_sheet(workdir / "figures" / "maps.png", found)
    print(workdir / "figures" / "maps.png")


def segmentations(workdir, real, nets, threshold, size):
    """Figure 5: the test case whose defect is of the middle size, by every net and rule.

    nets: name -> (model, state, parts). Nothing is drawn without nets or a test pair.
    """
    rows = store.Store(real).rows("test")
    if not nets or not len(rows):
        return
    voxels = store.Store(real).column("voxels")[rows, 1]
    row = rows[np.argsort(voxels, kind="stable")[len(rows) // 2]]
    bits = store.Store(real).load([row])
    skull, truth = np.moveaxis(store.unpack(bits, size)[0], -1, 0)
    predict = {name: verdict.network(Trained(*net), size, 1) for name, net in nets.items()}
    predict["mean skull"] = verdict.mean_skull(
        store.Store(real).load(store.Store(real).rows("train")), size
    )
    predict["mirror image"] = verdict.mirror(size)
    found = {name: one(bits)[0] >= threshold for name, one in predict.items()}
    path = workdir / "figures" / "segmentation.png"
    figures.segmentation_sheet(path, skull, truth, found, title=f"Test pair {row}")
    print(path)


def interpolation(workdir, model, state, settings, options, channels, size):
    """Figure 4: between two real skulls, unseen where there are some; without encoder, two draws.

    settings, options: `config.explore` and `config.generate`. channels: as `generate.run`'s.
    """
    real = workdir / "real.zarr"
    real = store.Store(real)
    bits, names = explore.pick(real, ("test", "validation"), 2, settings.seed)
    if len(bits) < 2:
        bits, names = explore.pick(real, ("train",), 2, settings.seed)
    pairs = store.unpack(bits, size)
    generator = Trained(model, state)
    z = explore.ends(generator, pairs, settings.seed)
    rules = generate.rules(options, channels, real.attrs["voxel_mm"])
    ways = explore.interpolation(generator, z, settings.steps, rules)
    between = " and ".join(names) if model.encode is not None else "two draws"
    path = workdir / "figures" / "interpolation.png"
    figures.strip(
        path,
        list(zip(("linear", "spherical"), ways, strict=True)),
        title=f"Interpolation in latent space between {between}",
        ends=pairs if model.encode is not None else None,
    )
    print(path)


def _pairs(path, spread):
    """Up to `VIEWS` pairs bool [n, D, D, D, 2], spread over the store, or its first."""
    if not store.exists(path) or store.Store(path).missing():
        return np.zeros((0, 1, 1, 1, 2), bool)
    size = store.Store(path).size
    rows = store.Store(path).rows()
    if spread:  # different skulls and, since the kinds take turns, different kinds
        rows = rows[np.linspace(0, len(rows) - 1, min(VIEWS, len(rows))).astype(int)]
    pairs = store.unpack(store.Store(path).load(rows[: 4 * VIEWS]), size)
    return pairs[pairs.any(axis=(1, 2, 3)).all(axis=-1)][:VIEWS]
