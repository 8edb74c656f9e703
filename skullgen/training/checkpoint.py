"""Checkpoints of a State: the only orbax import.

States are saved from the host, as numpy arrays (the key as its data), and restore on any devices.
Saving is asynchronous; an unfinished step is never listed. Orbax does not see every flipped bit, so
each step holds a sum of its own. An error of reading renames and deletes nothing.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from skullgen.core import files, hosts
from skullgen.core.errors import UserError
from skullgen.core.types import Model, State

Put = Callable[[State], State] | None
DELETED = "deleted.partial"  # `files.clear` knows it by its ending
KEEP = 2  # newest checkpoints that stay, should one be damaged
DAMAGE = ("DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND")  # what tensorstore says of changed files


def manager(folder: Path) -> ocp.CheckpointManager:
    """What saves in `folder`, for this process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEEP,
        create=False,
        cleanup_tmp_directories=True,
        todelete_subdir=DELETED,  # moved there at once: a kill leaves no step half deleted
        multiprocessing_options=_alone(),
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _alone():
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


def newest(folder: Path) -> int:
    """The newest whole step in `folder`, or 0 where there is none."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def fingerprint(state: State) -> str:
    """SHA-256 of all weights and running values of a State: what its samples depend on."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves({role: (n.params, n.stats) for role, n in state.nets.items()}):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def save(manager: ocp.CheckpointManager, state: State) -> None:
    """Starts to save `state`, which may be donated at once; UserError where the disk is full."""
    step, place = int(state.step), Path(manager.directory)
    if step in manager.all_steps():
        return
    copy = jax.tree.map(lambda x: np.array(x, copy=True), _plain(state))
    needed = sum(x.nbytes for x in jax.tree.leaves(copy)) + 2**20  # and orbax's own files
    finish(manager)
    if files.free_bytes(place) < needed:  # orbax would find out in a thread of its own
        raise files.no_room(place / str(step), needed)
    manager.save(step, args=ocp.args.StandardSave(copy), custom_metadata={"crc32": _crc(copy)})


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until what was saved is written, and makes the room of what is no longer kept."""
    manager.wait_until_finished()
    shutil.rmtree(Path(manager.directory) / DELETED, ignore_errors=True)


def release(folder: Path, state: State) -> None:
    """Saves into `folder` what inference needs: weights and running values, without `opt`."""
    copy = jax.tree.map(np.asarray, _released(state))
    about = {"crc32": _crc(copy), "release": True}
    with manager(folder) as place, files.room(folder):
        place.save(int(state.step), args=ocp.args.StandardSave(copy), custom_metadata=about)
        finish(place)
    for note in folder.rglob("commit_success.txt"):  # the folder's place on this machine
        note.unlink()


def begin(folder: Path, model: Model, seed: int, put: Put = None) -> State:
    """The State to train from everywhere: process 0's newest checkpoint, or a new one, `put`."""
    step = newest(folder) if hosts.lead() else 0
    if step:
        state = read(folder, model, step)
        if _about(folder / str(step)).get("release"):
            raise UserError(f"{folder / str(step)}: of a release: training cannot go on from it")
    else:
        # rbg for the weights: threefry takes XLA seconds to compile for every shape drawn.
        state = jax.jit(model.init)(jax.random.key(seed, impl="rbg"))
        state = state.replace(key=jax.random.key(seed))
        state = put(state) if put else state
    return _keyed(hosts.first(_plain(state)))


def read(folder: Path, model: Model, step: int) -> State:
    """The State at `step`, of a release without `opt`; UserError where it is not what was saved."""
    place, state = folder / str(step), None
    about = _about(place)
    target = jax.eval_shape(lambda key: _plain(model.init(key)), jax.random.key(0))
    target = _released(target) if about.get("release") else target
    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as orbax:
            state = orbax.restore(place.absolute() / "default", target)
    except (FileNotFoundError, ValueError) as error:
        damaged = isinstance(error, FileNotFoundError | json.JSONDecodeError)
        if not damaged and not str(error).startswith(DAMAGE):
            raise
    if state is None or about.get("crc32") != _crc(state):
        what = "damaged (or of another version of its model)"
        raise UserError(f"{place}: {what}: delete it: training goes on from the one before")
    if about.get("release"):
        state = state.replace(key=jax.random.key_data(jax.random.key(0)))
    return _keyed(state)


def _about(place):
    return (files.read_json(place / "_CHECKPOINT_METADATA") or {}).get("custom_metadata") or {}


def _released(state):
    nets = {role: net.replace(opt={}) for role, net in state.nets.items()}
    return State(state.step, np.zeros(1, np.uint32), nets)


def _plain(state):
    return state.replace(key=jax.random.key_data(state.key))


def _keyed(state):
    state = jax.tree.map(jnp.asarray, state)
    return state.replace(key=jax.random.wrap_key_data(state.key))


def _crc(state):
    crc = 0
    for leaf in jax.tree.leaves(state):
        crc = zlib.crc32(np.ascontiguousarray(leaf), crc)
    return crc
