"""What a generator makes of the same latents again and again while it trains.

Collapse shows in a number: the Dice of two samples, 1 where all samples are one.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from skullgen.core import files
from skullgen.core.types import Model, State
from skullgen.data import store
from skullgen.data.store import Store
from skullgen.evaluation import fidelity
from skullgen.generation import generate, postprocess
from skullgen.report import figures, tables
from skullgen.training import methods

PAIRS = 8  # of a sheet: the first that `generate` draws with seed 0
SHARE = 0.02  # of the time that sheets may take
Watch = Callable[[State, str], list[dict[str, Any]]]


def watcher(
    model: Model, real: Store, folder: Path, config: ConfigDict, clock: Callable = time.monotonic
) -> Watch | None:
    """`watch(state, phase) -> records`, for `loop.train`; None where there is nothing to see.

    folder: of the sheets, `<phase>-<update>.png` and `latest.png`, one each
    `config.preview_minutes` (0: none) or fewer, so that they take 2 % of the time. A record has the
    sheet (uint8 [H, W, 3]), the mean Dice of two samples, and `says`, a line of text.
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
            return []
        decode = (model.drafts or {}).get(phase, model.decode)
        if decode not in draws:
            draws[decode] = generate.drawer(model._replace(decode=decode), rules)
        bits, step = _draw(draws[decode], state), int(state.step)
        dices, path = alike(bits, real.size), folder / f"{phase}-{step:06d}.png"
        says = f"{phase}, update {step}: {_words(dices, truth)}"
        figures.pair_sheet(path, store.unpack(bits, real.size), says)
        files.replace(folder / "latest.png", path.read_bytes())
        picture, end = np.asarray(Image.open(path).convert("RGB")), clock()
        due = end + max(pause, (end - start) / SHARE)
        values = {f"samples_dice_{name}": dice for name, dice in dices.items() if dice is not None}
        return [{"phase": phase, "step": step, "sheet": picture, "says": says, **values}]

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


def _words(dices, truth):
    number = tables.number
    words = [f"{name}s {number(dice)} (real {number(truth[name])})" for name, dice in dices.items()]
    return f"Dice of two samples, 1 is collapse: {', '.join(words)}"
