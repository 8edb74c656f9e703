"""A source outside the package: boxes that lack a corner, natively too, made in no time."""

import itertools

import numpy as np

from skullgen.data import defects, grids, sources, store


def plan(size, config):
    names, kinds = [f"box_{n}" for n in range(config.skulls)], defects.kinds_of(config)
    cases = [
        sources.Case(make, (n, size, config), tuple(range(len(kinds))) * config.cuts, n)
        for n in range(config.skulls)
    ]
    return sources.Plan(cases, names, sources.assign(names, config), {}, [], kinds=kinds)


def make(number, size, config):
    box = np.zeros((size,) * 3, bool)
    box[size // 4 : -size // 4, size // 4 : -size // 4, size // 4 : -size // 4] = True
    box &= np.random.default_rng([config.seed, number]).random(box.shape) < 0.9
    turns = range(config.cuts)
    kinds = range(len(defects.kinds_of(config)))
    return [_cut(box, [config.seed, number, *draw]) for draw in itertools.product(turns, kinds)]


def _cut(box, seed):
    """Half of the box's front, less some voxels that the seed draws."""
    place, draw = np.indices(box.shape), np.random.default_rng(seed)
    side, half = draw.integers(2), len(box) // 2
    hole = box & ((place[0] < half) == side) & (place[1] >= half) & (draw.random(box.shape) < 0.9)
    native = hole.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    truth = sources._native(native, _affine(len(native)))
    return sources.Pair(store.pack(np.stack([box & ~hole, hole], -1)), _affine(len(box)), truth)


def _affine(size):
    """Of a grid whose middle is the origin."""
    affine = np.diag([grids.FIELD_MM / size] * 3 + [1.0])
    affine[:3, 3] = (1 - size) / 2 * affine[0, 0]
    return affine
