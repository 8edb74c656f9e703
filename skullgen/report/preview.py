"""What a generator makes of the same latents again and again while it trains.

A sheet every few minutes shows collapse as it comes; one number tells it, too: the Dice of two
samples, which is that of two real pairs where all is well, and 1 where all samples are one.
"""

import time

import jax
import numpy as np
from PIL import Image

from skullgen.core import files
from skullgen.data import store
from skullgen.evaluation import fidelity
from skullgen.generation import generate, postprocess
from skullgen.report import figures

PAIRS = 8  # of a sheet: the first that `generate` draws with seed 0
SHEETS = 64  # kept at most; then every second one goes
SIDE = 64  # voxels a side of what is drawn, at most
SHARE = 0.02  # of the time that sheets may take


def watcher(model, real, folder, *, minutes, channels, threshold, clock=time.monotonic):
    """`watch(state, phase) -> records`, for `train.train`; None where there is nothing to see.

    real: the store that is trained on. folder: of the sheets, `<phase>-<update>.png` and
    `latest.png`. minutes: between two sheets, more where they would take more than 2 % of the
    time; 0: none. channels, threshold: as of `generate.sampler`. clock: in seconds.

    A record has the sheet (uint8 [H, W, 3]), the mean Dice of two samples' skulls and defects
    (those that have one), and `says`, a line of text. No record where none is due.
    """
    if not minutes or model.decode is None or model.latents is None:
        return None
    size, rows = store.Store(real).size, store.Store(real).rows("train")
    rows = rows[np.linspace(0, len(rows) - 1, min(PAIRS, len(rows))).astype(int)]
    truth, draws, due = alike(store.Store(real).load(rows), size), {}, clock() + 60 * minutes

    def watch(state, phase):
        nonlocal due
        start = clock()
        if start < due:
            return []
        decode = (model.drafts or {}).get(phase, model.decode)
        if decode not in draws:
            rules = postprocess.Rules(channels, threshold)
            draws[decode] = generate.drawer(model._replace(decode=decode), rules)
        index = np.arange(-(-PAIRS // jax.local_device_count()) * jax.local_device_count())
        # Few at a time: memory is the training's.
        parts = index.reshape(-1, jax.local_device_count(), 1)
        bits = [np.asarray(draws[decode](state, part)[0])[:, 0] for part in parts]
        record = _sheet(folder, np.concatenate(bits)[:PAIRS], size, phase, int(state.step), truth)
        end = clock()
        due = end + max(60 * minutes, (end - start) / SHARE)
        return [record]

    return watch


def alike(bits, size):
    """Mean Dice of two different pairs, of `skull` and `defect`; None where no two have any.

    bits: packed pairs [n, bytes] of `size` voxels a side.
    """
    dice, some = fidelity.dice_matrix(bits, bits, size), store.voxels(bits) > 0
    found = {}
    for channel, name in enumerate(fidelity.CHANNELS):
        both = some[:, None, channel] & some[None, :, channel] & ~np.eye(len(bits), dtype=bool)
        found[name] = float(dice[channel][both].mean()) if both.any() else None
    return found


def _sheet(folder, bits, size, phase, step, truth):
    """Draws a sheet of packed pairs and makes its record."""
    found, empty = alike(bits, size), int((store.voxels(bits)[:, 1] == 0).sum())
    words = [
        f"{name}s {_number(found[name])} (real {_number(truth[name])})"
        for name in fidelity.CHANNELS
    ]
    says = f"{phase}, update {step}: Dice of two samples, 1 is collapse: {', '.join(words)}"
    says += f"; {empty} of {len(bits)} have no defect" * bool(empty)
    pairs, factor = store.unpack(bits, size), -(-size // SIDE)
    if factor > 1:
        pairs = np.pad(pairs, ((0, 0), *((0, -size % factor),) * 3, (0, 0)))
        side = pairs.shape[1] // factor
        pairs = pairs.reshape(-1, *(side, factor) * 3, 2).mean((2, 4, 6), dtype=np.float32)
    path = folder / f"{phase}-{step:06d}.png"
    figures.pair_sheet(path, pairs, title=says)
    files.replace(folder / "latest.png", path.read_bytes())
    kept = sorted(folder.glob("*-*.png"), key=lambda path: int(path.stem.rpartition("-")[2]))
    for old in kept[1:-1:2] if len(kept) > SHEETS else ():
        old.unlink()
    values = {f"samples_dice_{name}": value for name, value in found.items() if value is not None}
    picture = np.asarray(Image.open(path).convert("RGB"))
    return {"phase": phase, "step": step, "sheet": picture, "says": says, **values}


def _number(value):
    return "none" if value is None else f"{value:.3f}"
