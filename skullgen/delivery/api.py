"""A trained run from Python: `run = skullgen.load("runs/vae_wgan")`; `run.sample(seed=0, count=8)`.

Shapes: `n` pairs, `D` voxels a side, `Z` latents. A pair is [D, D, D, 2], RAS: channel 0 the
defective skull, 1 its defect (the implant).
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import numbers
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32
from ml_collections import ConfigDict

from skullgen.core.errors import UserError, one_of
from skullgen.data import measures, store
from skullgen.delivery import predict, release
from skullgen.evaluation import explore, judges
from skullgen.generation import generate, postprocess
from skullgen.models import labels, steps
from skullgen.training import checkpoint, methods

BATCH = 8  # pairs that are encoded or decoded at once
_USER = {}  # `id`: of the process that used jax first

Pairs = Bool[np.ndarray, "n D D D 2"]
Latents = Float32[np.ndarray, "n Z"]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained run, as `load` gives it; its weights are read once, when they are first needed."""

    folder: Path  # its work directory, or that of its weights
    config: ConfigDict = dataclasses.field(repr=False)

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What it learnt from: `voxel_mm`, `kinds`, `licence`, `trained_on`."""
        return release.about(self.folder, self.config.get("model_name") or "")

    def __getstate__(self):  # a worker that is spawned reads the weights itself
        return {"folder": self.folder, "config": self.config}

    @functools.cached_property
    def _generator(self):
        return methods.generator(self.config, self.folder)

    @functools.cached_property
    def _sampler(self):
        return functools.lru_cache(1)(functools.partial(generate.sampler, self._generator))

    @functools.cached_property
    def _designer(self):
        return functools.cache(functools.partial(predict.designer, self.config, self.folder))

    @property
    def _rules(self):
        channels = methods.channels(self.config)
        return generate.rules(self.config.generate, channels, self.about["voxel_mm"])

    def sample(
        self,
        seed: int = 0,
        count: int = 8,
        first: int = 0,
        *,
        kind: str | None = None,
        side: str | None = None,
        area_cm2: float | None = None,
    ) -> Pairs:
        """Samples `first` to `first + count` of a seed, whatever is drawn with them.

        Bit-equal to those that the stage `generate` writes for this seed (of chosen ones the column
        `sample` has the number), on one kind and number of devices and one
        `run.config.generate.batch_size`; a smaller one takes less memory.

        kind, side (`left`, `both`, `right`), area_cm2: what a conditional model is asked for.
        """
        _require_range(seed=seed, first=first)
        _require_range(count=count, least=1)
        _require_threads()
        rules, batch = self._rules, self.config.generate.batch_size
        draw = self._sampler(rules._replace(dust=0), batch)  # dust is removed later
        asked = self._asked(kind, side, area_cm2)
        draw = functools.partial(draw, seed=seed, asked=asked)
        block = batch * jax.local_device_count()
        (_, bits, *_), *_ = generate.batches(draw, [range(count)], first, block)
        size = self.config.model.resolution
        return store.unpack(postprocess.clean(bits, size, rules), size)

    def _asked(self, kind, side, area_cm2):
        wanted = {"kind": kind, "side": side, "area_cm2": area_cm2}
        if set(wanted.values()) - {None} and not self._generator.model.conditional:
            names = ", ".join(name for name, value in wanted.items() if value is not None)
            raise UserError(f"{names}: this model was trained without labels (model.condition)")
        kinds = self.about["kinds"]
        asked = labels.ANY if kind is None else generate.asked(one_of("kind", kind, kinds), kinds)
        if side is not None:
            asked = asked._replace(
                side=measures.SIDES.index(one_of("side", side, measures.SIDES)) - 1
            )
        if area_cm2 is not None:
            least, most = labels.areas(self._generator.state)
            number = isinstance(area_cm2, numbers.Real) and not isinstance(area_cm2, bool)
            if not number or not 0.9 * least <= area_cm2 <= 1.1 * most:
                what = f"a number, {least:.0f} to {most:.0f}: the model has seen no others"
                raise UserError(f"area_cm2 is {area_cm2!r}: it must be {what}")
            asked = asked._replace(area=float(np.log(area_cm2 / measures.AREA_CM2)))
        return asked

    def stream(self, seed: int = 0, batch: int = 8) -> Iterator[Pairs]:
        """Endless batches: batch k is `sample(seed, batch, k * batch)`.

        A thread makes pairs ahead, and ends when the iterator is closed. In a data loader's
        workers, to be spawned, give each a seed of its own (PyTorch's `get_worker_info().id`). On a
        GPU that another framework uses, set XLA_PYTHON_CLIENT_PREALLOCATE to false.
        """
        _require_range(batch=batch, least=1)
        block, ready = self.config.generate.batch_size * jax.local_device_count(), []
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.sample, seed, block)
            for first in itertools.count(block, block):
                pairs, ahead = ahead.result(), pool.submit(self.sample, seed, block, first)
                ready.extend(pairs)
                while len(ready) >= batch:
                    yield np.stack(ready[:batch])
                    del ready[:batch]

    def encode(self, pairs: Any) -> Latents:
        """Latents z of pairs [n, D, D, D, 2] of 0 and 1: the mean of the posterior."""
        _require_threads()
        (model, state, _), size = self._generator, self.config.model.resolution
        if model.encode is None:
            raise UserError(f"model_name is {self.config.model_name!r}: it has no encode")
        pairs = _shaped("pairs", pairs, size, size, size, 2)
        if not ((pairs == 0) | (pairs == 1)).all():
            raise UserError("pairs hold other values than 0 and 1: binarise them first")
        encode = jax.jit(model.encode)

        def run(bits):
            return encode(state, steps.unpack(jnp.asarray(bits), size).astype(jnp.float32))

        return generate.whole_batches(run, store.pack(pairs.astype(bool)), BATCH)

    def decode(self, z: Any) -> Pairs:
        """Pairs of latents z [n, Z], as those of `sample`."""
        z = self._latents(z)
        run = functools.partial(jax.jit(self._generator.model.decode), self._generator.state)
        return generate.pairs(generate.whole_batches(run, z, BATCH), self._rules)

    def _latents(self, z):
        _require_threads()
        model, state, _ = self._generator
        width = jax.eval_shape(model.latents, state, jax.random.key(0)[None]).shape[1]
        z = _shaped("z", z, width)
        if not (abs(z) < 1e30).all():
            raise UserError("z holds a number that is not finite")
        return z.astype(np.float32)

    def interpolate(self, a: Any, b: Any, steps: int = 6) -> Pairs:
        """Pairs on the spherical way between two, each a pair [D, D, D, 2] or a latent [Z]."""
        _require_range(steps=steps, least=1)
        ends = [(self.encode if np.ndim(x) == 4 else self._latents)([x])[0] for x in (a, b)]
        return self.decode(explore.spherical(*ends, np.linspace(0, 1, steps)))

    def predict(self, path: str | Path, net: str = "", **settings: Any) -> predict.Implant:
        """The implant of a defective skull in a file by `predict.SETTINGS`; research only."""
        _require_threads()
        for name in settings:
            one_of("the setting", name, predict.SETTINGS)
        return predict.predict(self._designer(net), path, ConfigDict(predict.SETTINGS | settings))


def load(where: str | Path) -> Run:
    """The trained run in a work directory, in a release's folder, or of packaged weights (`demo`).

    A work directory in which nothing is trained means its `generate.weights`. The config's model is
    imported: load no stranger's folder beside code of theirs.
    """
    _require_threads()
    folder = release.place(where)
    config = methods.load_config(folder)
    if not _begun(folder, config) and config.get("generate"):
        config, folder = release.chosen(config, folder)
    if not _begun(folder, config):
        raise UserError(f"{folder}: no checkpoint; run the stage `train` first")
    return Run(folder, config)


def _begun(folder, config):
    names = filter(None, (config.get("model_name"), *judges.NETS))
    return any(checkpoint.newest(folder / "checkpoints" / name) for name in names)


def _require_threads():
    """UserError in a fork of a process that used jax: its threads are not here, so jax hangs."""
    if _USER.setdefault("id", os.getpid()) != os.getpid():
        raise UserError(
            "jax was used before this process was forked, and would hang in it: give the data "
            "loader num_workers=0, or multiprocessing_context='spawn'"
        )


def _require_range(least=0, **numbers):
    for name, value in numbers.items():
        if not least <= value < 2**31:
            raise UserError(f"{name} is {value!r}: it must be {least} to 2^31 - 1")


def _shaped(name, values, *shape):
    """`values` as numbers [n, *shape], n of 1 or more."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf" or values.shape[1:] != shape or not len(values):
        what, wanted = f"{values.dtype} of shape {list(values.shape)}", ", ".join(map(str, shape))
        raise UserError(f"{name} are {what}: they must be numbers [n, {wanted}]")
    return values
