"""One skull under several names: no copy of a training skull may be tested on."""

import hashlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import jobs
from skullgen.core.errors import UserError
from skullgen.data import store, volumes
from skullgen.data.sources import Plan, Skull


def together(plan: Plan, config: ConfigDict, workers: int) -> Plan:
    """The plan with skulls of equal voxels in one split, and a line about them.

    UserError where the config names them in several; where the source's own folders do, a warning.
    """
    groups = {}
    for name, digest in _digests(plan.skulls, config, workers).items():
        groups.setdefault(digest, []).append(name)
    groups = [sorted(names) for digest, names in groups.items() if digest and len(names) > 1]
    if not groups:
        return plan
    lines, split = [], dict(plan.split)
    for names in groups:
        places = {store.SPLITS[split[name]]: name for name in names}
        if len(places) > 1 and (plan.settled or config.test or config.validation):
            which = " and ".join(f"{name} of split {place}" for place, name in places.items())
            line = f"{which} are the same skull, voxel by voxel"
            if not plan.settled:
                cure = "put both into one (data.test, data.validation), or remove one"
                raise UserError(f"{line}: {cure}")
            lines.append(f"warning: {line}: what is tested on it says little")
        else:
            split |= dict.fromkeys(names, split[names[0]])
    first, more = ", ".join(min(groups)), f" and {len(groups) - 1} more" * (len(groups) > 1)
    lines.append(f"the same skull under several names (equal voxels): {first}{more}")
    return plan._replace(split=split, problems=[*plan.problems, *lines])


def _digests(skulls, config, workers):
    """The digests of those skulls' voxels that others might equal: whose files are of one shape."""
    shapes = {}
    for skull in skulls:
        paths = skull.argument if isinstance(skull.argument, tuple) else (skull.argument,)
        if isinstance(paths[0], Path):
            shapes.setdefault(_shape(paths[0]), []).append(skull)
    some = [skull for same in shapes.values() if len(same) > 1 for skull in same]
    if not some:
        return {}
    answers = jobs.ordered(digest, ((skull, config) for skull in some), jobs.workers(workers))
    digests = {}
    with jobs.progress(len(some), 0, "compare", "skull") as bar:
        for skull, answer in zip(some, answers, strict=True):
            digests[skull.name] = answer
            bar.update()
    return digests


def _shape(path):
    """The sizes of a file's grid, in any order; () where it cannot be read, which its case says."""
    try:
        return tuple(sorted(volumes.describe(path).shape))
    except UserError:
        return ()


def digest(skull: Skull, config: ConfigDict) -> str:
    """SHA-256 of a skull's voxels in RAS order, whatever its file; "" where it cannot be read."""
    try:
        bone = skull.read(skull.argument, config).data
    except UserError:
        return ""
    sums = hashlib.sha256(repr(bone.shape).encode())
    for plane in bone:
        sums.update(np.packbits(plane).tobytes())
    return sums.hexdigest()
