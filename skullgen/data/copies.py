"""One skull under several names: no copy of a training skull may be tested on."""

import hashlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import jobs
from skullgen.core.errors import UserError
from skullgen.data import headers, store
from skullgen.data.sources import Plan, Skull


def together(plan: Plan, config: ConfigDict, workers: int) -> Plan:
    """The plan with skulls of equal voxels in one split, and a line about them.

    UserError where the config names them in several, or the source's own folders do.
    """
    groups, lines, split = {}, [], dict(plan.split)
    for name, value in _digests(plan.skulls, config, workers).items():
        groups.setdefault(value or name, []).append(name)
    groups = sorted(sorted(names) for names in groups.values() if len(names) > 1)
    for names in groups:
        places = {store.SPLITS[split[name]]: name for name in names}
        if len(places) > 1 and (plan.settled or config.test or config.validation):
            which = " and ".join(f"{name} of split {place}" for place, name in places.items())
            cure = "remove one, or put both into one (data.test, data.validation)"
            raise UserError(f"{which} are the same skull, voxel by voxel: {cure}")
        split |= dict.fromkeys(names, split[names[0]])
    if groups:
        more = f" and {len(groups) - 1} more" * (len(groups) > 1)
        lines.append(f"one skull of several names (equal voxels): {', '.join(groups[0])}{more}")
    return plan._replace(split=split, problems=[*plan.problems, *lines])


def _digests(skulls, config, workers):
    """The digests, by name, of those skulls whose files have the sizes of another's."""
    shapes = {}
    for skull in skulls:
        paths = skull.argument if isinstance(skull.argument, tuple) else (skull.argument,)
        if isinstance(paths[0], Path):
            shapes.setdefault(_shape(paths[0], config), []).append(skull)
    some = [skull for same in shapes.values() if len(same) > 1 for skull in same]
    if not some:
        return {}
    tasks = ((skull, config) for skull in some)
    with jobs.progress(len(some), 0, "compare", "skull") as bar:
        answers = (bar.update() or x for x in jobs.ordered(digest, tasks, jobs.workers(workers)))
        return dict(zip((skull.name for skull in some), answers, strict=True))


def _shape(path, config):
    """The sizes of a file's grid, in any order; () where it cannot be read, which its case says."""
    try:
        return tuple(sorted(headers.describe(path, config.form, config.space).shape))
    except UserError:
        return ()


def digest(skull: Skull, config: ConfigDict) -> str:
    """SHA-256 of a skull's voxels in RAS order, whatever its file; "" where it cannot be read."""
    try:
        bone = skull.read(skull.argument, config).data
    except UserError:
        return ""
    sums = hashlib.sha256(repr(bone.shape).encode())
    for plane in bone.T:  # as most files have it: x fastest
        sums.update(np.packbits(plane))
    return sums.hexdigest()
