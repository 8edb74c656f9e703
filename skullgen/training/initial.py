"""Weights to start from (`init_from`): what another network has, by role, name and shape."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from skullgen.core import provenance
from skullgen.core.errors import UserError
from skullgen.core.types import Model, State
from skullgen.training import checkpoint


class Start(NamedTuple):
    """What a network begins with, by its place in `State.nets`; the rest is as `init` makes it."""

    arrays: Mapping[str, np.ndarray]
    sum: str  # SHA-256 of them and their names, for the recipe
    line: str  # what is taken and what is not, for people

    def put(self, state: State) -> State:
        """A new State with the arrays in it; optimisers and step stay as they are."""

        def choose(path, own):
            return self.arrays.get(_name(path), own)

        return state.replace(nets=jax.tree_util.tree_map_with_path(choose, state.nets))


def begin(folder: Path, model: Model, where: str, read: Callable[[], State]) -> Start:
    """What `model`, trained in `folder`, takes of the State that `read` gives.

    A network that has begun goes on without its source. where: the field and its value, which
    begin the UserError for weights that cannot be read, or of which nothing fits.
    """
    begun = (provenance.read(folder) or {}) if checkpoint.newest(folder) else {}
    try:
        return fitting(model, read(), where)
    except UserError as error:
        if "init_from" not in begun:
            raise UserError(f"{where}: {error}") from None
        return Start({}, begun["init_from"], f"note: {where}: {error}; not needed any more")


def fitting(model: Model, source: State, where: str) -> Start:
    """The weights and running values of `source` that `model` has, too; UserError for none."""
    mine, theirs = _arrays(jax.eval_shape(model.init, jax.random.key(0))), _arrays(source)
    both = [name for name in mine if name in theirs]
    fit = [name for name in both if _form(mine[name]) == _form(theirs[name])]
    changed = [f"{n} {_form(mine[n])}, not {_form(theirs[n])}" for n in both if n not in fit]
    line = f"{len(fit)} of {len(mine)} arrays are taken"
    line += _some("; of another shape there", changed)
    line += _some("; not there", [name for name in mine if name not in theirs])
    if not fit:
        raise UserError(f"{line}: name weights of this method and resolution")
    digest, arrays = hashlib.sha256(), {name: np.asarray(theirs[name]) for name in fit}
    for name, array in arrays.items():
        digest.update(f"{name} {_form(array)}".encode() + array.tobytes())
    return Start(arrays, digest.hexdigest(), f"{where}: {line}")


def _arrays(state):
    """Weights and running values by their names, `role/params/...`."""
    nets = {role: {"params": net.params, "stats": net.stats} for role, net in state.nets.items()}
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(nets)}


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _form(array):
    return f"{list(array.shape)} {array.dtype}".removesuffix(" float32")


def _some(what: str, names: Sequence[str]) -> str:
    """Names in short: how many, and the first three."""
    more = ", ..." * (len(names) > 3)
    return f"{what}: {len(names)} ({', '.join(names[:3])}{more})" if names else ""
