"""The pictures of a run: generated pairs beside real ones, slices, loss curves."""

import numpy as np

from skullgen import figures, logs, store

VIEWS = 8  # pairs in a picture
NAMES = (
    "real_pairs.png",
    "generated_pairs.png",
    "generated_slices.png",
    "real_and_generated.png",
    "losses.png",
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
    if not len(made):
        print("no generated pair has both a skull and a defect: none is drawn")
    else:
        draw("generated_pairs.png", figures.pair_sheet, made, title="Generated pairs")
        draw("generated_slices.png", figures.slice_sheet, made[:4], title="Generated pairs")
        draw(
            "real_and_generated.png",
            figures.comparison_sheet,
            real[:4],
            made[:4],
            title="Real pairs, generated pairs",
        )
    records = logs.read(workdir / "train.jsonl")
    if records:
        draw("losses.png", figures.loss_curves, records, title="Training")
    return drawn


def _pairs(path, spread):
    """Up to `VIEWS` pairs bool [n, D, D, D, 2], spread over the store, or its first."""
    if store.recipe(path) is None or store.missing(path):
        return np.zeros((0, 1, 1, 1, 2), bool)
    size = store.open_store(path)["pairs"].shape[1]
    rows = store.rows(path)
    if spread:  # different skulls and, since the kinds take turns, different kinds
        rows = rows[np.linspace(0, len(rows) - 1, min(VIEWS, len(rows))).astype(int)]
    pairs = store.unpack(store.load(path, rows[: 4 * VIEWS]), size)
    return pairs[pairs.any(axis=(1, 2, 3)).all(axis=-1)][:VIEWS]
