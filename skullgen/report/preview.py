"""Pictures of what a generator makes of the same latents again and again while it trains."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from skullgen.core.types import Model, State
from skullgen.data import store
from skullgen.generation import generate, postprocess
from skullgen.report import figures
from skullgen.training import methods, parallel

PAIRS = 8  # of a sheet: the first that `generate` draws with seed 0
SHARE = 0.02  # of the time that sheets may take


def watcher(
    model: Model, folder: Path, config: ConfigDict, clock: Callable = time.monotonic
) -> Callable[[State, str], None] | None:
    """`watch(state, phase)`, for `loop.train`; None where there is nothing to see.

    Draws the sheet `<phase>-<update>.png` in `folder` each `config.preview_minutes` (0: never) or
    fewer, so that sheets take 2 % of the time.
    """
    pause = 60 * config.preview_minutes
    if not pause or model.decode is None or model.latents is None:
        return None
    rules = postprocess.Rules(methods.channels(config), config.generate.threshold)
    draws, due = {}, clock() + pause

    def watch(state, phase):
        nonlocal due
        start = clock()
        if start < due:
            return
        decode = (model.drafts or {}).get(phase, model.decode)
        if decode not in draws:
            draws[decode] = generate.drawer(model._replace(decode=decode), rules)
        pairs = store.unpack(
            _draw(draws[decode], parallel.resident(state)), config.model.resolution
        )
        name = f"{phase}-{int(state.step):06d}"
        figures.pair_sheet(folder / f"{name}.png", pairs, f"Samples, {name}")
        end = clock()
        due = end + max(pause, (end - start) / SHARE)

    return watch


def _draw(draw, state):
    """The first packed pairs, few at a time: memory is the training's."""
    devices = jax.local_device_count()
    index = np.arange(-(-PAIRS // devices) * devices).reshape(-1, devices, 1)
    return np.concatenate([np.asarray(draw(state, part)[0])[:, 0] for part in index])[:PAIRS]
