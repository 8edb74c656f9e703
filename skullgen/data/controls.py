"""What generated pairs must beat: pairs of the run's own skulls that need no network.

`fresh`: the training skulls cut anew. `transplants`: the training pairs' own defects, carried onto
them. `phantoms`: of no patient at all. `ceiling`: fresh defects in the test skulls, too.
"""

import math

import numpy as np
from ml_collections import ConfigDict

from skullgen.core import provenance
from skullgen.core.errors import UserError
from skullgen.data import defects, phantom, sources, store, transplant
from skullgen.data.sources import Case, Pair, Plan, Skull
from skullgen.data.transplant import Donor

SPLITS = {"fresh": (0,), "transplants": (0,), "ceiling": (0, 2)}  # whose skulls each is made of


class Impossible(UserError):
    """A control that these pairs give nothing to make of."""


def plan(
    name: str, source: Plan, real: store.Store, count: int, config: ConfigDict
) -> tuple[Plan, provenance.Recipe]:
    """The cases of a control of about `count` pairs, and what determines it beside `source`.

    Raises Impossible.
    """
    if name == "phantoms":
        return _phantoms(real.size, count, config), {"name": name, "pairs": count}
    skulls = [n for n, each in enumerate(source.names) if source.split[each] in SPLITS[name]]
    if not source.skulls:
        raise Impossible(f"no {name}: data.source={config.source} gives no whole skulls to cut")
    about, size = {"name": name, "pairs": count}, real.size
    if name == "transplants":
        about["donors"] = provenance.digest(real.recipe)
        cases = _transplants(source, skulls, real, count, config)
        return source._replace(cases=cases, kinds=tuple(real.attrs["kinds"])), about
    kinds_of = defects.kinds_of(config)  # pairs that are cut already may have another
    turns = math.ceil(count / (len(skulls) * len(kinds_of)))
    numbers = range(config.cuts, config.cuts + turns)  # those after the real pairs'
    kinds = tuple(range(len(kinds_of))) * turns
    cases = [
        Case(sources.cut_skull, (source.skulls[n], numbers, size, config), kinds, n) for n in skulls
    ]
    return source._replace(cases=cases, kinds=kinds_of), about


def _phantoms(size, count, config):
    """Varied phantoms, each cut once into each kind; all are of the split `train`."""
    config = config.copy_and_resolve_references()
    skulls = math.ceil(count / len(defects.kinds_of(config)))
    with config.unlocked():
        config.update(skulls=skulls, cuts=1, test="", validation="", folds=0, fold=0)
        config.update(test_fraction=0.0, validation_fraction=0.0)
    return sources.phantoms("varied", phantom.VARIED, size, config)


def _transplants(source, skulls, real, count, config):
    """Every skull gets as many defects, drawn without replacement while there are others."""
    rows, frames = real.rows("train"), real.column("affine")
    donors = {row: found for row in rows.tolist() if (found := _donor(real, row, frames[row]))}
    if not donors:
        raise Impossible(f"no transplants: no defect of {real.path} is in the vault, to be carried")
    rows, many, cases = np.array(list(donors)), math.ceil(count / len(skulls)), []
    for number in skulls:
        draw = np.random.default_rng([config.seed, number])
        turns = [draw.permutation(rows) for _ in range(math.ceil(many / len(rows)))]
        rows_of_skull = np.concatenate(turns)[:many]
        own = [donors[row] for row in rows_of_skull.tolist()]
        kinds = tuple(real.column("kind")[rows_of_skull].tolist())
        cases.append(Case(carry, (source.skulls[number], own, real.size, config), kinds, number))
    return cases


def _donor(real, row, frame):
    """The donor that a pair is, by its native implant where it has one; None below the vault."""
    if native := real.native(row):
        voxels, affine = np.argwhere(native.box()) + native.origin, native.affine
    else:
        voxels = np.argwhere(store.unpack(real.load([row])[0], real.size)[..., 1])
        affine = frame
    try:
        return transplant.donor(voxels, affine, frame, real.size)
    except UserError:
        return None


def carry(skull: Skull, donors: list[Donor], size: int, config: ConfigDict) -> list[Pair]:
    """Pairs of a skull, each with the defect of a donor; one that vanishes is carried again."""
    with sources.host(skull, size, config) as own:
        vault = transplant.vault(*own.skull, own.frame)
        return [_carry(own, vault, donor, place, config) for place, donor in enumerate(donors)]


def _carry(own, vault, donor, place, config):
    for attempt in range(8):
        seed = sources.seed(config.seed, own.name, "transplant", place, attempt)
        piece = transplant.transplant(vault, donor, seed)
        if pair := own.pair(piece, config.threshold):
            return pair
    what = f"defects vanish at {len(own.share)}^3"
    raise UserError(f"{what}: lower data.threshold ({config.threshold})")
