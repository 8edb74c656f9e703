"""Pictures of what a generator makes of the same latents again and again while it trains.

Collapse shows in a number: the Dice of two samples, 1 where all samples are one.
"""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from skullgen.core.types import Model, State
from skullgen.data import store
from skullgen.data.store import Store
from skullgen.evaluation import fidelity
from skullgen.generation import generate, postprocess
from skullgen.report import figures, tables
from skullgen.training import methods

PAIRS = 8  # of a sheet: the first that `generate` draws with seed 0
SHARE = 0.02  # of the time that sheets may take


def watcher(
    model: Model, real: Store, folder: Path, config: ConfigDict, clock: Callable = time.monotonic
) -> Callable[[State, str], str] | None:
    """`watch(state, phase) -> line`, for `loop.train`; None where there is nothing to see.

    Draws the sheet `<phase>-<update>.png` in `folder` each `config.preview_minutes` (0: never) or
    fewer, so that sheets take 2 % of the time; the line is "" where it draws none.
    """
    pause = 60 * config.preview_minutes
    if not pause or model.decode is None or model.latents is None:
        return None
    rules = postprocess.Rules(methods.channels(config), config.generate.threshold)
    rows = real.rows("train")
    rows = rows[np.linspace(0, len(rows) - 1, min(PAIRS, len(rows))).astype(int)]
    truth, draws, due = alike(real.load(rows), real.size), {}, clock() + pause

    def watch(state, phase):
        nonlocal due
        start = clock()
        if start < due:
            return ""
        decode = (model.drafts or {}).get(phase, model.decode)
        if decode not in draws:
            draws[decode] = generate.drawer(model._replace(decode=decode), rules)
        bits, step = _draw(draws[decode], state), int(state.step)
        dices = [
            f"{name}s {tables.number(dice)} (real {tables.number(truth[name])})"
            for name, dice in alike(bits, real.size).items()
        ]
        says = f"{phase}, update {step}: Dice of two samples, 1 is collapse: {', '.join(dices)}"
        path = folder / f"{phase}-{step:06d}.png"
        figures.pair_sheet(path, store.unpack(bits, real.size), says)
        end = clock()
        due = end + max(pause, (end - start) / SHARE)
        return says

    return watch


def _draw(draw, state):
    """The first packed pairs, few at a time: memory is the training's."""
    devices = jax.local_device_count()
    index = np.arange(-(-PAIRS // devices) * devices).reshape(-1, devices, 1)
    return np.concatenate([np.asarray(draw(state, part)[0])[:, 0] for part in index])[:PAIRS]


def alike(bits: store.Packed, size: int) -> dict[str, float | None]:
    """Mean Dice of two different pairs, of `skull` and `defect`; None where no two have any."""
    dice, some = fidelity.dice_matrix(bits, bits, size), store.voxels(bits) > 0
    means = {}
    for channel, name in enumerate(fidelity.CHANNELS):
        both = some[:, None, channel] & some[None, :, channel] & ~np.eye(len(bits), dtype=bool)
        means[name] = float(dice[channel][both].mean()) if both.any() else None
    return means
